"""A watched scheduler tells when timesteps are set and steps end; its class and other instances are as they were."""

import threading
from typing import Any

import pytest

from diffaccel.runtime.scheduler_watch import Progress, unwatch, watch


class Sampler:
    def __init__(self) -> None:
        self.stepped = 0

    def set_timesteps(self, count: int) -> int:
        return count

    def step(self, output: Any, timestep: Any = None, *, sample: Any = None) -> str:
        self.stepped += 1
        return "done"


class SubSampler(Sampler):
    def step(self, output: Any, timestep: Any = None, *, sample: Any = None) -> str:
        return super().step(output, timestep, sample=sample) + " twice"


@pytest.mark.parametrize("cls", [Sampler, SubSampler])
def test_it_counts_and_leaves_no_trace(cls: type[Sampler]) -> None:
    before = dict(vars(cls))
    one, other, started = cls(), cls(), []
    starting = lambda: started.append(1)  # noqa: E731
    found = watch(one, starting)
    assert watch(one, starting) is found
    assert one.set_timesteps(3) == 3
    first, second = object(), object()
    assert one.step(0, first) == other.step(0, first)
    one.step(0, timestep=second)
    assert (found.progress.run, found.progress.steps, found.progress.last) == (1, 2, second)
    assert started == [1, 1]
    found.progress.called = True
    one.step(0, second)
    assert (found.progress.steps, found.progress.repeated) == (2, 1)
    unwatch(one, starting)
    assert vars(cls) != before  # somebody still watches
    unwatch(one, starting)
    assert dict(vars(cls)) == before
    one.set_timesteps(3)
    assert found.progress.run == 1


def test_a_class_and_its_subclass_are_watched_side_by_side() -> None:
    """The subclass's methods call those of the class, which take note, too, and must not of what is not theirs."""
    one, other, nothing = Sampler(), SubSampler(), lambda: None
    found = [watch(scheduler, nothing) for scheduler in (one, other)]
    for scheduler in (one, other):
        scheduler.set_timesteps(2)
        scheduler.step(0, object())
    seen = [watched.progress for watched in found if watched]
    assert [(progress.run, progress.steps, progress.repeated) for progress in seen] == [(1, 1, 0), (1, 1, 0)]
    for scheduler in (one, other):
        unwatch(scheduler, nothing)


def test_views_are_counted_anew_at_the_next_timestep() -> None:
    progress, first, second = Progress(), object(), object()
    progress.step(first)
    progress.called = True
    progress.step(first)
    assert progress.repeated == 1
    progress.step(second)
    assert (progress.steps, progress.repeated) == (2, 0)


def test_a_step_that_is_asked_for_in_another_form_is_no_view() -> None:
    """As where a pipeline asks for the clean sample first, which guidance changes before the step is made."""
    progress, first = Progress(), object()
    progress.called = True
    progress.step(first)
    progress.step(first)
    assert (progress.steps, progress.repeated) == (1, 0)


def test_threads_have_their_own_progress() -> None:
    scheduler, nothing = Sampler(), lambda: None
    found = watch(scheduler, nothing)
    scheduler.set_timesteps(2)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(found.progress.run))
    thread.start()
    thread.join()
    assert (found.progress.run, seen) == (1, [0])
    unwatch(scheduler, nothing)


def test_what_does_not_step_is_not_watched() -> None:
    assert watch(None, lambda: None) is None
    assert watch(object(), lambda: None) is None


def test_numbers_at_one_timestep_are_steps_and_objects_are_views() -> None:
    progress = Progress()
    progress.step(7)
    progress.step(7)
    assert (progress.steps, progress.repeated) == (2, 0)
    progress.begin()
    assert (progress.run, progress.last) == (1, None)
    progress.step(None)
    progress.step(None)
    assert progress.steps == 4
