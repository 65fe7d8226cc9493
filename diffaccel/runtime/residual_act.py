"""The hooks of a part that stores residuals: on front blocks those that measure, on others those that skip."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from diffaccel._diffusers import Hook
from diffaccel.networks.block_io import Streams
from diffaccel.reuse.residual import Residual
from diffaccel.runtime.lanes import RowState
from diffaccel.runtime.state import ActivePart, copied


class FrontHook(Hook):
    """Sits on a front block: the last one tells the state what the front blocks added to the hidden states.

    Args:
        active: the part that the block belongs to.
        streams: what the block takes and returns.
        first, last: whether it is the first, or the last, of the front blocks.
    """

    def __init__(self, active: ActivePart, streams: Streams, first: bool, last: bool) -> None:
        super().__init__()
        self.active = active
        self.streams = streams
        self.first = first
        self.last = last

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """The block's output, always computed."""
        state = _row_state(self.active)
        if self.first:
            state.arriving = self.streams.inputs(args, kwargs)[self.streams.main]
        output = self.original(*args, **kwargs)
        if self.last:
            place = self.streams.names(output).index(self.streams.main)
            hidden_states = output if isinstance(output, torch.Tensor) else output[place]
            state.measure(hidden_states - state.arriving)
            state.arriving = None
        return output


class Role(NamedTuple):
    """A block's place in a range: its segment, and whether it is the first or the last one there."""

    segment: int
    first: bool
    last: bool


class ResidualHook(Hook):
    """Sits on a block that may be skipped: runs it, or passes its input on, the last one with the residual added.

    Args:
        active: the part that the block belongs to.
        streams: what the block takes and returns.
        roles: for each range that the block is in, its place there.
    """

    def __init__(self, active: ActivePart, streams: Streams, roles: dict[int, Role]) -> None:
        super().__init__()
        self.active = active
        self.streams = streams
        self.roles = roles
        self._returned: tuple[str | None, ...] = ()
        self._alone = False

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """The block's output, computed or passed on."""
        state = _row_state(self.active)
        role = self.roles.get(state.range)
        if role is None:
            return self.original(*args, **kwargs)
        inputs = self.streams.inputs(args, kwargs)
        if role.first:
            state.entering = copied(inputs) if state.writable else inputs
        if state.compute:
            output = self.original(*args, **kwargs)
            self._record(state, role, output)
            return output
        if not role.last:
            return self._output([None if name is None else inputs[name] for name in self._returned])
        added = iter(state.read(role.segment))
        return self._output([None if name is None else state.entering[name] + next(added) for name in self._returned])

    def _record(self, state: RowState, role: Role, output: Any) -> None:
        """Learn how the block returns its streams, and store the residual if it is the last."""
        self._alone = isinstance(output, torch.Tensor)
        values = [output] if self._alone else list(output)
        names = self.streams.names(output)
        self._returned = tuple(name if value is not None else None for name, value in zip(names, values, strict=True))
        if role.last:
            pairs = zip(self._returned, values, strict=True)
            state.write(role.segment, [value - state.entering[name] for name, value in pairs if name is not None])
            state.entering = {}

    def _output(self, values: list[Any]) -> Any:
        """Values in the shape that the block returns."""
        return values[0] if self._alone else tuple(values)


def residual_hooks(active: ActivePart, model: torch.nn.Module) -> Iterator[tuple[str, Hook]]:
    """The hooks of a part, each with the name of its module."""
    branch = active.part.branch
    assert isinstance(branch, Residual)
    for name in branch.front:
        streams = Streams(model.get_submodule(name))
        yield name, FrontHook(active, streams, name == branch.front[0], name == branch.front[-1])
    roles: dict[str, dict[int, Role]] = {name: {} for name in branch.replayed}
    for index, _ in enumerate(branch.ranges):
        for number, segment in enumerate(branch.segments(index)):
            for name in segment:
                roles[name][index] = Role(number, name == segment[0], name == segment[-1])
    for name, places in roles.items():
        yield name, ResidualHook(active, Streams(model.get_submodule(name)), places)


def _row_state(active: ActivePart) -> RowState:
    """The state of the current call."""
    assert isinstance(active.state, RowState)
    return active.state
