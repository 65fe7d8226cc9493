"""What is remembered between network calls: one `CacheState` for each part of each context.

A context is one sequence of calls that may share features: the conditional calls of a run, its unconditional calls, the
slots of a stream. State is reset by building it anew, so that no field can be forgotten.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from diffaccel.reuse.branch import Part, positive_half


class CacheState:
    """Outputs remembered for one part, one entry per module of its branch, and the decision for the current call.

    Attributes:
        compute: whether the modules run in the current call.
        step: index of the current call within the run.
        age: replayed calls since the last computed one.
        writable: whether the network writes into outputs in place, so that entries must be copied.
        filled: whether the part has computed once.
        count: rows of the current call as the pipeline makes it, None where the network takes no tensor.
        selected: places of the rows at hand, None for all of them.
        range: index of the range of blocks in force, for parts that have several.
        entries: placeholders for skipped modules; features, or histories of a forecast, for replayed ones.
        reference: the network's input at the last computed call, kept only for schedules that measure its change.
        whole: entries and reference as they were before `halve`, until something is computed; None where halves were
            merged, which nothing undoes.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.compute = True
        self.step = 0
        self.age = 0
        self.writable = False
        self.filled = False
        self.count: int | None = None
        self.selected: tuple[int, ...] | None = None
        self.range = 0
        self.entries: list[Any] = [None] * len(part.branch.modules)
        self.reference: torch.Tensor | None = None
        self.whole: tuple[list[Any], torch.Tensor | None] | None = None

    def begin(self, count: int | None, selected: tuple[int, ...] | None, decided: bool, total: int | None) -> None:  # noqa: ARG002
        """Prepare for a network call.

        Args:
            count: rows of the call as the pipeline makes it.
            selected: places of the rows at hand, None for all of them.
            decided: whether the caller, not the schedule, says what computes.
            total: network calls of the run, None if unknown.
        """
        self.count, self.selected = count, selected

    def clear(self) -> None:
        """Forget the entries."""
        self.entries = [None] * len(self.entries)

    def halve(self) -> None:
        """Make everything stored fit the positive half of the rows."""
        self.whole = (self.entries, self.reference) if self.part.halve is positive_half else None
        self.entries = map_tensors(self.part.halve, self.entries)
        self.reference = None if self.reference is None else positive_half(self.reference)

    def join(self) -> bool:
        """Undo `halve`, unless something was computed for the positive half alone since; whether that was possible."""
        if self.whole is None:
            return False
        (self.entries, self.reference), self.whole = self.whole, None
        return True

    def nbytes(self) -> int:
        """Bytes of the storage that the entries hold."""
        storages: dict[int, int] = {}
        for leaf in tree_leaves((self.entries, self.whole)):
            if isinstance(leaf, torch.Tensor):
                storages[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage().nbytes()
        return sum(storages.values())


class ActivePart:
    """A part at work: its hooks read `state`, which the denoiser's hook points at the context of the current call."""

    def __init__(self, part: Part, state: CacheState | None = None) -> None:
        self.part = part
        self.state = state or CacheState(part)


@dataclass
class Context:
    """One sequence of calls that may share features: its count of calls, and one `CacheState` per part.

    Attributes:
        key: shape, dtype and device of the network's input; features of another key are of no use.
        states: one per part.
        step: network calls so far.
        rows: rows of the last call, after wrappers.
        constants: inputs of the last call, after wrappers, that usually stay the same, with their versions.
        memory: what each wrapper remembers.
    """

    key: tuple[Any, ...]
    states: list[CacheState]
    step: int = 0
    rows: int | None = None
    constants: list[tuple[Any, int]] = field(default_factory=list)
    memory: dict[Any, Any] = field(default_factory=dict)


def placeholder(output: Any) -> Any:
    """`output` with every tensor replaced by one zero, expanded to the tensor's shape: it takes no storage."""
    return map_tensors(lambda x: x.new_zeros(()).expand(x.shape), output)


def copied(output: Any) -> Any:
    """`output` with every tensor cloned."""
    return map_tensors(torch.clone, output)


def relative_change(sample: torch.Tensor | None, reference: torch.Tensor | None) -> float:
    """mean|x - x_ref| / mean|x_ref|, infinite where they cannot be compared; waits for the device."""
    if sample is None or reference is None or sample.shape != reference.shape:
        return float("inf")
    return float((sample - reference).abs().mean() / reference.abs().mean())


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """`tree` with `function` applied to its tensors."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)
