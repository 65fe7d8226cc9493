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


class WanTransformer3DModel:
    """A denoiser by name."""


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
        assert runs.open[0].total() == 3


@pytest.mark.parametrize("timesteps", [[900, 600, 300, 0], [0.1, 0.4, 0.7, 1.0]])
def test_numbers_start_a_run_by_turning(timesteps: list[float]) -> None:
    assert steps(Runs(Host()), timesteps * 2) == START + [(1, step) for _, step in START]


def test_calls_at_one_timestep_share_a_step() -> None:
    table = torch.linspace(900, 1, 3)
    assert steps(Runs(Host()), [t for t in table for _ in "pn"]) == [(0, i) for i in (0, 0, 1, 1, 2, 2)]


def test_fresh_tensors_are_read_and_tell_no_length() -> None:
    runs = Runs(Host())
    assert steps(runs, [torch.tensor([float(t)]) for t in (900, 600, 300, 0)]) == START
    assert runs.open[0].total() is None
    runs.forget()
    assert runs.open == ()


def test_a_run_that_starts_in_the_middle_of_the_schedulers_table() -> None:
    pipe = Pipe(Table(10))
    run = Run(Host(pipe), None, waits=False)
    run.advance(pipe.scheduler.timesteps[4])
    assert run.total() == 6
    assert run.timestep_of(pipe.scheduler.timesteps[4]) == pipe.scheduler.timesteps[4]


def test_a_table_that_is_part_of_another_has_its_own_length() -> None:
    """As img2img takes the last timesteps of the scheduler's table, and some schedulers cut theirs themselves."""
    pipe = Pipe(Table(10))
    pipe.scheduler.timesteps = pipe.scheduler.timesteps[4:]
    run = Run(Host(pipe), None, waits=False)
    run.advance(pipe.scheduler.timesteps[0])
    assert run.total() == 6


def test_a_run_that_begins_late_where_the_network_is_told_numbers() -> None:
    pipe = Pipe(Table(10))
    pipe.scheduler.begin_index = 4
    run = Run(Host(pipe), None, waits=False)
    told = [float(t) for t in pipe.scheduler.timesteps[4:]]
    run.advance(told[0])
    assert run.total() == 6
    assert run.timestep_of(told[0]) == pipe.scheduler.timesteps[4]
    run.advance(told[1])
    assert run.timestep_of(told[1]) == pipe.scheduler.timesteps[5]


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
    for _ in range(2):
        run.advance(torch.tensor(0.9))
        progress.step(t)
    with pytest.raises(RuntimeError, match="steps several times at one timestep"):
        run.advance(torch.tensor(0.7))


def test_a_step_that_is_asked_for_twice_is_one() -> None:
    progress, seen = Progress(run=1), []
    run = Run(Host(), progress, waits=True)
    for t in torch.linspace(900, 1, 3):
        for _ in range(2):  # both prompts
            run.advance(t.clone() / 1000)
            seen.append(run.step)
        for _ in range(2):
            progress.step(t)
    assert seen == [0, 0, 1, 1, 2, 2]


def test_two_denoisers_share_the_steps_at_a_boundary() -> None:
    networks = {name: WanTransformer3DModel() for name in ("transformer", "transformer_2", "unet")}

    def totals(pipe: Any) -> list[int | None]:
        pipe.components = networks
        return [Run(Host(pipe), None, waits=False).total(network) for network in networks.values()]

    pipe = Pipe(Table(4), boundary_ratio=0.5)
    assert totals(pipe) == [2, 2, None]
    assert totals(Pipe(Table(4))) == [None, None, None]
    pipe.scheduler.timesteps = torch.tensor([1000.0, 750.0, 500.0, 250.0])  # at the boundary the first one is called
    assert totals(pipe) == [3, 1, None]
    assert Run(Host(pipe), None, waits=False).total(WanTransformer3DModel()) is None  # one that is not the pipeline's
    assert Run(Host(pipe), None, waits=False).total() == 4


def test_views_at_the_last_timestep_are_of_its_step() -> None:
    """A sampler that steps one view after the other, each right after its call (MultiDiffusion)."""
    progress = Progress(run=1)
    run = Run(Host(), progress, waits=False)
    seen = []
    for t in torch.linspace(900, 1, 3):
        for _ in range(3):
            run.advance(t)
            seen.append(run.step)
            progress.step(t)
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_scheduler_that_is_watched_and_does_not_step_leaves_it_to_the_timesteps() -> None:
    """As where a sampler of the user's own sets its timesteps and takes the steps itself."""
    run, seen = Run(Host(), Progress(run=1), waits=True), []
    table = torch.linspace(900, 1, 3)
    for t in table:
        run.advance(t)
        seen.append(run.step)
    assert seen == [0, 1, 2]
    assert not run.continues(torch.linspace(900, 1, 3)[0])


def test_a_step_is_not_taken_back() -> None:
    progress, table = Progress(run=1), torch.linspace(900, 1, 3)
    run = Run(Host(), progress, waits=False)
    run.advance(table[0])
    progress.step(table[0])
    run.advance(table[1])
    assert run.step == 1
    run.advance(table[0])  # another view of what was just stepped
    assert run.step == 1


def test_timesteps_without_values_are_steps_only_where_no_pipeline_has_a_say() -> None:
    pipe = Pipe(Table(4))
    for host, steps in ((Host(pipe), 0), (Host(), 2)):
        run = Run(host, None, waits=False)
        for _ in range(3):
            run.advance(torch.empty(1, device="meta"))
        assert run.step == steps


def test_a_pipeline_that_announces_fewer_calls_than_its_table_has_left_is_believed() -> None:
    pipe = Pipe(Table(10))
    pipe._num_timesteps = 3  # type: ignore[attr-defined]
    run = Run(Host(pipe), None, waits=False)
    run.advance(pipe.scheduler.timesteps[2])
    assert run.total() == 3
    pipe._num_timesteps = 20  # type: ignore[attr-defined]
    assert run.total() == 8


def test_an_error_ends_one_run() -> None:
    runs = Runs(Host())
    run, _ = runs.current(900)
    runs.drop(run)
    assert runs.open == ()
    assert runs.current(900)[0] is not run
    runs.end()
    assert runs.open == ()
