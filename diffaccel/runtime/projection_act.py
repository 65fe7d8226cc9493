"""Projection: what modules make of inputs that stay the same is made once a lane, and kept as long as the weights.

A lane is a prompt, or a frame's control image. Rows that carry one lane are one row here, so that a prompt which all
frames of a stream share is projected once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffaccel.networks.inputs import Inputs
from diffaccel.runtime.act import Act, Part, PartState, Place
from diffaccel.runtime.lanes import Block, LaneMemory, Lanes, cat_rows, take_rows
from diffaccel.runtime.trees import detached

Stamp = tuple[Any, ...]


@dataclass(frozen=True)
class Projection(Act):
    """Return again what modules made of inputs that stay the same, as long as their weights do. Lossless.

    Attributes:
        names: the modules, such as the projections of a prompt to keys and values; they take one tensor, and keep its
            rows apart.
        upstream: modules between the network's inputs and these, whose weights count, too.
        of_prompt: whether what they take is the prompt. A network that is called without one feeds them with the sample
            instead, as AudioLDM's is, and everything computes.
    """

    rests: ClassVar[bool] = False

    names: tuple[str, ...]
    upstream: tuple[str, ...] = ()
    of_prompt: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules."""
        return self.names

    @property
    def slots(self) -> int:
        """For each module its output, and what its weights were."""
        return len(self.names)

    def state(self, part: Part) -> ProjectionState:
        """Of its own kind: each module computes the rows that it lacks."""
        return ProjectionState(part)

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """One for each module."""
        assert isinstance(state, ProjectionState)
        upstream = [model.get_submodule(name) for name in self.upstream]
        for slot, name in enumerate(self.names):
            holder, _, last = name.removesuffix(".base_layer").rpartition(".")
            modules = [model.get_submodule(name), *upstream]
            yield name, _Projected(state, slot, modules, model.get_submodule(holder), last)


class ProjectionState(PartState):
    """The lanes of a call, and where what they stored is kept.

    Attributes:
        lanes: one per row.
        kept: the memory.
        whole: for each slot the last tensor of all rows, with the lanes and weights that it is of.
        constant: whether what the modules are given stays the same.
    """

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self.lanes: Lanes = ()
        self.kept = LaneMemory()
        self.whole: dict[int, tuple[Lanes, Stamp, torch.Tensor]] = {}
        self.constant = True

    def prepare(self, own: Lanes, kept: LaneMemory, *, compute: bool, inputs: Inputs, **told: Any) -> None:  # noqa: ARG002
        """Prepare for a call; modules find out by themselves what is missing."""
        act = self.part.act
        assert isinstance(act, Projection)
        self.constant = not act.of_prompt or inputs.gives_prompt(act.upstream)
        if kept is not self.kept:
            self.whole.clear()
        self.lanes, self.kept, self.compute = own, kept, compute

    def commit(self, kept: LaneMemory) -> None:
        """Everything is stored already."""

    def stored(self, slot: int, lane: Any, stamp: Stamp) -> torch.Tensor | None:
        """The row of a lane, ``(1, ...)``, if it was made with these weights."""
        block = self.kept.block_of(lane)
        entry = None if block is None else block.entries[slot]
        row: torch.Tensor | None = None if entry is None or entry[0] != stamp else entry[1]
        return row

    def store(self, slot: int, lane: Any, stamp: Stamp, row: torch.Tensor) -> None:
        """Keep the row of a lane."""
        block = self.kept.block_of(lane)
        if block is None:
            block = Block((lane,), [None] * self.part.act.slots)
            self.kept.put([block], 0)
        block.entries[slot] = stamp, detached(row)


class _Projected(Place):
    """Gives what is stored for these lanes and these weights.

    Args:
        state: of the part.
        slot: of the module.
        modules: whose weights count, the module's first.
        holder: the module that has this one, perhaps beneath adapters, which merge into its weights unseen.
        name: by which it does.
    """

    def __init__(
        self, state: ProjectionState, slot: int, modules: list[torch.nn.Module], holder: torch.nn.Module, name: str
    ) -> None:
        self.state, self.slot, self.modules, self.holder, self.name = state, slot, modules, holder, name
        self._stamp: Stamp | None = None
        self._rows: list[int] = []

    def reuses(self) -> bool:
        """Where nothing is missing, and no weight and no adapter has changed since."""
        state = self.state
        stamp = self._stamp = stamp_of(self.modules) if state.constant else None
        if stamp is None:  # what is given changes, or weights do not tell when they are written to
            self._rows = list(range(len(state.lanes)))
            return False
        merged = getattr(self.holder._modules.get(self.name), "merged_adapters", ())
        stamp = self._stamp = (*stamp, *merged)
        known = state.whole.get(self.slot)
        if known is not None and known[0] == state.lanes and known[1] == stamp:
            return True
        firsts = {lane: row for row, lane in reversed(list(enumerate(state.lanes)))}
        self._rows = sorted(row for lane, row in firsts.items() if state.stored(self.slot, lane, stamp) is None)
        if not self._rows:
            self._assemble(stamp)
        return not self._rows

    def recall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """The stored rows."""
        return self.state.whole[self.slot][2]

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The rows that are missing, ``(missing, ...)``."""
        return (take_rows(args[0], self._rows, len(self.state.lanes)), *args[1:]), kwargs

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Store them, and return all rows, ``(rows, ...)``."""
        state, stamp = self.state, self._stamp
        if stamp is None:
            return output
        state.compute = True
        for place, row in enumerate(self._rows):
            state.store(self.slot, state.lanes[row], stamp, take_rows(output, [place], len(self._rows)))
        if len(self._rows) == len(state.lanes):
            state.whole[self.slot] = state.lanes, stamp, detached(output)
            return output
        return self._assemble(stamp)

    def _assemble(self, stamp: Stamp) -> torch.Tensor:
        """All rows of a call out of those of its lanes."""
        lanes = self.state.lanes
        rows: Any = [self.state.stored(self.slot, lane, stamp) for lane in lanes]
        one = rows[0]
        shared = len(set(lanes)) == 1 and one.shape[0] == 1  # rows of several frames have as many of it each
        whole: torch.Tensor = one.expand(len(rows), *one.shape[1:]) if shared else cat_rows(rows)
        self.state.whole[self.slot] = lanes, stamp, whole
        return whole


def stamp_of(modules: list[torch.nn.Module]) -> Stamp | None:
    """Changes when a weight is replaced, cast, moved or written to, and when an adapter or its scale changes.

    None where that cannot be told, because inference tensors do not count what is written to them.
    """
    found: list[Any] = []
    left = list(modules)
    while left:  # asked before every call of every module, where Module.parameters() would take most of the time
        module = left.pop()
        own = module.__dict__
        left += filter(None, own["_modules"].values())
        if isinstance(own.get("scaling"), dict):  # an adapter of peft
            active, merged = (tuple(getattr(module, f"{kind}_adapters", ())) for kind in ("active", "merged"))
            found.append((*own["scaling"].items(), active, module.disable_adapters, merged))
        for weight in own["_parameters"].values():
            if weight is None:
                continue
            if weight.is_inference():
                return None
            found.append((weight.data_ptr(), weight.dtype, weight._version))
    return tuple(found)
