"""Words for messages: about a name that is not known, about numbers, and of strangers on a terminal."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

A_CACHE = "DeepCache for a UNet or IntervalCache for a transformer"
"""Methods that only reuse features, for messages about others."""
NOT_TOLD = "which a bare network does not tell, nor every pipeline with several denoisers"
"""Of the number of network calls of a run, for messages of what needs it."""
LIKENESS = 0.77
"""Of a slip to the name that was meant: "emoji-ds" is one of emoji-sd, "emoji-xl" another model."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean deepcache?)`, to follow an unknown name in a message; empty where no known name is close.

    Case does not count: "DeepCash" is close to "deepcache".
    """
    spellings = {word.lower(): word for word in known}
    close = get_close_matches(name.lower(), spellings, 1, LIKENESS)
    return f" (did you mean {spellings[close[0]]}?)" if close else ""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`number` and what it counts: "1 picture", "2 pictures", "10,000 pictures".

    Args:
        plural: where it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def with_article(noun: str) -> str:
    """A noun or the name of a class behind its article: "an autoencoder", "a UNet2DModel"."""
    return f"{'an' if noun[0] in 'aeioAEIO' else 'a'} {noun}"


_LIMITS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_unicode": "is not written in UTF-8: save it so",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "extra_forbidden": "is no setting",
}
_KINDS = {"int": "a whole number", "float": "a number", "string": "text", "bool": "true or false", "list": "a list"}


def what_is_wrong(problem: Mapping[str, Any]) -> str:
    """One of a pydantic error's problems as a sentence about a value: "must be at least 1".

    What is not of a kind that has words here keeps those that it came with, our own checks' among them.
    """
    kind, context = str(problem["type"]), problem.get("ctx") or {}
    if kind in _LIMITS:
        shown = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
        return _LIMITS[kind].format_map(shown)
    name = kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    if name in _KINDS:
        return f"must be {_KINDS[name]}"
    return str(problem["msg"]).removeprefix("Value error, ")


def one_line(text: object) -> str:
    """`text` with its control characters shown, not obeyed: a prompt may hold what clears a screen."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)
