"""What a video engine returns: chunks, and an account of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from diffaccel.config.words import counted

OnStep = Callable[[int, float, torch.Tensor], torch.Tensor]
"""Called after each step of a chunk with its index, its timestep and the latents ``(frames, C, h, w)`` it led to."""
PARTS = ("context", "denoise", "decode")
"""Where the time of a chunk goes."""


class FramesNotFinite(RuntimeError):
    """Numbers ran over, and a video cannot go on."""


@dataclass(frozen=True, eq=False)
class VideoChunk:
    """Frames that were made together.

    Attributes:
        frames: pictures in the engine's ``output_type``.
        index: number of the chunk, from 0.
        first: number of its first picture, counted from the start of the video, given ones included.
        latents: what they were decoded from, ``(frames, C, h, w)``.
        seconds: time by "context", "denoise" and "decode".
    """

    frames: list[Any]
    index: int
    first: int
    latents: Any
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class ChunkReport:
    """Account of a video since it was built or reset.

    Attributes:
        chunks, pictures: made so far; latents count as the pictures that they are.
        chunks_in_flight: begun and not finished.
        seconds: of all chunks, by "context", "denoise" and "decode".
        network_calls, network_rows, replayed_rows: calls that denoise, rows in them, and those that reused features.
        context_calls: calls that only keep keys and values for later chunks.
        context_frames: latent frames whose keys and values the next chunk may see.
        context_bytes: what these take, with the windows gathered from them.
        sampler: its name.
    """

    chunks: int
    pictures: int
    chunks_in_flight: int
    seconds: Mapping[str, float]
    network_calls: int
    network_rows: int
    replayed_rows: int
    context_calls: int
    context_frames: int
    context_bytes: int
    sampler: str

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        rate = f", {self.pictures / total:.1f} per second" if total else ""
        return (
            f"{counted(self.chunks, 'chunk')}, {counted(self.pictures, 'picture')}{rate}; "
            f"{self.network_calls + self.context_calls} network calls, {self.context_calls} of them for the context, "
            f"{self.replayed_rows} of {self.network_rows} rows reused features; context of "
            f"{counted(self.context_frames, 'frame')} in {self.context_bytes / 2**20:.1f} MiB; {self.sampler}"
        )


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time that the body takes."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - start
