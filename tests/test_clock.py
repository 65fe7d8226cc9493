"""The clock tells runs and contexts apart from the timesteps' identity, never from their values on a device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffaccel.runtime.host import Host
from diffaccel.runtime.run_clock import RunClock, calls_left


class Pipe:
    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def ticks(clock: RunClock, timesteps: Any, conditioning: Any = None) -> list[tuple[bool, int]]:
    return [clock.tick(t, conditioning) for t in timesteps]


START = [(True, 0), (False, 0), (False, 0), (False, 0)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tables_without_a_pipeline(mode: Any) -> None:
    with mode():
        clock = RunClock(Host())
        assert ticks(clock, torch.linspace(900, 1, 4)) == START
        assert ticks(clock, torch.linspace(900, 1, 4)) == START
        assert clock.total == 4


def test_a_run_cut_short_is_noticed() -> None:
    clock = RunClock(Host())
    ticks(clock, torch.linspace(900, 1, 9)[:3])
    assert ticks(clock, torch.linspace(500, 1, 4)) == START


@pytest.mark.parametrize("timesteps", [[900, 600, 300, 0], [0.1, 0.4, 0.7, 1.0]])
def test_numbers_start_a_run_by_turning(timesteps: list[float]) -> None:
    clock = RunClock(Host())
    assert ticks(clock, timesteps) == START
    assert ticks(clock, timesteps) == START


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: t.repeat(2), lambda t: t.expand(2), lambda t: t / 1000])
def test_the_schedulers_table_tells_runs_apart(wrap: Any) -> None:
    scheduler = SimpleNamespace(timesteps=torch.linspace(900, 1, 4))
    pipe = Pipe(scheduler)
    clock = RunClock(Host(pipe))
    for _ in range(3):
        scheduler.timesteps = torch.linspace(900, 1, 4)
        assert ticks(clock, [wrap(t) for t in scheduler.timesteps[:2]]) == START[:2]
    assert clock.total == 4


def test_the_scheduler_may_be_exchanged() -> None:
    pipe = Pipe(SimpleNamespace(timesteps=torch.linspace(900, 1, 4)))
    clock = RunClock(Host(pipe))
    ticks(clock, pipe.scheduler.timesteps[:2])
    pipe.scheduler = SimpleNamespace(timesteps=torch.linspace(900, 1, 4))
    assert ticks(clock, pipe.scheduler.timesteps) == START


def test_calls_left_when_a_run_starts_in_the_middle() -> None:
    pipe = Pipe(SimpleNamespace(timesteps=torch.linspace(900, 1, 10)))
    clock = RunClock(Host(pipe))
    ticks(clock, pipe.scheduler.timesteps[4:])
    assert clock.total == 6


def test_two_calls_at_one_timestep_are_two_contexts() -> None:
    clock, cond, uncond = RunClock(Host()), object(), object()
    for t in torch.linspace(900, 1, 4):
        assert [clock.tick(t, prompt)[1] for prompt in (cond, uncond)] == [0, 1]


def test_the_same_call_again_is_another_step() -> None:
    clock, prompt = RunClock(Host()), object()
    t = torch.linspace(900, 1, 4)[2]
    assert ticks(clock, [t, t, t], prompt) == START[:3]


def test_timesteps_that_tell_nothing() -> None:
    clock = RunClock(Host())
    assert ticks(clock, [torch.tensor([float(t)]) for t in (900, 600, 300, 0)]) == START
    assert clock.total is None
    clock.reset()
    assert clock.tick(torch.tensor(900.0)) == (True, 0)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (torch.zeros(7, 3)[0], 7),
        (torch.zeros(7, 3)[2], 5),
        (torch.zeros(7, 3, 2)[1], 6),
        (torch.zeros(3, 7)[:, 0], 7),
        (torch.zeros(3, 7)[:, 2], 5),
        (torch.zeros(7)[2].expand(3), 5),
        (torch.zeros(7)[2:3], 5),
        (torch.zeros(7, 3)[:, 1][0], None),
        (torch.zeros(2, 7, 3)[:, 1], None),
    ],
)
def test_calls_left_in_a_table_of_timesteps(first: torch.Tensor, expected: int | None) -> None:
    assert calls_left(first) == expected
    clock = RunClock(Host())
    clock.tick(first)
    assert clock.total == expected


def test_a_table_with_a_timestep_for_every_row_is_one_run() -> None:
    clock = RunClock(Host())
    assert ticks(clock, torch.linspace(900, 1, 8).reshape(4, 2)) == START
    assert clock.total == 4
    assert ticks(clock, torch.linspace(900, 1, 8).reshape(2, 4).unbind(1)) == START
    assert clock.total == 4
