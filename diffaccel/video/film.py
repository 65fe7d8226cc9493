"""A video of a certain length, under prompts that change."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from diffaccel.video.engine import VideoEngine

logger = logging.getLogger(__name__)


def made(engine: VideoEngine, count: int, prompts: Sequence[tuple[int, str]]) -> Iterator[Any]:
    """So many pictures, under prompts that change on the way.

    Args:
        engine: what makes them.
        count: how many.
        prompts: prompts that come later, each with the number of the first picture made under it; the chunk that holds
            this picture is the first one. Of several in one chunk, the last is read.
    """
    waiting, done = deque(sorted(prompts, key=itemgetter(0))), 0
    while done < count:
        coming = [waiting.popleft()[1] for _ in range(sum(at < done + engine.pictures_next for at, _ in waiting))]
        unread = [engine.config.prompt, *coming][:-1] if not done else coming[:-1]
        for prompt in unread:
            logger.warning("%r is never read: %r begins in the same chunk of frames", prompt, coming[-1])
        if coming:
            engine.update(prompt=coming[-1])
        for frame in engine.next().frames[: count - done]:
            yield frame
            done += 1
