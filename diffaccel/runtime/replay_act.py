"""Replay: on a call that reuses, modules return what they returned before, or nothing but its shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from diffaccel.reuse.branch import Branch
from diffaccel.runtime.act import Act, PartState, Place
from diffaccel.runtime.trees import copied, placeholder, same_leaves


@dataclass(frozen=True)
class Replay(Act):
    """Return stored outputs of a branch again.

    Attributes:
        branch: which modules are replayed, and which are skipped because nothing reads their outputs then.
    """

    branch: Branch

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules of the branch."""
        return self.branch.modules

    @property
    def slots(self) -> int:
        """An output, or a placeholder, for each module."""
        return len(self.modules)

    def missing(self, state: PartState) -> tuple[int, ...]:
        """Those of modules within others that were replayed when this part computed."""
        return tuple(slot for slot in range(self.slots) if not state.knows(slot))

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:  # noqa: ARG002
        """One for each module."""
        for slot, name in enumerate(self.modules):
            yield name, _Output(state, slot, keep=slot >= len(self.branch.skipped))


class _Output(Place):
    """Stores a module's output (`keep`), or only its shape."""

    def __init__(self, state: PartState, slot: int, *, keep: bool) -> None:
        self.state, self.slot, self.keep = state, slot, keep
        self.same: list[int] = []

    def reuses(self) -> bool:
        """Where the part reuses; what was never stored is computed."""
        return not self.state.compute and self.state.knows(self.slot)

    def recall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """The stored output, carried to this call."""
        output = self.state.read(self.slot, carried=self.keep)
        return copied(output, self.same) if self.state.writable and self.keep else output

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Store what a later call needs."""
        if self.state.compute:
            self.same = same_leaves(tree_leaves(output)) if self.state.writable else []
            kept = output if self.keep else placeholder(output)
            self.state.write(self.slot, kept, carried=self.keep)
        return output
