"""Published methods, one file each: a method is a choice of what to reuse, and when."""

from diffaccel.methods.base import Method
from diffaccel.methods.block_cache import BlockCache
from diffaccel.methods.calibrated_cache import CalibratedCache, KindSteps, Profile
from diffaccel.methods.deepcache import DeepCache
from diffaccel.methods.delta_cache import DeltaCache
from diffaccel.methods.interval_cache import IntervalCache

__all__ = [
    "BlockCache",
    "CalibratedCache",
    "DeepCache",
    "DeltaCache",
    "IntervalCache",
    "KindSteps",
    "Method",
    "Profile",
    "parse",
]


def parse(text: str) -> Method:
    """The method written as a short string, such as `deepcache:interval=3,branch=0,schedule=steps(0,4,9)`.

    Raises:
        ValueError: if there is no such method or field, or a value is invalid; the message names what is valid.
    """
    return Method.parse(text)
