"""Arguments that a stock pipeline's call knows; some calls take any, and ignore the others in silence."""

import inspect
from collections.abc import Iterable
from difflib import get_close_matches

DEPRECATED = frozenset({"callback", "callback_steps", "mask_feature"})
"""Arguments that stock calls still take without naming them."""


def check_arguments(stock: type, given: Iterable[str], own: Iterable[str]) -> None:
    """Raise TypeError for an argument that is neither the stock call's nor among ``own``; a close name is offered."""
    parameters = inspect.signature(stock.__call__).parameters.values()
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"} | set(own)
    for name in sorted(set(given) - known - DEPRECATED):
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(known))}"
        raise TypeError(f"{stock.__name__} has no argument {name!r}: {hint}")
