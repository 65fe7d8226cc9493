"""Evidence that rows gather from call to call, and by which they decide: how far something has moved, or was missed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from diffaccel.runtime.lanes import Lane, Lanes


class Drift:
    """What a part knows of each row since it computed last.

    Attributes:
        latest: what was measured in a row's last call, ``(1, ...)``.
        totals: what has added up since a row computed, or was found in its last call; a number, or a tensor of one.
    """

    def __init__(self) -> None:
        self.latest: dict[Lane, torch.Tensor] = {}
        self.totals: dict[Lane, float | torch.Tensor] = {}
        self._open: dict[Lane, tuple[torch.Tensor | None, float | torch.Tensor | None]] = {}

    def copy(self) -> Drift:
        """The same for calls that shall leave no trace here; tensors are shared."""
        new = Drift()
        new.latest, new.totals, new._open = dict(self.latest), dict(self.totals), dict(self._open)
        return new

    def begin(self, lanes: Lanes) -> None:
        """A call of some rows begins; one that did not get to its end has changed nothing."""
        for lane, (latest, total) in self._open.items():
            self.drop([lane])
            if latest is not None:
                self.latest[lane] = latest
            if total is not None:
                self.totals[lane] = total
        self._open = {lane: (self.latest.get(lane), self.totals.get(lane)) for lane in lanes}

    def commit(self) -> None:
        """It has got to its end."""
        self._open = {}

    def note(self, lanes: Lanes, measured: torch.Tensor) -> None:
        """Remember what was measured, ``(rows * anything, ...)``, without waiting for the device."""
        self.latest.update(zip(lanes, measured.chunk(len(lanes)), strict=True))

    def add(self, lanes: Lanes, measured: torch.Tensor, together: bool, rescaled: Callable[[float], float]) -> None:
        """Add the relative change |m - m_before| / |m_before| of each row, rescaled; waits for the device once.

        Args:
            lanes: of the rows.
            measured: ``(rows * anything, ...)``.
            together: whether all rows count as one.
            rescaled: from a change to what is added.
        """
        before = [self.latest.get(lane) for lane in lanes]
        rows = measured.chunk(len(lanes))
        known = [b is not None and b.shape == row.shape for b, row in zip(before, rows, strict=True)]
        unknown = [float("inf")] * len(lanes)
        changes = _changes(rows, before, together) if all(known) else unknown  # type: ignore[arg-type]
        for lane, change in zip(lanes, changes, strict=True):
            self.totals[lane] = float(self.totals.get(lane, 0.0)) + rescaled(change)
        self.note(lanes, measured)

    def set(self, lanes: Lanes, values: torch.Tensor) -> None:
        """What was found for each row, ``(rows,)``; it is read in a later call."""
        self.totals.update(zip(lanes, values.unbind(), strict=True))

    def known(self, lanes: Lanes) -> list[float]:
        """The totals of some rows; waits for the device where they were found there."""
        return [float(self.totals.get(lane, 0.0)) for lane in lanes]

    def restart(self, lanes: Lanes) -> None:
        """Rows have computed."""
        for lane in lanes:
            self.totals.pop(lane, None)

    def drop(self, lanes: Sequence[Lane]) -> None:
        """Forget rows."""
        for lane in lanes:
            self.latest.pop(lane, None)
            self.totals.pop(lane, None)

    def keep(self, lanes: Sequence[Lane]) -> None:
        """Forget all rows but these."""
        self.drop([lane for lane in {*self.latest, *self.totals} if lane not in set(lanes)])


def _changes(rows: Sequence[torch.Tensor], before: Sequence[torch.Tensor], together: bool) -> list[float]:
    """The relative change of each row, or the same for all of them."""
    differences = torch.stack([magnitude(a - b) for a, b in zip(rows, before, strict=True)])
    scales = torch.stack([magnitude(b) for b in before])
    if together:
        differences, scales = differences.mean().expand(len(rows)), scales.mean().expand(len(rows))
    changes: list[float] = (differences / scales).tolist()
    return changes


def magnitude(value: torch.Tensor) -> torch.Tensor:
    """The mean of absolute values, in single precision."""
    return value.abs().mean(dtype=torch.float32)
