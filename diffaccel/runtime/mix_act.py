"""Mix: units run in every call and return w new + (1 - w) cached, so that a gradient tells what a weight is worth.

This is how Learning-to-Cache (arXiv 2406.01733) and HarmoniCa (arXiv 2410.01723) train their routers; nothing is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from diffaccel.runtime.act import Act, Part, PartState, Place
from diffaccel.runtime.lanes import Block, LaneMemory, Lanes


class Gates:
    """What the units are told before each network call.

    Attributes:
        weights: weight w in [0, 1] of each unit's new output, ``(units,)``; None returns what was computed, and leaves
            what is cached alone.
        refreshes: for each unit whether its output, as it was mixed, is cached for later calls.
    """

    def __init__(self) -> None:
        self.stand_aside()

    def stand_aside(self) -> None:
        """Let the network compute as if there were no cache."""
        self.weights: torch.Tensor | None = None
        self.refreshes: tuple[bool, ...] = ()

    def set(self, weights: torch.Tensor, threshold: float) -> None:
        """Mix by these weights; cache where they exceed the threshold."""
        self.weights = weights
        self.refreshes = tuple((weights.detach() > threshold).tolist())


@dataclass(frozen=True)
class Mix(Act):
    """Blend outputs of units with those cached before.

    Attributes:
        units: modules whose outputs leave the units.
        gates: tell what to do in the call at hand.
    """

    units: tuple[str, ...]
    gates: Gates

    @property
    def modules(self) -> tuple[str, ...]:
        """The units."""
        return self.units

    @property
    def slots(self) -> int:
        """An output for each unit."""
        return len(self.units)

    def state(self, part: Part) -> PartState:
        """A state that reads what is cached in calls that compute."""
        return _MixState(part, self.gates)

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:  # noqa: ARG002
        """One for each unit."""
        for slot, name in enumerate(self.units):
            yield name, _Mixed(state, slot, self.gates)


class _MixState(PartState):
    """Finds what lanes cached although all is computed, and keeps it where the gates do not refresh it."""

    def __init__(self, part: Part, gates: Gates) -> None:
        super().__init__(part)
        self.gates = gates

    def _blocks(self, own: Lanes, kept: LaneMemory, *, compute: bool, step: int) -> list[Block]:  # noqa: ARG002
        empty = [None] * self.part.act.slots
        return [Block(block.lanes, list(block.entries or empty)) for block in kept.take(own)]

    def commit(self, kept: LaneMemory) -> None:
        """Store, unless the gates stand aside."""
        if self.gates.weights is not None:
            super().commit(kept)


class _Mixed(Place):
    """Blends one unit's output; where nothing is cached yet, the output is the new one."""

    def __init__(self, state: PartState, slot: int, gates: Gates) -> None:
        self.state, self.slot, self.gates = state, slot, gates

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """w new + (1 - w) cached."""
        weights, state, slot = self.gates.weights, self.state, self.slot
        if weights is None:
            return output
        if not state.knows(slot):
            state.write(slot, output)
            return output
        mixed = tree_map(lambda new, old: _mixed(weights[slot], new, old), output, state.read(slot))
        if self.gates.refreshes[slot]:
            state.write(slot, mixed)
        return mixed


def _mixed(weight: torch.Tensor, new: Any, old: Any) -> Any:
    return weight * new + (1 - weight) * old if isinstance(new, torch.Tensor) else new
