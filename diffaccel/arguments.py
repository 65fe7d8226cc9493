"""Arguments that a stock pipeline's call knows; some calls take any, and ignore the others in silence."""

import inspect
from collections.abc import Iterable

from diffaccel.names import did_you_mean

DEPRECATED = frozenset({"callback", "callback_steps", "mask_feature"})
"""Arguments that stock calls still take without naming them."""


def check_arguments(stock: type, given: Iterable[str], own: Iterable[str]) -> None:
    """Raise TypeError for an argument that is neither the stock call's nor among ``own``, naming those."""
    parameters = inspect.signature(stock.__call__).parameters.values()
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"} | set(own)
    for name in sorted(set(given) - known - DEPRECATED):
        hint = did_you_mean(name, known)
        raise TypeError(f"{stock.__name__} has no argument {name!r}{hint}: it has {', '.join(sorted(known))}")
