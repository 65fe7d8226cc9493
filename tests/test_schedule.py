"""Schedules decide as published, and refuse what makes no sense."""

from typing import Any

import pytest
import torch

from diffaccel.reuse.per_prompt import PerPrompt
from diffaccel.reuse.residual import relative_change
from diffaccel.reuse.schedule import (
    Always,
    BackLoaded,
    CallInfo,
    FrontLoaded,
    Quadratic,
    ScaledSteps,
    Steps,
    Threshold,
    Uniform,
)


def test_static_schedules() -> None:
    assert Always().computed(3) == [0, 1, 2]
    assert Uniform(3).computed(8) == [0, 3, 6]
    assert Steps((0, 3, 7)).computed(8) == [0, 3, 7]
    assert PerPrompt(Uniform(3), Uniform(2)).computed(8) == [0, 3, 6]


def test_quadratic_is_the_papers() -> None:
    assert Quadratic(5, center=15, power=1.4).computed(50) == [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]


@pytest.mark.parametrize("total", [1, 4, 10, 28, 100])
@pytest.mark.parametrize("interval", [1, 2, 5])
@pytest.mark.parametrize("center", [0, 15])
def test_quadratic_computes_one_in_interval(total: int, interval: int, center: int) -> None:
    steps = Quadratic(interval, center).computed(total)
    assert len(steps) == -(-total // interval)
    assert steps == sorted(set(steps))


def test_steps_end_within_the_run() -> None:
    assert Steps(0) == Steps((0,))  # type: ignore[arg-type]
    Steps((0, 2, 7)).validate(8)
    with pytest.raises(ValueError, match=r"^steps lists call 7, but the run has 7 network calls \(0\.\.6\)$"):
        Steps((0, 2, 7)).validate(7)
    with pytest.raises(ValueError, match=r"the run has 0 network calls \(0\.\.-1\)$"):
        Steps((0,)).validate(0)


def test_quadratic_needs_the_number_of_calls() -> None:
    assert Quadratic(5, total=50).should_compute(CallInfo(5))
    with pytest.raises(ValueError, match=r"Quadratic\(..., total=50\)"):
        Quadratic(5).validate(None)


def test_threshold_computes_on_change_or_age() -> None:
    schedule = Threshold(0.1, max_reuse=2)
    assert not schedule.should_compute(CallInfo(1, change=lambda: 0.1))
    assert schedule.should_compute(CallInfo(1, change=lambda: 0.11))
    assert schedule.should_compute(CallInfo(3, change=lambda: 0.0, age=2))
    assert schedule.should_compute(CallInfo(1, change=lambda: float("nan")))


def test_steps_longer_than_the_run() -> None:
    with pytest.raises(ValueError, match=r"call 9, but the run has 8 network calls \(0\.\.7\)"):
        Steps((0, 9)).computed(8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Uniform(0), "interval must be an integer >= 1; got 0"),
        (lambda: Uniform(2.5), "interval must be an integer >= 1; got 2.5"),
        (lambda: Steps(()), r"^steps must list at least one call; got \(\)$"),
        (lambda: Steps((0, -1)), "^each of steps must be an integer >= 0; got -1$"),
        (lambda: Steps((0, 2, 2)), r"must be ascending; got \(0, 2, 2\)"),
        (lambda: Steps((1, 2)), r"must start with 0.*got \(1, 2\)"),
        (lambda: Steps((0, 5, 3)), r"must be ascending; got \(0, 5, 3\)"),
        (lambda: Threshold(float("nan")), r"threshold must be a number in \[0.0, inf\); got nan"),
        (lambda: Threshold(-1), "got -1"),
        (lambda: Threshold(0.1, max_reuse=-1), "^max_reuse must be .*; got -1"),
        (lambda: Threshold(0.1, measure="l3"), "^measure must be a measure .*; got 'l3'"),  # type: ignore[arg-type]
        (lambda: Quadratic(0), "interval must be"),
        (lambda: Quadratic(2, power=0), "power must be"),
    ],
)
def test_bad_values(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize("schedule", [FrontLoaded, BackLoaded])
@pytest.mark.parametrize("total", [1, 5, 20, 50])
@pytest.mark.parametrize("interval", [1, 2, 5])
def test_loaded_schedules_compute_one_in_interval(schedule: type[FrontLoaded], total: int, interval: int) -> None:
    steps = schedule(interval).computed(total)
    assert len(steps) == -(-total // interval)
    assert steps[0] == 0


def test_loaded_schedules_favour_one_end() -> None:
    assert FrontLoaded(4, power=2).computed(40) == [0, 1, 2, 3, 6, 10, 14, 19, 25, 32]
    assert BackLoaded(4, power=2).computed(40) == [0, 8, 15, 21, 26, 30, 34, 37, 38, 39]


def test_scaled_steps_stretch_to_the_run() -> None:
    keys = ScaledSteps((0, 1, 2, 3, 5, 10, 15, 25, 35), of=50)
    assert keys.computed(50) == [0, 1, 2, 3, 5, 10, 15, 25, 35]
    assert keys.computed(20) == [0, 1, 2, 4, 6, 10, 14]
    with pytest.raises(ValueError, match="of must be an integer >= 36; got 30"):
        ScaledSteps((0, 35), of=30)


@pytest.mark.parametrize(
    "schedule", [Quadratic(3, total=50), FrontLoaded(3, total=50), ScaledSteps((0, 5), of=10, total=50)]
)
def test_a_total_that_is_not_the_runs_is_refused(schedule: Any) -> None:
    assert schedule.computed(50) == type(schedule)(**{**vars(schedule), "total": None}).computed(50)
    with pytest.raises(
        ValueError, match=rf"{type(schedule).__name__}\(total=50\) is for runs of 50 .* this run has 20"
    ):
        schedule.validate(20)
    schedule.validate(None)


def test_changes_of_half_precision_are_told_in_single_precision() -> None:
    reference = torch.ones(1000, dtype=torch.bfloat16)
    sample = reference + 0.25 * (torch.arange(1000) < 601)  # whose mean bfloat16 rounds to 0.1504
    assert relative_change(sample, reference) == pytest.approx(0.15025, rel=1e-6)
