"""Skip ranges of transformer blocks: their input passes through, and what they added before is added again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.networks.block_io import Streams
from diffaccel.reuse.residual import Ranges, relative_changes
from diffaccel.runtime.act import Act, PartState, Place
from diffaccel.runtime.trees import copied

REFERENCE = 0  # slot of what the front blocks added at the last computed call


@dataclass(frozen=True)
class AddResidual(Act):
    """On a call that reuses, h_out = h_in + (h_out - h_in of the last computed call) over a range of blocks.

    Attributes:
        ranges: which blocks, and from which call on which of them.
        front: blocks before the range, which always run, and whose own residual tells each row how much has changed.
        rows_apart: whether each row decides by itself, where the schedule decides rows.
    """

    ranges: Ranges
    front: tuple[str, ...] = ()
    rows_apart: bool = True

    @property
    def tells_alignment(self) -> bool:
        """Where there are front blocks."""
        return bool(self.front)

    @property
    def modules(self) -> tuple[str, ...]:
        """All blocks that carry a hook."""
        return self.front + self.ranges.blocks

    @property
    def measured(self) -> tuple[str, ...]:
        """The front blocks."""
        return self.front

    @property
    def replayed(self) -> tuple[str, ...]:
        """The blocks that may be skipped."""
        return self.ranges.blocks

    @property
    def slots(self) -> int:
        """The front residual, and one residual for each segment of each range."""
        return 1 + sum(len(self.ranges.segments(index)) for index, _ in enumerate(self.ranges.ranges))

    def slot(self, variant: int, segment: int) -> int:
        """Where the residual of a segment is stored."""
        return 1 + sum(len(self.ranges.segments(index)) for index in range(variant)) + segment

    def variant(self, step: int, total: int | None) -> int:
        """Index of the range in force."""
        return self.ranges.in_force(step, total)

    def fixed(self, variant: int) -> AddResidual:
        """The same with one range alone; other blocks keep a hook that lets them run."""
        return AddResidual(self.ranges.only(variant), self.front, self.rows_apart)

    def begin(self, state: PartState) -> None:
        """Compute where a residual of the range in force is missing: a block of it did not run when it was due."""
        needed = [self.slot(state.variant, s) for s, _ in enumerate(self.ranges.segments(state.variant))]
        state.compute = state.compute or not all(state.knows(slot) for slot in needed)

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """Those that measure, on front blocks; those that skip, on the others."""
        front = _Front(state, self.rows_apart)
        for name in self.front:
            ends = name == self.front[0], name == self.front[-1]
            yield name, _FrontBlock(front, Streams(model.get_submodule(name)), *ends)
        flow = _Flow(state)
        for name, roles in self._roles().items():
            yield name, _RangeBlock(flow, Streams(model.get_submodule(name)), roles)

    def _roles(self) -> dict[str, dict[int, _Role]]:
        """For each block its place in each range that it belongs to."""
        roles: dict[str, dict[int, _Role]] = {name: {} for name in self.ranges.blocks}
        for index, _ in enumerate(self.ranges.ranges):
            for number, segment in enumerate(self.ranges.segments(index)):
                for name in segment:
                    slot = self.slot(index, number)
                    roles[name][index] = _Role(slot, name == segment[0], name == segment[-1])
        return roles


@dataclass(frozen=True)
class _Role:
    """A block's place in a range: where its segment's residual is stored, and whether it is the first or last there."""

    slot: int
    first: bool
    last: bool


class _Front:
    """Measures how much the front blocks' residual has changed, and lets the rows decide."""

    def __init__(self, state: PartState, rows_apart: bool) -> None:
        self.state, self.rows_apart = state, rows_apart
        self.arriving: Any = None

    def measure(self, residual: torch.Tensor) -> None:
        """Decide, given what the front blocks added, ``(rows * anything, ...)``."""
        state = self.state
        known = state.read(REFERENCE, carried=False) if state.knows(REFERENCE) else None
        if state.measures is not None and known is not None:
            self._decide(residual, known[0])
        if state.compute:
            state.write(REFERENCE, [residual, residual if known is None else known[0]][: self.kept], carried=False)
        elif self.kept > 1 and known is not None:
            assert state.part.forecast is not None
            state.alignment = state.part.forecast.alignment(residual, known, sum(state.sizes), self.rows_apart)

    @property
    def kept(self) -> int:
        """How many of the last residuals are kept to compare with."""
        forecast = self.state.part.forecast
        return 2 if forecast is not None and forecast.aligns else 1

    def _decide(self, residual: torch.Tensor, reference: torch.Tensor) -> None:
        state = self.state
        assert state.measures is not None
        count = sum(state.sizes)
        if residual.shape[0] % count:
            raise RuntimeError(
                f"hidden states of shape {tuple(residual.shape)} cannot belong to {count} rows: this network does not "
                "keep its rows apart"
            )
        changes = relative_changes(residual, reference, count if self.rows_apart else 1)
        decided = state.measures(changes if self.rows_apart else changes * count)
        state.settle(decided)


class _FrontBlock(Place):
    """A block that always runs; the last one tells what all of them added."""

    def __init__(self, front: _Front, streams: Streams, first: bool, last: bool) -> None:
        self.front, self.streams, self.first, self.last = front, streams, first, last

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take note of the main hidden states."""
        if self.first:
            arriving = self.streams.entering(args, kwargs)
            self.front.arriving = copied(arriving) if self.front.state.writable else arriving
        return args, kwargs

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Measure behind the last one; where the first did not run, rows find nothing to compare and compute."""
        if self.last and self.front.arriving is not None:
            self.front.measure(self.streams.leaving(output) - self.front.arriving)
            self.front.arriving = None
        return output


class _Flow:
    """What is passed on through the blocks of one part in a call: hidden states at the start of a segment."""

    def __init__(self, state: PartState) -> None:
        self.state = state
        self.entering: dict[str, Any] = {}


class _RangeBlock(Place):
    """A block that may be skipped: runs, or passes its input on, the last of a segment with the residual added."""

    def __init__(self, flow: _Flow, streams: Streams, roles: dict[int, _Role]) -> None:
        self.flow, self.streams, self.roles = flow, streams, roles
        self._returned: tuple[str | None, ...] = ()
        self._alone = False

    def reuses(self) -> bool:
        """Where the part reuses and the block belongs to the range in force."""
        state = self.flow.state
        return not state.compute and self.roles.get(state.variant) is not None

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take note of the hidden states that enter a segment."""
        role = self.roles.get(self.flow.state.variant)
        if role is not None and role.first:
            self._note(args, kwargs)
        return args, kwargs

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = self.streams.inputs(args, kwargs)
        self.flow.entering = copied(inputs) if self.flow.state.writable else inputs

    def recall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The input, passed on; behind the last block of a segment the residual is added to what entered it."""
        role = self.roles[self.flow.state.variant]
        if role.first:
            self._note(args, kwargs)
        if not role.last:
            inputs = self.streams.inputs(args, kwargs)
            return self._output([None if name is None else inputs[name] for name in self._returned])
        added = iter(self.flow.state.read(role.slot))
        entering, self.flow.entering = self.flow.entering, {}
        return self._output([None if name is None else entering[name] + next(added) for name in self._returned])

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Learn how the block returns its streams, and store the residual behind the last one of a segment."""
        role = self.roles.get(self.flow.state.variant)
        if role is None or not self.flow.state.compute:
            return output
        self._alone = isinstance(output, torch.Tensor)
        values = [output] if self._alone else list(output)
        names = self.streams.names(output)
        self._returned = tuple(name if value is not None else None for name, value in zip(names, values, strict=True))
        if role.last:
            entering, self.flow.entering = self.flow.entering, {}
            if entering:  # else the segment's first block did not run, and there is no residual to speak of
                pairs = [(name, v) for name, v in zip(self._returned, values, strict=True) if name is not None]
                self.flow.state.write(role.slot, [value - entering[name] for name, value in pairs])
        return output

    def _output(self, values: list[Any]) -> Any:
        """Values in the shape that the block returns."""
        return values[0] if self._alone else tuple(values)
