"""Rows of several callers in one run of a network, where every caller decides about its own rows.

At a module that some callers have hooked, each is asked as if it were alone: one that reuses gives its rows from
memory, the rows of all others run through the module together, and each sees its own part of what comes out. So a row
that computes and a row that reuses share all that they have in common, and what is stored is the caller's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from diffaccel._diffusers import Hook
from diffaccel.networks.block_io import inputs_of
from diffaccel.networks.inputs import WITHOUT_ROWS
from diffaccel.runtime.attachment import ActHook
from diffaccel.runtime.lanes import cat_rows, pieces_of, take_rows
from diffaccel.runtime.trees import copied, tensors_in


@dataclass(frozen=True, eq=False)
class Member:
    """One caller's share of a joint call.

    Attributes:
        hooks: what happens at modules for its rows.
        rows: how many rows are its own.
    """

    hooks: Mapping[torch.nn.Module, ActHook]
    rows: int


class JointCall:
    """A call whose rows, ``(rows of the first member, of the second, ...)``, belong to several members.

    Attributes:
        present: members whose rows are on their way; those that reuse a module are not seen by modules within it.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.present = tuple(members)

    def hooks(self) -> dict[torch.nn.Module, Hook]:
        """What stands in for the forward of each module that a member has hooked."""
        hooked = {module for member in self.present for module in member.hooks}
        return {module: _JointHook(self) for module in hooked}

    @contextmanager
    def only(self, members: Sequence[Member]) -> Iterator[None]:
        """Within, the rows of these members are on their way, and no others."""
        before, self.present = self.present, tuple(members)
        try:
            yield
        finally:
            self.present = before


@dataclass(eq=False)
class _Turn:
    """A member's pass through one module.

    Attributes:
        args, kwargs: its rows of the module's inputs.
        output: what its rows are behind the module.
        entered: whether the hook changed the inputs.
    """

    member: Member
    hook: ActHook | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    entered: bool = False

    def ask(self, forward: Callable[..., Any]) -> None:
        """Let the hook decide about these rows, which `forward` runs through the module."""
        for place in () if self.hook is None else self.hook.asked:
            place.ask(self.args, self.kwargs, forward)

    def recalls(self) -> bool:
        """Ask whether the module need not run, and take what is stored then."""
        for place in () if self.hook is None else self.hook.places:
            if place.reuses():
                self.output = place.recall(self.args, self.kwargs)
                return True
        return False

    def enter(self) -> None:
        """Let the hook see the inputs, and change them."""
        if self.hook is not None:
            args, kwargs = self.hook.enter(self.args, self.kwargs)
            self.entered = args is not self.args or kwargs is not self.kwargs
            self.args, self.kwargs = args, kwargs

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What runs for these rows alone in the place of the module's forward."""
        return forward if self.hook is None else self.hook.around(forward)

    def leave(self, output: Any, *, alone: bool) -> bool:
        """Let the hook see the output, and say whether it changed it. What is stored must not keep others' rows."""
        self.output = output
        if self.hook is None:
            return False
        own = output if alone else copied(output)
        left = self.hook.leave(self.args, self.kwargs, own)
        if left is not own:
            self.output = left
        return left is not own

    @property
    def apart(self) -> bool:
        """Whether its rows cannot go through the module with those of others."""
        return self.hook is not None and any(place.apart for place in self.hook.places)

    @property
    def size(self) -> int:
        """Length of the first tensor of the inputs."""
        return tensors_in((self.args, self.kwargs))[0].shape[0]


class _JointHook(Hook):
    """Sits on one module during a joint call."""

    def __init__(self, call: JointCall) -> None:
        super().__init__()
        self.call = call

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The module's output for all rows that are on their way."""
        present = self.call.present
        if not any(module in member.hooks for member in present):
            return self.original(*args, **kwargs)
        turns = _turns(module, present, args, kwargs)
        for turn in turns:
            with self.call.only([turn.member]):
                turn.ask(self.original)
        computing = [turn for turn in turns if not turn.recalls()]
        for turn in computing:
            turn.enter()
        apart = [turn for turn in computing if turn.apart]
        computing = [turn for turn in computing if not turn.apart]
        for turn in apart:
            with self.call.only([turn.member]):
                turn.leave(turn.around(self.original)(*turn.args, **turn.kwargs), alone=True)
        if not computing:
            return cat_rows([turn.output for turn in turns])
        if len(computing) < len(turns) or any(turn.entered for turn in turns):
            args, kwargs = _joined([(turn.args, turn.kwargs) for turn in computing])
        with self.call.only([turn.member for turn in computing]):
            output = self.original(*args, **kwargs)
        pieces = pieces_of(output, [turn.size for turn in computing])
        changed = [turn.leave(own, alone=len(computing) == 1) for turn, own in zip(computing, pieces, strict=True)]
        if len(computing) == len(turns) and not any(changed):
            return output
        return cat_rows([turn.output for turn in turns])


def _turns(
    module: torch.nn.Module, members: Sequence[Member], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[_Turn]:
    """The pass of each member, with its rows of the inputs."""
    names, total, start, turns = inputs_of(type(module).forward), sum(member.rows for member in members), 0, []
    shared = [name in WITHOUT_ROWS for name in (*names, *[""] * len(args))]
    for member in members:
        rows = range(start, start + member.rows)
        own = tuple(x if alike else take_rows(x, rows, total) for x, alike in zip(args, shared, strict=False))
        named = {name: x if name in WITHOUT_ROWS else take_rows(x, rows, total) for name, x in kwargs.items()}
        turns.append(_Turn(member, member.hooks.get(module), own, named))
        start += member.rows
    return turns


def _joined(inputs: Sequence[Any]) -> Any:
    """The inputs of several members one after the other; what they share stays as it is."""
    _, form = tree_flatten(inputs[0])
    columns = zip(*(tree_leaves(each) for each in inputs), strict=True)
    return tree_unflatten([_column(column) for column in columns], form)


def _column(values: tuple[Any, ...]) -> Any:
    first = values[0]
    alike = not isinstance(first, torch.Tensor) or all(value is first for value in values)
    return first if alike else torch.cat(values)
