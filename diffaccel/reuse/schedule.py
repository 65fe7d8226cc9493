"""When to compute: one decision per network call of a run.

Static schedules know their decisions from host integers alone, so they never wait for the device. DeepCache
(arXiv 2312.00858) uses `Uniform` and, as its non-uniform 1:N strategy, `Quadratic`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from diffaccel.config import Config, kind
from diffaccel.config.checks import check, listed, number, whole
from diffaccel.config.words import NOT_TOLD
from diffaccel.reuse.measure import Levels, Measure, RunPlace
from diffaccel.reuse.spacing import front_loaded_steps, quadratic_steps


def _unmeasured() -> float:
    raise RuntimeError("this schedule needs the change of the network's input, which was not given")


@dataclass(frozen=True)
class CallInfo:
    """One network call of a run.

    Attributes:
        index: position in the run, from 0; a second-order sampler makes several calls per sampling step.
        total: network calls in the whole run, or None where that is unknown.
        change: measures mean|x - x_ref| / mean|x_ref| of the network's input x, where x_ref is the input of the last
            computed call. Calling it waits for the device.
        age: replayed calls since the last computed one.
    """

    index: int
    total: int | None = None
    change: Callable[[], float] = _unmeasured
    age: int = 0


class Schedule(Config, ABC):
    """Decides call by call whether to compute. Call 0 of a run always computes, whatever a schedule says.

    Attributes:
        measures: whether it reads `CallInfo.change`, so that the input of each computed call is kept.
        decides_rows: whether a call that it does not compute is decided row by row, once the front blocks have run.
        counts_run: whether it places its computed calls within a run of known length, which an endless stream is not.
        quantity: what rows decide by, in words.
        reads_prompt: whether it is another one for rows that see the negative prompt.
    """

    measures: ClassVar[bool] = False
    decides_rows: ClassVar[bool] = False
    counts_run: ClassVar[bool] = False
    quantity: ClassVar[str] = "relative change of the front residual"
    reads_prompt: ClassVar[bool] = False

    @abstractmethod
    def should_compute(self, call: CallInfo) -> bool:
        """Whether this call computes; otherwise it reuses the stored features."""

    def was_due(self, call: CallInfo) -> bool:
        """Whether a group that was not called then has missed something, and computes at its next call instead."""
        return self.should_compute(call)

    def for_prompt(self, *, negative: bool) -> Schedule:  # noqa: ARG002
        """The schedule in force for rows that see the negative prompt, or for those that do not."""
        return self

    def row_computes(self, change: float, age: int, place: RunPlace) -> bool:  # noqa: ARG002
        """Whether a row computes, given its `quantity`, its reused calls in a row, and its place in the run."""
        return True

    def rescaled(self, change: float) -> float:
        """What a change from one call to the next adds, where changes add up."""
        return change

    def seen(self, sample: torch.Tensor, levels: Levels) -> torch.Tensor:  # noqa: ARG002
        """What of the network's input is compared."""
        return sample

    @property
    def limit(self) -> float | None:
        """The change above which it computes, where it goes by one; for reports."""
        return None

    def validate(self, total: int | None) -> None:
        """Raise ValueError if this schedule does not fit a run of `total` network calls (None: unknown)."""

    def computed(self, total: int) -> list[int]:
        """Indices of the computed calls in a run of `total` calls, for schedules that depend on nothing else."""
        self.validate(total)
        return [i for i in range(total) if i == 0 or self.should_compute(CallInfo(i, total))]


def length_of(given: int | None, told: int | None, name: str) -> int | None:
    """Network calls of a run, given by a setting of `name` or told by the pipeline; None where neither does.

    Raises:
        ValueError: where the two differ.
    """
    fits = given is None or told in (None, given)
    check(fits, f"{name}(total={given}) is for runs of {given} network calls, and this run has {told}: leave total out")
    return told if given is None else given


@dataclass(frozen=True)
class Always(Schedule):
    """Compute every call."""

    def should_compute(self, call: CallInfo) -> bool:  # noqa: ARG002
        """Always true."""
        return True


@dataclass(frozen=True)
class Once(Schedule):
    """Compute only what is not stored yet. Lossless for what depends on nothing but what its memory is kept for."""

    def should_compute(self, call: CallInfo) -> bool:  # noqa: ARG002
        """Never: what is missing computes anyway."""
        return False


@dataclass(frozen=True)
class Uniform(Schedule):
    """Compute every `interval`-th call, as DeepCache's uniform 1:N strategy.

    Args:
        interval: calls from one that computes to the next, >= 1; 1 reuses nothing.
    """

    interval: int

    def __post_init__(self) -> None:
        whole("interval", self.interval, 1)

    def should_compute(self, call: CallInfo) -> bool:
        """True for calls 0, interval, 2 * interval, ..."""
        return call.index % self.interval == 0


@dataclass(frozen=True)
class Steps(Schedule):
    """Compute exactly the listed calls.

    Args:
        steps: calls that compute, ascending, the first of them 0.
    """

    counts_run: ClassVar[bool] = True

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        steps = listed(self.steps)
        object.__setattr__(self, "steps", steps)
        check(len(steps) > 0, "steps must list at least one call; got ()")
        for step in steps:
            whole("each of steps", step, 0)
        check(steps[0] == 0, f"steps must start with 0, as there is nothing to reuse before it; got {steps}")
        check(all(a < b for a, b in pairwise(steps)), f"steps must be ascending; got {steps}")

    def should_compute(self, call: CallInfo) -> bool:
        """True for the listed calls."""
        return call.index in self.steps

    def validate(self, total: int | None) -> None:
        """Raise ValueError if the list goes beyond the run."""
        fits = total is None or self.steps[-1] < total
        check(fits, f"steps lists call {self.steps[-1]}, but the run has {total} network calls (0..{(total or 0) - 1})")


class RunSchedule(Schedule):
    """Lists the computed calls of a run, whose length it has as ``total`` or hears from the pipeline.

    Attributes:
        asker: whom to name in messages, if not its own class.
    """

    counts_run: ClassVar[bool] = True
    asker: ClassVar[str] = ""

    total: int | None

    @abstractmethod
    def steps_of(self, total: int) -> Sequence[int]:
        """The computed calls of a run of ``total``."""

    def should_compute(self, call: CallInfo) -> bool:
        """True for the calls that are listed."""
        return call.index in self._steps(call.total)

    def validate(self, total: int | None) -> None:
        """Raise ValueError if the number of calls is unknown, or has no such list."""
        self._steps(total)

    def _steps(self, total: int | None) -> Sequence[int]:
        name = self.asker or type(self).__name__
        known = length_of(self.total, total, name)
        if known is None:
            raise ValueError(
                f"{name} needs the number of network calls of a run, {NOT_TOLD}: give {name}(..., total=50), or pass "
                "the pipeline to accelerate()"
            )
        return self.steps_of(known)


@dataclass(frozen=True)
class ScaledSteps(RunSchedule):
    """Compute the listed calls of a run of `of` calls, stretched to the run at hand.

    Args:
        steps: calls that compute, ascending, the first of them 0.
        of: number of calls that the list is made for.
        total: network calls of a run; None takes it from the pipeline.
    """

    steps: tuple[int, ...]
    of: int
    total: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", Steps(self.steps).steps)
        whole("of", self.of, self.steps[-1] + 1)
        whole("total", self.total, 1, optional=True)

    def steps_of(self, total: int) -> Sequence[int]:
        """The stretched list."""
        return [step * total // self.of for step in self.steps]


@dataclass(frozen=True)
class FrontLoaded(RunSchedule):
    """Compute often at the start of a run and ever more rarely later: call T (k / n) ** power for k = 0 .. n - 1.

    Args:
        interval: one call in `interval` computes, on average, n = ceil(T / interval); >= 1.
        power: how much the start is favoured; 1 is uniform.
        total: network calls of a run; None takes it from the pipeline.
    """

    interval: int
    power: float = 1.5
    total: int | None = None

    def __post_init__(self) -> None:
        whole("interval", self.interval, 1)
        number("power", self.power, 1.0, 10.0)
        whole("total", self.total, 1, optional=True)

    def steps_of(self, total: int) -> Sequence[int]:
        """See `front_loaded_steps`."""
        return front_loaded_steps(total, self.interval, self.power)


@dataclass(frozen=True)
class BackLoaded(FrontLoaded):
    """Compute rarely at the start of a run and ever more often later: `FrontLoaded` with time reversed."""

    def steps_of(self, total: int) -> Sequence[int]:
        """Where the reversed gaps of `front_loaded_steps` lead."""
        return [0, *(total - step for step in super().steps_of(total))]


@dataclass(frozen=True)
class Quadratic(RunSchedule):
    """DeepCache's non-uniform 1:N strategy: computed calls lie close to `center` and thin out away from it.

    With n = ceil(T / interval) computed calls of T, spaced evenly on the scale s(v) = v ** (1 / power) around `center`
    (arXiv 2312.00858, appendix; the paper uses center 15, power 1.4 for T = 50, interval 5).

    Args:
        interval: one call in `interval` computes, on average; >= 1.
        center: the call around which they are dense.
        power: > 1 concentrates them around the center.
        total: network calls of a run; None takes it from the pipeline.
    """

    interval: int
    center: int = 15
    power: float = 1.4
    total: int | None = None

    def __post_init__(self) -> None:
        whole("interval", self.interval, 1)
        whole("center", self.center, 0)
        number("power", self.power, 0.1, 10.0)
        whole("total", self.total, 1, optional=True)

    def steps_of(self, total: int) -> Sequence[int]:
        """See `quadratic_steps`."""
        return quadratic_steps(total, self.interval, self.center, self.power)


@dataclass(frozen=True)
class Threshold(Schedule):
    """Compute when the network's input has changed by more than `threshold` since the last computed call.

    The change is relative: mean|x - x_ref| / mean|x_ref|. Reading it waits for the device once per call.

    Args:
        threshold: relative change above which a call computes; 0 computes whenever anything changed.
        max_reuse: at most this many reused calls in a row; None sets no limit.
        measure: what of the input is compared, such as `SeaFilter()`; None is all of it.
    """

    measures: ClassVar[bool] = True

    threshold: float
    max_reuse: int | None = None
    measure: Measure | None = None

    def __post_init__(self) -> None:
        number("threshold", self.threshold, 0.0)
        kind("measure", self.measure, Measure)
        whole("max_reuse", self.max_reuse, 0, optional=True)

    @property
    def limit(self) -> float:
        """The threshold."""
        return self.threshold

    def should_compute(self, call: CallInfo) -> bool:
        """True when the input has moved far enough, or is not finite, or enough calls were reused in a row."""
        if self.max_reuse is not None and call.age >= self.max_reuse:
            return True
        return not call.change() <= self.threshold

    def seen(self, sample: torch.Tensor, levels: Levels) -> torch.Tensor:
        """The input, as `measure` looks at it."""
        return sample if self.measure is None else self.measure.of(sample, *levels())
