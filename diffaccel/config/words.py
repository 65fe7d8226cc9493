"""Words for messages: about a name that is not known, about numbers, and of strangers on a terminal."""

from collections.abc import Iterable
from difflib import get_close_matches

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


def one_line(text: object) -> str:
    """`text` with its control characters shown, not obeyed: a prompt may hold what clears a screen."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))
