"""Where runs start, which step a call belongs to, and how many calls a run has."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffaccel.runtime.host import Host
from diffaccel.runtime.run import Run, Runs
from diffaccel.runtime.scheduler_watch import Progress


class Pipe:
    def __init__(self, scheduler: Any, **more: Any) -> None:
        self.scheduler, self.config = scheduler, SimpleNamespace(**more)


class Table:
    """A scheduler of which nothing but its timesteps is known."""

    def __init__(self, count: int) -> None:
        self.timesteps = torch.linspace(900, 1, count)
        self.config = SimpleNamespace(num_train_timesteps=1000)


def steps(runs: Runs, timesteps: Any) -> list[tuple[int, int]]:
    """For each call the number of its run and its step."""
    seen: dict[int, int] = {}
    kept, found = [], []
    for timestep in timesteps:
        run, _ = runs.current(timestep)
        run.advance(timestep)
        kept.append(run)
        found.append((seen.setdefault(id(run), len(seen)), run.step))
    return found


START = [(0, 0), (0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tables_without_a_pipeline(mode: Any) -> None:
    with mode():
        runs = Runs(Host())
        tables = [*torch.linspace(900, 1, 4), *torch.linspace(900, 1, 3)]
        assert steps(runs, tables) == [*START, (1, 0), (1, 1), (1, 2)]
        assert runs.open[0].total("unet", several=False) == 3


@pytest.mark.parametrize("timesteps", [[900, 600, 300, 0], [0.1, 0.4, 0.7, 1.0]])
def test_numbers_start_a_run_by_turning(timesteps: list[float]) -> None:
    assert steps(Runs(Host()), timesteps * 2) == START + [(1, step) for _, step in START]


def test_calls_at_one_timestep_share_a_step() -> None:
    table = torch.linspace(900, 1, 3)
    assert steps(Runs(Host()), [t for t in table for _ in "pn"]) == [(0, i) for i in (0, 0, 1, 1, 2, 2)]


def test_fresh_tensors_are_read_and_tell_no_length() -> None:
    runs = Runs(Host())
    assert steps(runs, [torch.tensor([float(t)]) for t in (900, 600, 300, 0)]) == START
    assert runs.open[0].total("unet", several=False) is None
    runs.forget()
    assert runs.open == ()


def test_a_run_that_starts_in_the_middle_of_the_schedulers_table() -> None:
    pipe = Pipe(Table(10))
    run = Run(Host(pipe), None, waits=False)
    run.advance(pipe.scheduler.timesteps[4])
    assert run.total("unet", several=False) == 6
    assert run.timestep_of(pipe.scheduler.timesteps[4]) == pipe.scheduler.timesteps[4]


def test_a_timestep_in_other_units_is_the_schedulers() -> None:
    pipe = Pipe(Table(4))
    run = Run(Host(pipe), None, waits=False)
    run.advance(torch.tensor(0.9))
    assert run.timestep_of(torch.tensor(0.9)) == pipe.scheduler.timesteps[0]
    other = Run(Host(pipe), None, waits=False)
    other.advance(torch.tensor(0.5))
    with pytest.raises(ValueError, match="noise level is not known"):
        other.timestep_of(torch.tensor(0.5))
    bare = Run(Host(), None, waits=True)
    assert bare.timestep_of(5) == 5


def test_frames_at_timesteps_of_their_own_have_no_one_noise_level() -> None:
    pipe = Pipe(Table(4))
    run = Run(Host(pipe), None, waits=False)
    frames = pipe.scheduler.timesteps[0].repeat(1, 3)
    run.advance(frames)
    assert run.timestep_of(frames.clone()) == pipe.scheduler.timesteps[0]
    ahead = frames.clone()
    ahead[:, 0] -= 100
    run.advance(ahead)
    assert run.step == 1
    with pytest.raises(ValueError, match="parts of a sample are at timesteps of their own"):
        run.timestep_of(ahead)


def test_a_scheduler_that_steps_says_which_step_it_is() -> None:
    progress = Progress(run=1)
    run = Run(Host(), progress, waits=True)
    seen = []
    for t in torch.linspace(900, 1, 3):
        run.advance(t)
        seen.append(run.step)
        progress.step(t)
    assert seen == [0, 1, 2]
    progress.begin()
    assert not run.continues(torch.tensor(900.0))


def test_steps_at_one_timestep_that_cannot_be_told_are_refused() -> None:
    progress, t = Progress(run=1), torch.tensor(900.0)
    run = Run(Host(), progress, waits=True)
    run.advance(t)
    progress.step(t)
    progress.step(t)
    with pytest.raises(RuntimeError, match="steps several times at one timestep"):
        run.advance(torch.tensor(700.0))


def test_two_denoisers_share_the_steps_at_a_boundary() -> None:
    pipe = Pipe(Table(4), boundary_ratio=0.5)
    run = Run(Host(pipe), None, waits=False)
    assert [run.total(name, several=True) for name in ("transformer", "transformer_2", "unet")] == [2, 2, None]
    assert Run(Host(Pipe(Table(4))), None, waits=False).total("transformer", several=True) is None


def test_an_error_ends_one_run() -> None:
    runs = Runs(Host())
    run, _ = runs.current(900)
    runs.drop(run)
    assert runs.open == ()
    assert runs.current(900)[0] is not run
    runs.end()
    assert runs.open == ()
