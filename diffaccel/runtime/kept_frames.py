"""Rings of keys and values by frame, and what is gathered from them for a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from diffaccel.networks.causal import rotated
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.runtime.lanes import Span

Ring = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one attention, each ``(places, heads, capacity, tokens, head_dim)``."""
_versions = count(1)


@dataclass
class KeptFrames:
    """Which frames of a video lie where in its rings.

    Attributes:
        where: for each kept frame its place in the rings.
        version: another one whenever frames were written.
    """

    where: dict[int, int] = field(default_factory=dict)
    version: int = field(default_factory=lambda: next(_versions))

    @property
    def frames(self) -> tuple[int, ...]:
        """Numbers of the kept frames, ascending."""
        return tuple(sorted(self.where))


@dataclass(frozen=True)
class Visible:
    """What a row sees of its video: numbers of frames, ascending, and where they lie."""

    frames: tuple[int, ...]
    record: KeptFrames | None

    @property
    def version(self) -> int:
        """Which state of the rings it is of."""
        return 0 if self.record is None else self.record.version

    @property
    def places(self) -> list[int]:
        """Where the frames lie."""
        return [] if self.record is None else [self.record.where[number] for number in self.frames]


@dataclass
class KeyValueWindow:
    """Keys and values that queries meet, each ``(rows * places, heads, (past + frames) * tokens, head_dim)``.

    Those of earlier frames come first and stay; those of the call's own frames are written behind them in each call.
    """

    keys: torch.Tensor
    values: torch.Tensor
    past: int

    @classmethod
    def gathered(
        cls, rings: Sequence[Ring | None], visible: Sequence[Visible], past: int, key: torch.Tensor
    ) -> KeyValueWindow:
        """From the rings of each row.

        Args:
            rings: of each row, None where nothing is kept.
            visible: what each row sees.
            past: most frames that a row sees; rows that see fewer have zeros in front.
            key: keys of the call's own frames, ``(rows * places, heads, frames, tokens, head_dim)``.
        """
        whole, heads, frames, tokens, size = key.shape
        places = whole // len(rings)
        both = []
        for kind in range(2):
            gathered = _zeros((whole, heads, past + frames, tokens, size), key.dtype, key.device)
            for row, (ring, seen) in enumerate(zip(rings, visible, strict=True)):
                if ring is not None and seen.frames:
                    into = gathered[row * places : (row + 1) * places, :, past - len(seen.frames) : past]
                    into.copy_(ring[kind][:, :, seen.places])
            both.append(gathered.flatten(2, 3))
        return cls(both[0], both[1], past * tokens)

    def turn_past(self, rotary: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Turn the keys of earlier frames by their positions."""
        cos, sin = (part[:, : self.past] for part in rotary)
        self.keys[:, :, : self.past] = rotated(self.keys[:, :, : self.past], (cos, sin))

    def with_own(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, with those of the call's own frames ``(rows * places, heads, tokens, head_dim)``."""
        if not self.past:
            return key, value
        self.keys[:, :, self.past :], self.values[:, :, self.past :] = key, value
        return self.keys, self.values

    def nbytes(self) -> int:
        """Bytes of storage."""
        return self.keys.nbytes + self.values.nbytes


def write_frames(
    entries: list[Any] | None, pairs: Sequence[tuple[torch.Tensor, ...]], span: Span, context: CausalContext
) -> list[Any]:
    """The rings of a video with some frames more, and without those that their chunk does not see.

    Frames that it sees stay, though no later chunk may see them all: a call that is made again, because something was
    raised elsewhere, sees what it saw before.

    Args:
        entries: rings of all attentions and a `KeptFrames`; None for a new video.
        pairs: for each attention keys and values of the new frames, ``(places, heads, frames, tokens, head_dim)``.
        span: which frames they are.
        context: what later chunks see.
    """
    old = {} if entries is None else dict(entries[-1].where)
    new = range(span.first, span.first + span.frames)
    staying = context.kept(tuple(sorted({*old, *new})), max(*old, *new, -1), span.frames)
    where = {number: place for number, place in old.items() if number in staying and number not in new}
    free = iter(sorted(set(range(len(old) + span.frames)) - set(where.values())))  # no frame that stays is written over
    where |= {number: next(free) for number in new if number in staying}
    rings = _with_room([] if entries is None else entries[:-1], pairs, max(where.values()) + 1, span, context)
    chosen = [k for k, number in enumerate(new) if number in where]
    into = [where[new[k]] for k in chosen]
    for ring, pair in zip(rings, pairs, strict=True):
        for kept, made in zip(ring, pair, strict=True):
            kept[:, :, into] = made[:, :, chosen].to(kept.device)
    return [*rings, KeptFrames(where)]


def _with_room(
    rings: Sequence[Ring],
    pairs: Sequence[tuple[torch.Tensor, ...]],
    needed: int,
    span: Span,
    context: CausalContext,
) -> list[Ring]:
    """Rings of at least the needed capacity: that of the whole window and a chunk, or doubled where there is none."""
    capacity = rings[0][0].shape[2] if rings else 0
    if capacity >= needed:
        return list(rings)
    enough = 2 * capacity if context.window is None else context.window + context.sink + span.frames
    grown = []
    for slot, pair in enumerate(pairs):
        keys, values = (_room(tensor, max(needed, enough), context) for tensor in pair)
        if rings:
            keys[:, :, :capacity], values[:, :, :capacity] = rings[slot]
        grown.append((keys, values))
    return grown


def _room(like: torch.Tensor, capacity: int, context: CausalContext) -> torch.Tensor:
    """An empty ring for keys or values ``(places, heads, frames, tokens, head_dim)``."""
    places, heads, _, tokens, size = like.shape
    device = torch.device("cpu") if context.offload else like.device
    return _zeros((places, heads, capacity, tokens, size), like.dtype, device)


@torch.inference_mode(False)
def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor that later calls may write into, whether they are made in inference mode or not."""
    return torch.zeros(shape, dtype=dtype, device=device)
