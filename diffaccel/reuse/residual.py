"""What a range of transformer blocks adds to the hidden states, kept as one residual and added again later.

On a call that reuses, the blocks of the range pass their input on, and the last one adds the stored residual to what
entered the range: h_out = h_in + (h_out - h_in of the last computed call). The residual is kept for each row on its
own, because rows are independent: those whose front blocks changed too much compute while the others reuse.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from diffaccel.reuse.branch import Branch
from diffaccel.reuse.schedule import CallInfo, Schedule


@dataclass(frozen=True)
class Residual(Branch):
    """Ranges of blocks that are skipped whole.

    Attributes:
        ranges: block names, in the order in which they run. The second range is in force from the gate on.
        gate: first call in which the second range is in force; None is the middle of the run.
        front: blocks before the range, whose own residual tells how much has changed.
        rows_apart: whether rows of the input stay apart in the blocks, so that each can be decided on its own.
        each: whether a residual is stored for every block, as outputs of blocks are also read further on.
    """

    ranges: tuple[tuple[str, ...], ...] = ()
    gate: int | None = None
    front: tuple[str, ...] = ()
    rows_apart: bool = True
    each: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that carry a hook."""
        return self.front + self.replayed

    def segments(self, index: int) -> list[tuple[str, ...]]:
        """A range cut where one list of blocks ends and another begins, as networks reshape hidden states there."""
        cut: list[list[str]] = []
        for name in self.ranges[index]:
            if not cut or self.each or cut[-1][-1].rpartition(".")[0] != name.rpartition(".")[0]:
                cut.append([])
            cut[-1].append(name)
        return [tuple(names) for names in cut]

    def only(self, index: int) -> "Residual":
        """The same with one of its ranges, always in force; other blocks keep a hook that lets them run."""
        return replace(self, ranges=(self.ranges[index],), gate=None)

    def in_force(self, step: int, total: int | None) -> int:
        """Index of the range in force at a call of a run."""
        if len(self.ranges) == 1:
            return 0
        return int(step >= gate_of(self.gate, total))


def residual(
    ranges: Sequence[tuple[str, ...]],
    *,
    rows_apart: bool,
    each: bool,
    gate: int | None = None,
    front: tuple[str, ...] = (),
) -> Residual:
    """The branch that skips some ranges of blocks."""
    blocks = tuple(dict.fromkeys(name for names in ranges for name in names))
    return Residual(blocks, (), tuple(ranges), gate, front, rows_apart, each)


def gate_of(gate: int | None, total: int | None) -> int:
    """The call from which the second of two ranges is in force.

    Raises:
        ValueError: if it is the middle of a run whose number of calls is not known, or lies beyond the run's end.
    """
    if gate is None and total is None:
        raise ValueError(
            "gate=None is the middle of the run, whose number of network calls a bare network does not tell: give "
            "gate=10, or pass the pipeline to accelerate()"
        )
    if gate is not None and total is not None and gate > total:
        raise ValueError(f"gate must be in 1..{total}, the network calls of the run; got {gate}")
    return gate if gate is not None else max(1, (total or 0) // 2)


def relative_changes(value: torch.Tensor, reference: torch.Tensor, rows: int) -> list[float]:
    """mean|x - x_ref| / mean|x_ref| of each row; waits for the device once. First dimension (rows * anything)."""
    difference = (value - reference).abs().reshape(rows, -1).mean(dim=1, dtype=torch.float32)
    scale = reference.abs().reshape(rows, -1).mean(dim=1, dtype=torch.float32)
    changes: list[float] = (difference / scale).tolist()
    return changes


class RowSchedule(Schedule):
    """Decides row by row in the middle of a call, once its front blocks have run."""

    decides_rows: ClassVar[bool] = True

    @abstractmethod
    def should_compute(self, call: CallInfo) -> bool:
        """Whether all rows compute, whatever their front blocks say."""

    @abstractmethod
    def row_computes(self, change: float, age: int) -> bool:
        """Whether a row computes, given the relative change of its front residual and its reused calls in a row."""
