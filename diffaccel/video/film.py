"""A video of a certain length, under prompts that change."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from diffaccel.video.engine import VideoEngine


def made(engine: VideoEngine, count: int, prompts: Sequence[tuple[int, str]]) -> Iterator[Any]:
    """So many pictures, under prompts that change on the way.

    Args:
        engine: what makes them.
        count: how many.
        prompts: prompts that come later, each with the number of the first picture made under it; the chunk that holds
            this picture is the first one.
    """
    waiting, done = deque(sorted(prompts, key=itemgetter(0))), 0
    per_chunk = engine.config.chunk * engine.pictures_each
    while done < count:
        while waiting and waiting[0][0] < done + per_chunk:
            engine.update(prompt=waiting.popleft()[1])
        for frame in engine.next().frames[: count - done]:
            yield frame
            done += 1
