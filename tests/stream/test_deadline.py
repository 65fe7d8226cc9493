"""Deadlines: a machine that gets slower and faster, in figures; and an engine that costs less when it is late."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from diffaccel import StreamEngine, StreamHost
from diffaccel.stream.ladder import Rung, ladder
from diffaccel.stream.pace import Pace

DEADLINE = 0.04
TRUE = (1.0, 0.7, 0.55, 0.5, 0.4, 0.3, 0.25, 0.12)
"""What the network takes on each rung; half of it is guessed wrong."""
RUNGS = [Rung(f"rung {k}", 2, share * (1.3 if k % 2 else 0.8) if k else 1.0) for k, share in enumerate(TRUE)]
AROUND = 0.006


class Machine:
    """Frames on a machine whose network takes ``full`` seconds at full cost, with noise and a slower tick now and then.

    Attributes:
        stood: rung of each frame.
        took: seconds of each.
    """

    def __init__(self, rungs: Sequence[Rung] = RUNGS, seed: int = 0) -> None:
        self.pace = Pace(rungs, DEADLINE)
        self._random = torch.Generator().manual_seed(seed)
        self.stood: list[int] = []
        self.took: list[float] = []

    def run(self, frames: int, full: float) -> list[int]:
        """The rungs of so many frames."""
        for k in range(frames):
            noise = 1 + 0.1 * float(torch.randn(1, generator=self._random).clamp(-2, 2))
            rung = RUNGS.index(self.pace.rung)
            cycle = 1.5 if rung and k % 4 == 0 else 1.0 if rung == 0 else 0.8333  # those that compute, and the others
            network = full * TRUE[rung] * noise * cycle
            self.pace.note(AROUND + network, network)
            self.stood.append(rung)
            self.took.append(AROUND + network)
        return self.stood[-frames:]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def test_with_time_to_spare_nothing_changes() -> None:
    machine = Machine()
    assert set(machine.run(2000, 0.025)) == {0}
    assert machine.pace.report().setting == "rung 0"


@pytest.mark.parametrize("full", [0.045, 0.06, 0.1, 0.15])
def test_late_frames_lower_cost_until_they_are_in_time(full: float) -> None:
    machine = Machine()
    machine.run(300, full)
    stood = machine.run(2000, full)
    assert mean(machine.took[-2000:]) <= DEADLINE
    assert mean(machine.took[-2000:]) >= 0.5 * DEADLINE  # no cheaper than it has to be
    assert sum(a != b for a, b in itertools.pairwise(stood)) <= 6
    assert machine.pace.report().lowered >= 1


def test_what_cannot_be_in_time_is_as_cheap_as_can_be() -> None:
    machine = Machine()
    machine.run(60, 1.0)
    assert set(machine.run(200, 1.0)) == {len(TRUE) - 1}


def test_cost_is_raised_again_when_there_is_time() -> None:
    machine = Machine()
    machine.run(400, 0.1)
    assert machine.stood[-1] >= 4
    machine.run(3000, 0.02)
    assert machine.stood[-1] == 0
    assert machine.pace.report().raised >= 1


def test_cost_follows_the_mean_of_a_window_and_rises_with_patience() -> None:
    """Where a frame is the network's alone, and a rung has to settle for seven frames."""
    pace = Pace([Rung("full", 1, 1.0), Rung("half", 1, 0.5), Rung("quarter", 1, 0.25)], 0.1)

    def run(seconds: float, frames: int) -> list[int]:
        """The frames behind which the stream stands elsewhere."""
        return [frame for frame in range(1, frames + 1) if pace.note(seconds, seconds)]

    assert run(0.094, 7 + 3 * 12) == []  # in time, by less than 95 % of the deadline
    assert run(0.096, 12) == [12]
    assert pace.rung.text == "half"  # the first that takes no more than 85 %
    assert run(0.048, 7 + 4 * 12) == []  # at full cost it would be as late as before
    assert run(0.03, 3 * 12) == [36]
    assert pace.rung.text == "full"
    assert run(0.7, 3) == [3]  # so late that nobody waits for the window's end
    assert pace.rung.text == "quarter"
    assert run(0.02, 7 + 6 * 12) == [79]  # the raise was too early: twice the patience
    assert pace.rung.text == "half"
    report = pace.report()
    assert (report.late, report.frames, report.lowered, report.raised) == (3, 43 + 12 + 55 + 36 + 3 + 79, 2, 2)
    assert (report.deadline_ms, report.mean_ms) == (pytest.approx(100.0), pytest.approx(20.0))
    assert (report.rung, report.rungs) == (1, 3)


@pytest.mark.parametrize(("others", "stalls", "changes"), [(0.08, 1, []), (0.09, 1, [18]), (0.08, 2, [18])])
def test_one_frame_that_is_held_up_counts_as_twice_the_next_slowest(
    others: float, stalls: int, changes: list[int]
) -> None:
    pace = Pace([Rung("full", 1, 1.0), Rung("half", 1, 0.5)], 0.1)
    times = [others] * (19 - stalls) + [9.0] * stalls
    assert [k for k, seconds in enumerate(times) if pace.note(seconds, seconds)] == changes


@pytest.mark.slow
@pytest.mark.parametrize("full", [f / 1000 for f in range(28, 80, 4)])
def test_it_never_goes_to_and_fro(full: float) -> None:
    """Also where a rung is a little too dear and the next a little too cheap."""
    machine = Machine(seed=int(1000 * full))
    machine.run(500, full)
    stood = machine.run(6000, full)
    assert sum(a != b for a, b in itertools.pairwise(stood)) <= 8


def test_a_load_that_comes_and_goes_is_followed() -> None:
    machine = Machine()
    for _ in range(3):
        machine.run(600, 0.09)
        assert mean(machine.took[-300:]) <= DEADLINE
        machine.run(2500, 0.02)
        assert machine.stood[-1] <= 1


@pytest.mark.parametrize(("full", "stall", "every"), [(0.015, 0.6, 300), (0.025, 0.3, 700), (0.025, 1.5, 300)])
def test_a_frame_that_is_held_up_now_and_then_costs_no_quality(full: float, stall: float, every: int) -> None:
    """Another stream is opened, or a browser takes the machine for a moment."""
    machine = Machine()
    for _ in range(4):
        assert set(machine.run(every, full)) == {0}
        machine.pace.note(AROUND + full + stall, full + stall)


def test_the_ladder_of_a_unet(sd: Any, engine: Callable[..., StreamEngine]) -> None:
    config = engine(timestep_indices=(10, 20, 30, 40)).config
    rungs = ladder(sd.unet, config)
    assert [rungs[0].text, rungs[1].text, rungs[-1].text] == [
        "as set",
        "interval 2, branch 3",
        "interval 6, branch 0, 1 of 4 stages",
    ]
    assert all(b.share < a.share for a, b in itertools.pairwise(rungs))
    assert rungs[-3].of(config).indices == (10, 20, 30)
    assert rungs[-1].of(config).indices == (10,)
    assert rungs[0].of(config) == config


def test_a_deadline_that_is_held_changes_nothing(engine: Callable[..., StreamEngine], frames: torch.Tensor) -> None:
    with engine() as plain, engine(deadline=60.0) as held:
        expected = [output.image for output in plain.stream(frames)]
        assert all(torch.equal(o.image, e) for o, e in zip(held.stream(frames), expected, strict=True))
        pace = held.report().pace
    assert pace is not None
    assert (pace.setting, pace.late) == ("as set", 0)
    assert "as set for 60000.0 ms a frame (0 of" in str(pace)


def test_a_deadline_that_cannot_be_held(engine: Callable[..., StreamEngine], frames: torch.Tensor) -> None:
    with engine(deadline=1e-4) as late:
        outputs = [output for _ in range(4) for output in late.stream(0.9 * frames[0] + 0.02 * frames)]  # one scene
        pace = late.report().pace
        assert pace is not None
        assert pace.setting == "interval 6, branch 0, 1 of 3 stages"
        assert pace.lowered >= 1
        assert late.latency == 0
        assert late.config.cache is None
        assert late.config.indices == (10, 25, 40)
        assert late.report().replayed_rows > 0
        assert late.report().to_dict()["pace"]["deadline_ms"] == pytest.approx(0.1)
        late.update(prompt="a red heart", strength=0.5)  # settings change, and it stays as cheap
        late.push(frames[0])
        assert late.latency == 0
        late.reset()
        late.push(frames[0])
        pace = late.report().pace
        assert pace is not None
        assert (pace.frames, pace.late, pace.lowered) == (1, 1, 0)
        assert pace.setting == "interval 6, branch 0, 1 of 3 stages"  # what was learnt stays
        late.update(deadline=None)
        assert late.report().pace is None
        assert late.latency == 2
        late.push(frames[0])
    assert len(outputs) == 36
    assert all(output.image.isfinite().all() for output in outputs)


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan"), float("inf")])
def test_deadlines_that_are_none(deadline: float, engine: Callable[..., StreamEngine]) -> None:
    with pytest.raises(ValueError, match="deadline"):
        engine(deadline=deadline)


def test_a_stream_of_a_host_has_a_deadline(sd: Any, frames: torch.Tensor) -> None:
    settings: dict[str, Any] = {"prompt": "a cat", "timestep_indices": (10, 40), "height": 32, "width": 32}
    with StreamHost(sd) as host:
        one = host.open(**settings, deadline=1e-4, output_type="latent")
        for _ in range(4):
            list(one.stream(frames))
        assert one.report().pace.setting.endswith("1 of 2 stages")  # type: ignore[union-attr]
