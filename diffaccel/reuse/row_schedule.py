"""Schedules whose rows decide for themselves in the middle of a call, by what was measured of each there."""

from typing import ClassVar

from diffaccel.reuse.measure import RunPlace
from diffaccel.reuse.schedule import CallInfo, Schedule


class RowSchedule(Schedule):
    """Each row computes where its `quantity` is too large, or after enough reused calls.

    Attributes:
        threshold: what is too large.
        max_consecutive: at most this many reused calls of a row in a row; None sets no limit.
    """

    decides_rows: ClassVar[bool] = True

    threshold: float
    max_consecutive: int | None

    @property
    def limit(self) -> float:
        """The threshold."""
        return self.threshold

    def should_compute(self, call: CallInfo) -> bool:  # noqa: ARG002
        """Never: rows decide once something was measured."""
        return False

    def row_computes(self, change: float, age: int, place: RunPlace) -> bool:
        """True where the change is too large, or not a number, or enough calls were reused."""
        enough = self.max_consecutive is not None and age >= self.max_consecutive
        return enough or not self.is_small(change, place)

    def is_small(self, change: float, place: RunPlace) -> bool:  # noqa: ARG002
        """Whether a row may reuse."""
        return change <= self.threshold
