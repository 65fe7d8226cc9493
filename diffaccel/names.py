"""What to say about a name that is not known."""

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
