"""The pictures of a video file at another rate."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from diffaccel.media.video_reader import DecodedFrame, VideoReader

LEAST_STEP = Fraction(1, 1000)
"""Seconds in which Matroska counts."""


def sampled(clip: Path, fps: Fraction) -> Iterator[np.ndarray]:
    """Pictures ``(H, W, 3)`` of a video file at a rate: at each moment the one that is shown then.

    Moments may lie `LEAST_STEP` early: Matroska rounds times to it, and of a clip at its own rate every picture is one.
    """
    moment = Fraction(0)
    shown: np.ndarray | None = None
    with VideoReader(clip, audio=False) as reader:
        for item in reader:
            if not isinstance(item, DecodedFrame):
                continue
            while shown is not None and moment < item.time - LEAST_STEP:
                yield shown
                moment += 1 / fps
            shown, ends = item.pixels, item.time + (item.duration or 1 / reader.rate)
        while shown is not None and moment < ends - LEAST_STEP:
            yield shown
            moment += 1 / fps
