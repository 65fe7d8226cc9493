"""Skip all blocks where evidence allows it: rows decide before the first block runs, by what was seen so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.networks.block_io import Streams
from diffaccel.reuse.measure import Measure
from diffaccel.runtime.act import PartState, Place
from diffaccel.runtime.observe_act import first_tensor
from diffaccel.runtime.residual_act import AddResidual
from diffaccel.runtime.trees import copied


@dataclass(frozen=True)
class GuardedResidual(AddResidual):
    """`AddResidual` whose rows decide in front of its first block, by one of three kinds of evidence.

    Attributes:
        unit: the attention of the first block, whose input is measured: what the block makes of the timestep and the
            hidden states, the modulated input.
        measure: looks at the network's own input instead.
        check: a block behind the range, which always runs: how far what it adds is from its forecast is the evidence
            for the next call.
    """

    unit: str = ""
    measure: Measure | None = None
    check: str = ""

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that carry a hook."""
        return (*super().modules, *(name for name in (self.unit, self.check) if name))

    @property
    def measured(self) -> tuple[str, ...]:
        """The block in front of which it decides, or the one that is checked."""
        return (self.check or self.ranges.blocks[0],)

    @property
    def slots(self) -> int:
        """Those of the residuals, and one for what the checked block adds."""
        return super().slots + 1

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """Those that gather evidence, then those that skip."""
        entrance = _Entrance(state, self)
        yield self.ranges.blocks[0], _FirstBlock(entrance)
        if self.unit:
            yield self.unit, _UnitInput(entrance)
        if self.check:
            yield self.check, _CheckedBlock(state, self.slots - 1, Streams(model.get_submodule(self.check)))
        yield from super().places(state, model)


class _ReachedError(Exception):
    """Ends a run of the first block at its attention: what it measures is known, and the rest is not wanted."""


class _Entrance:
    """Takes what is measured, and lets the rows decide."""

    def __init__(self, state: PartState, act: GuardedResidual) -> None:
        self.state, self.act = state, act
        self.peeking = self.told = False
        self.found: torch.Tensor | None = None

    def arrive(self, run: Callable[[], Any]) -> None:
        """In front of the first block, which `run` runs."""
        state = self.state
        self.told = False
        if state.call is None or state.call.forced is not None:
            return
        if self.act.check:
            if state.measures is not None:
                state.settle(state.measures(state.drift.known(state.row_lanes)))
        elif self.act.measure is not None:
            self.take(self.act.measure.of(state.call.inputs.sample, *state.call.noise_levels()))
        elif state.measures is not None:
            self.take(self._peek(run))

    def _peek(self, run: Callable[[], Any]) -> torch.Tensor:
        """What the first block gives to its attention."""
        self.peeking, self.found = True, None
        try:
            run()
        except _ReachedError:
            pass
        finally:
            self.peeking = False
        if self.found is None:
            raise RuntimeError(f"{self.act.unit!r} was not called by its block: use BlockCache on this network")
        return self.found

    def take(self, measured: torch.Tensor) -> None:
        """Remember what was measured, ``(rows * anything, ...)``, and decide where that is still to be done."""
        state, self.told = self.state, True
        measured = measured.detach()
        measured = measured.clone() if state.writable else measured
        if state.measures is None:
            state.drift.note(state.row_lanes, measured)
            return
        state.drift.add(state.row_lanes, measured, not self.act.rows_apart, state.part.schedule.rescaled)
        state.settle(state.measures(state.drift.known(state.row_lanes)))


class _FirstBlock(Place):
    """Asks the entrance before anything is decided."""

    def __init__(self, entrance: _Entrance) -> None:
        self.entrance = entrance

    def ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Callable[..., Any]) -> None:
        """Let the rows decide."""
        self.entrance.arrive(lambda: forward(*args, **kwargs))


class _UnitInput(Place):
    """Shows the entrance what enters the attention of the first block."""

    def __init__(self, entrance: _Entrance) -> None:
        self.entrance = entrance

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take note, and go no further where that was all that was asked for."""
        found = first_tensor(args, kwargs)
        if self.entrance.peeking:
            self.entrance.found = found
            raise _ReachedError
        if not self.entrance.told:
            self.entrance.take(found)
        return args, kwargs


class _CheckedBlock(Place):
    """A block that always runs: what it adds is compared with its forecast where the blocks before it were skipped."""

    def __init__(self, state: PartState, slot: int, streams: Streams) -> None:
        self.state, self.slot, self.streams = state, slot, streams
        self.arriving: Any = None

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take note of the main hidden states."""
        arriving = self.streams.entering(args, kwargs)
        self.arriving = copied(arriving) if self.state.writable else arriving
        return args, kwargs

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Store what it added, or tell how far that is from the forecast."""
        state = self.state
        added = self.streams.leaving(output) - self.arriving
        self.arriving = None
        if state.compute:
            state.write(self.slot, added)
        elif state.knows(self.slot):
            state.drift.set(state.row_lanes, relative_errors(added, state.read(self.slot), len(state.row_lanes)))
        return output


def relative_errors(value: torch.Tensor, forecast: torch.Tensor, rows: int) -> torch.Tensor:
    """||v - f|| / ||v|| of each row of ``(rows * anything, ...)``, on the device, ``(rows,)``."""
    real, missed = (x.detach().float().reshape(rows, -1).norm(dim=1) for x in (value, value - forecast))
    errors: torch.Tensor = missed / real
    return errors
