"""Weights in prompts as AUTOMATIC1111's web UI writes them: `(word:1.3)`, `(word)`, `[word]`, `\\(` and `BREAK`."""

import re
from functools import lru_cache

EMPHASIS = 1.1
TextPart = tuple[tuple[str, float], ...]
_TOKEN = re.compile(r"\\.|:\s*\d*\.?\d+\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL)
_CHANGING = re.compile(r"\[[^\[\]]*[:|][^\[\]]*\]")


@lru_cache(maxsize=1024)
def weighted_parts(text: str) -> tuple[TextPart, ...]:
    """The parts between `BREAK`s, each as pieces of text with their weights.

    Raises `ValueError` for brackets that are not closed, and for `[a:b:0.5]` and `[a|b]`, which change a prompt in the
    middle of a run.
    """
    if _CHANGING.search(text):
        raise ValueError("[a:b:0.5] and [a|b] change a prompt in the middle of a run, which is not done here")
    return tuple(_part(part) for part in re.split(r"\s*\bBREAK\b\s*", text))


def _part(text: str) -> TextPart:
    pieces: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []
    for token in _TOKEN.findall(text):
        bracket = opened[-1][0] if opened else ""
        if token in ("(", "["):
            opened.append((token, len(pieces)))
        elif token in (")", "]") or (token[0] == ":" and token[-1] == ")"):
            if bracket != {")": "(", "]": "["}[token[-1]]:
                raise ValueError(f"a {token[-1]} closes nothing: write \\{token[-1]} for the character itself")
            start = opened.pop()[1]
            weight = float(token[1:-1]) if token[0] == ":" else EMPHASIS if bracket == "(" else 1 / EMPHASIS
            pieces[start:] = [(piece, own * weight) for piece, own in pieces[start:]]
        else:
            pieces.append((token[1:] if token[0] == "\\" and len(token) > 1 else token, 1.0))
    if opened:
        raise ValueError(f"a {opened[-1][0]} is not closed: write \\{opened[-1][0]} for the character itself")
    return _joined(pieces)


def _joined(pieces: list[tuple[str, float]]) -> TextPart:
    """Neighbours of one weight as one piece."""
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return tuple((text, round(weight, 4)) for text, weight in joined)
