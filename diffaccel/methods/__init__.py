"""Published methods, one file each: a method is a choice of what to reuse, and when."""

from diffaccel.methods.base import Method
from diffaccel.methods.deepcache import DeepCache

__all__ = ["DeepCache", "Method", "parse"]


def parse(text: str) -> Method:
    """The method written as a short string, such as `deepcache:interval=3,branch=0,schedule=steps(0,4,9)`.

    Raises:
        ValueError: if there is no such method or field, or a value is invalid; the message names what is valid.
    """
    return Method.parse(text)
