"""Weights in prompts as AUTOMATIC1111's web UI writes them: `(word:1.3)`, `(word)`, `[word]`, `\\(` and `BREAK`.

And by which pipelines such prompts, and long ones, can be read, told without torch.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec

EMPHASIS = 1.1
TextPart = tuple[tuple[str, float], ...]
WeightedText = tuple[TextPart, ...]
_CLIP_ALONE = ("StableDiffusion", "LatentConsistency", "AnimateDiff")
_TOKEN = re.compile(r"\\.|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL)
_CHANGING = re.compile(r"\[[^\[\]]*[:|][^\[\]]*\]")


@lru_cache(maxsize=1024)
def weighted_parts(text: str) -> WeightedText:
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
            weight = _weight(token[1:-1]) if token[0] == ":" else EMPHASIS if bracket == "(" else 1 / EMPHASIS
            pieces[start:] = [(piece, own * weight) for piece, own in pieces[start:]]
        else:
            pieces.append((token[1:] if token[0] == "\\" and len(token) > 1 else token, 1.0))
    if opened:
        raise ValueError(f"a {opened[-1][0]} is not closed: write \\{opened[-1][0]} for the character itself")
    return _joined(pieces)


def _weight(text: str) -> float:
    """A weight as it is written behind a colon. Raises `ValueError` for one below 0."""
    weight = float(text)
    if weight < 0:
        raise ValueError(f"a weight is 0 or more (got {text.strip()}): put the word into the negative prompt")
    return weight


def _joined(pieces: list[tuple[str, float]]) -> TextPart:
    """Neighbours of one weight as one piece."""
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return tuple((text, round(weight, 4)) for text, weight in joined)


def read_as(text: str, *, weights: bool) -> WeightedText:
    """A text with its weights; with none where they are not to be read. Raises as `weighted_parts`."""
    return weighted_parts(text) if weights else (((text, 1.0),),)


def reads_in_parts(pipeline: str) -> bool:
    """Whether long and weighted prompts can be read: whether CLIP is all that the pipelines of this class read with."""
    return pipeline.startswith(_CLIP_ALONE) and not pipeline.startswith("StableDiffusion3")


def reading_problem(pipeline: str, texts: Iterable[str], *, long: bool, weights: bool) -> str | None:
    """What keeps a pipeline of the class with this name from reading texts as asked, if anything; names the setting."""
    if not (long or weights):
        return None
    asked = "long_prompts" if long else "prompt_weights"
    if not reads_in_parts(pipeline):
        return f"{asked}: {pipeline} does not read with CLIP alone, so its prompts are read as they are: leave it out"
    if not has_compel():
        return f"{asked}: it needs compel: pip install 'diffaccel[prompts]'"
    try:
        for text in texts:
            read_as(text, weights=weights)
    except ValueError as error:
        return f"prompt: {error}"
    return None


def has_compel() -> bool:
    """Whether the library that encodes in parts is installed."""
    return find_spec("compel") is not None
