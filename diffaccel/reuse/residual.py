"""What ranges of transformer blocks add to the hidden states, kept as residuals and added again later.

On a call that reuses, the blocks of the range pass their input on, and the last one adds the stored residual to what
entered the range: h_out = h_in + (h_out - h_in of the last computed call).
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ranges:
    """Ranges of blocks that are skipped whole.

    Attributes:
        ranges: block names, in the order in which they run. The second range is in force from the gate on.
        gate: first call in which the second range is in force; None is the middle of the run.
        each: whether a residual is stored for every block, as outputs of blocks are also read further on.
        others: further blocks that keep a hook and always run.
    """

    ranges: tuple[tuple[str, ...], ...]
    gate: int | None = None
    each: bool = False
    others: tuple[str, ...] = ()

    @property
    def blocks(self) -> tuple[str, ...]:
        """All blocks, each once."""
        return tuple(dict.fromkeys([*(name for names in self.ranges for name in names), *self.others]))

    def segments(self, index: int) -> list[tuple[str, ...]]:
        """A range cut where one list of blocks ends and another begins, as networks reshape hidden states there."""
        cut: list[list[str]] = []
        for name in self.ranges[index]:
            if not cut or self.each or cut[-1][-1].rpartition(".")[0] != name.rpartition(".")[0]:
                cut.append([])
            cut[-1].append(name)
        return [tuple(names) for names in cut]

    def only(self, index: int) -> "Ranges":
        """The same with one of its ranges, always in force."""
        return Ranges((self.ranges[index],), None, self.each, self.blocks)

    def in_force(self, step: int, total: int | None) -> int:
        """Index of the range in force at a call of a run."""
        return 0 if len(self.ranges) == 1 else int(step >= gate_of(self.gate, total))


def gate_of(gate: int | None, total: int | None) -> int:
    """The call from which the second of two ranges is in force.

    Raises:
        ValueError: if it is the middle of a run whose number of calls is not known, or lies beyond the run's end.
    """
    if gate is None and total is None:
        raise ValueError(
            "gate=None is the middle of the run, whose number of network calls is not known here: give gate=10, or "
            "pass the pipeline to accelerate()"
        )
    if gate is not None and total is not None and gate > total:
        raise ValueError(f"gate must be in 1..{total}, the network calls of the run; got {gate}")
    return gate if gate is not None else max(1, (total or 0) // 2)


def relative_changes(value: torch.Tensor, reference: torch.Tensor, rows: int) -> list[float]:
    """mean|x - x_ref| / mean|x_ref| of each row; waits for the device once. First dimension ``(rows * anything)``."""
    difference = (value.detach() - reference).abs().reshape(rows, -1).mean(dim=1, dtype=torch.float32)
    scale = reference.abs().reshape(rows, -1).mean(dim=1, dtype=torch.float32)
    changes: list[float] = (difference / scale).tolist()
    return changes


def relative_change(sample: torch.Tensor | None, reference: torch.Tensor | None) -> float:
    """mean|x - x_ref| / mean|x_ref|, infinite where they cannot be compared; waits for the device."""
    if sample is None or reference is None or sample.shape != reference.shape:
        return float("inf")
    return relative_changes(sample, reference, 1)[0]
