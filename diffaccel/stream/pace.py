"""Holding a deadline: cost goes down when frames run late, up again when there is time, and never to and fro.

A stream stands on a rung of a ladder of ways to denoise. The mean time of the last frames is compared with the
deadline, with a margin on either side; a single frame that was held up counts for little. What another rung would take
is predicted: the network's share of a frame, learnt from the first ones, times the rung's share of the network's time,
corrected at every change by what it really did. A raise that had to be taken back doubles the patience before the next
one (exponential backoff), so that changes die out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from diffaccel.stream.ladder import Rung

LATE, AIM, EARLY = 0.95, 0.85, 0.8
"""Of the deadline: a mean above the first lowers cost, to a prediction below the second; one below the third raises."""
WINDOW = 12
"""Frames of a mean: a multiple of the intervals, so that ticks that compute count as often as they come."""
CALM, MOST_CALM = 3, 192
"""Windows in a row with time to spare before cost is raised, at first and at most."""
STALL = 2.0
"""One frame of a window counts no more than so many times the next slowest: others on the machine held it up, once."""
REGRET = 20 * WINDOW
"""A raise that is taken back within so many frames was too early."""


@dataclass(frozen=True)
class PaceReport:
    """What was done to hold a deadline.

    Attributes:
        deadline_ms: milliseconds that a frame may take.
        mean_ms: that the last ones took.
        setting: what the stream costs less by now; "as set" where by nothing.
        rung, rungs: where that is among all ways to cost less, from 0.
        late, frames: frames that took longer than the deadline, and all.
        lowered, raised: how often cost was changed.
    """

    deadline_ms: float
    mean_ms: float
    setting: str
    rung: int
    rungs: int
    late: int
    frames: int
    lowered: int
    raised: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        changes = f"lowered {self.lowered}, raised {self.raised} times"
        return f"{self.setting} for {self.deadline_ms:.1f} ms a frame ({self.late} of {self.frames} late; {changes})"


def _without_stall(times: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Times of frames, and the network's part of them, where a single one that took far too long is cut short."""
    most = STALL * sorted(seconds for seconds, _ in times)[-2:][0]
    return [(seconds, network) if seconds <= most else (most, network * most / seconds) for seconds, network in times]


class Pace:
    """Chooses a rung, frame by frame.

    Args:
        rungs: the stream's own settings first.
        deadline: seconds that a frame may take.
    """

    def __init__(self, rungs: Sequence[Rung], deadline: float) -> None:
        self._rungs, self._deadline = tuple(rungs), deadline
        self._shares = [rung.share for rung in rungs]
        self._network = 0.0  # its share of the time on the rung at hand
        self._at = 0
        self._times: list[tuple[float, float]] = []
        self._settling = rungs[0].settle
        self._spent = 0.0
        self._calm, self._patience, self._raised_at = 0, CALM, -REGRET
        self._before: tuple[int, float] | None = None  # the rung before the last change, and the network's time there
        self._mean = 0.0
        self._late = self._frames = self._lowered = self._raised = 0

    @property
    def rung(self) -> Rung:
        """Where the stream stands."""
        return self._rungs[self._at]

    def turn(self, rungs: Sequence[Rung], deadline: float) -> Pace:
        """The pace for other settings of the stream, as far down as before."""
        other = Pace(rungs, deadline)
        other._at = min(self._at, len(rungs) - 1)
        other._late, other._frames, other._lowered = self._late, self._frames, self._lowered
        other._raised = self._raised
        return other

    def count_anew(self) -> None:
        """Account for the frames from now on."""
        self._late = self._frames = self._lowered = self._raised = 0
        self._raised_at = -REGRET

    def note(self, seconds: float, network: float) -> bool:
        """Note the time of a frame, and the network's part of it; whether the stream has to stand elsewhere now."""
        self._frames += 1
        self._late += seconds > self._deadline
        self._spent += seconds
        if self._settling and self._spent < WINDOW * self._deadline:
            self._settling -= 1
            return False
        if self._settling:
            self._settling, self._spent = 0, seconds
        self._times.append((seconds, network))
        times = _without_stall(self._times)
        hopeless = sum(time for time, _ in times) > LATE * WINDOW * self._deadline
        if len(times) < 2 or (len(times) < WINDOW and not hopeless):
            return False
        mean, inside = (fmean(column) for column in zip(*times, strict=True))
        self._times.clear()
        self._learn(mean, inside)
        before = self._at
        self._choose(mean)
        if self._at == before:
            return False
        self._before, self._settling, self._spent = (before, inside), self.rung.settle, 0.0
        return True

    def _learn(self, mean: float, network: float) -> None:
        """Take the network's part of a frame, and correct the share of a rung that was just reached."""
        self._mean, self._network = mean, min(1.0, network / mean)
        if self._before is None:
            return
        (rung, before), self._before = self._before, None
        if before > 0:
            measured = self._shares[rung] * network / before
            self._shares[self._at] = min(1.0, max(0.01, (self._shares[self._at] + measured) / 2))

    def predicted(self, rung: int) -> float:
        """Seconds of a frame on another rung."""
        ratio = self._shares[rung] / self._shares[self._at]
        return self._mean * (1 - self._network + self._network * ratio)

    def _choose(self, mean: float) -> None:
        if mean > LATE * self._deadline:
            self._lower()
            return
        better = [k for k in range(self._at) if self.predicted(k) <= EARLY * self._deadline]
        self._calm = self._calm + 1 if better else 0
        if self._calm >= self._patience:
            self._at, self._calm, self._raised_at = max(better), 0, self._frames
            self._raised += 1

    def _lower(self) -> None:
        lower = range(self._at + 1, len(self._rungs))
        self._calm = 0
        if not lower:
            return
        regretted = self._frames - self._raised_at < REGRET
        self._patience = min(2 * self._patience, MOST_CALM) if regretted else max(CALM, self._patience // 2)
        fits = (k for k in lower if self.predicted(k) <= AIM * self._deadline)
        self._at = next(fits, lower[-1])
        self._lowered += 1

    def report(self) -> PaceReport:
        """What was done."""
        return PaceReport(
            deadline_ms=1000 * self._deadline,
            mean_ms=1000 * self._mean,
            setting=self.rung.text,
            rung=self._at,
            rungs=len(self._rungs),
            late=self._late,
            frames=self._frames,
            lowered=self._lowered,
            raised=self._raised,
        )
