"""Clean latents of a video's latest frames: what a context can be written from, again if need be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from diffaccel.runtime.causal_context import CausalContext
from diffaccel.stream.batch import FrameSettings


@dataclass(frozen=True, eq=False)
class Piece:
    """Neighbouring frames that are written together.

    Attributes:
        first: number of the first one.
        latents: ``(frames, C, h, w)``.
        settings: under which they were made.
    """

    first: int
    latents: torch.Tensor
    settings: FrameSettings


class History:
    """The frames that later chunks may see, and which of them the context has.

    Args:
        context: what they may see.
        chunk: most frames that are written together.
    """

    def __init__(self, context: CausalContext, chunk: int) -> None:
        self._context, self._chunk = context, chunk
        self._frames: dict[int, tuple[torch.Tensor, FrameSettings]] = {}
        self.length = 0
        self.written = 0

    def extend(self, latents: torch.Tensor, settings: FrameSettings) -> None:
        """Add the next frames, ``(frames, C, h, w)``."""
        for frame in latents:
            self._frames[self.length] = frame, settings
            self.length += 1

    @property
    def last(self) -> torch.Tensor | None:
        """The last frame, ``(C, h, w)``."""
        return self._frames[self.length - 1][0] if self.length else None

    def unwritten(self) -> Iterator[Piece]:
        """Frames that the context lacks, in pieces."""
        yield from self._pieces(range(self.written, self.length))

    def seen(self) -> Iterator[Piece]:
        """All frames that the next chunk sees, in pieces."""
        numbers = self._context.seen(tuple(sorted(self._frames)), self.length)
        yield from self._pieces(numbers)

    def _pieces(self, numbers: Sequence[int]) -> Iterator[Piece]:
        piece: list[int] = []
        for number in [*numbers, -1]:
            if piece and (number != piece[-1] + 1 or len(piece) == self._chunk):
                frames = [self._frames[n] for n in piece]
                yield Piece(piece[0], torch.stack([latents for latents, _ in frames]), frames[-1][1])
                piece = []
            piece.append(number)

    def settle(self) -> None:
        """All is written: let go of what no chunk will see, but for the last frame."""
        self.written = self.length
        again = () if self._context.window is None else self._context.seen(tuple(self._frames), self.length)
        kept = {*again, self.length - 1}
        self._frames = {n: frame for n, frame in self._frames.items() if n in kept}
