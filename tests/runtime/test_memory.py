"""What a memory forgets, and when: each lifetime's own, and nothing else."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from tiny_networks import generate, pipeline, sd_unet, unet_inputs
from walk_unets import SMALL

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache
from diffaccel.networks.inputs import Inputs
from diffaccel.reuse.branch import Branch
from diffaccel.reuse.schedule import Threshold, Uniform
from diffaccel.runtime.act import Lifetime, Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.lanes import Block, Lane
from diffaccel.runtime.memory import PROMPTS_KEPT, Memory, PartMemory
from diffaccel.runtime.replay_act import Replay

LIFETIMES = ("run", "prompt", "frame", "video")
A, B = Lane("a", 0), Lane("b", 0)


def filled() -> Any:
    """A memory with one part of each lifetime, in which lane A was reused once."""
    memory: Any = Memory([SimpleNamespace(lifetime=lifetime) for lifetime in LIFETIMES])  # type: ignore[misc]
    for part in memory.parts:
        part.aged((A,), computed=False)
    memory.notes["note"] = 1
    memory.rows["method"] = {A: SimpleNamespace(x=torch.zeros(2)), B: SimpleNamespace(x=torch.zeros(2))}
    return memory


def lasting(memory: Any) -> list[str]:
    return [name for name, part in zip(LIFETIMES, memory.parts, strict=True) if part.ages]


def test_after_an_error_only_videos_last() -> None:
    memory = filled()
    memory.forget_runs()
    assert lasting(memory) == ["video"]
    assert not memory.notes
    assert not memory.rows


def test_where_another_network_took_calls_only_the_run_is_broken_off() -> None:
    memory = filled()
    memory.break_off()
    assert lasting(memory) == ["prompt", "frame", "video"]
    assert not memory.notes
    assert not memory.rows


def test_ages_count_the_calls_that_reused() -> None:
    part = PartMemory()
    for computed, age in ((True, 0), (False, 1), (False, 2), (True, 0), (False, 1)):
        part.aged((A,), computed=computed)
        assert part.ages[A] == age
    assert B not in part.ages


@pytest.mark.parametrize(
    ("steps", "due"),
    [((0, 2, 4, 5, 6), [0, 4, 6]), ((None,) * 5, [0, 3])],
    ids=["a group that was left out when it was due", "no steps, so that calls count"],
)
def test_a_group_computes_when_it_is_due_or_at_its_next_call(steps: tuple[int | None, ...], due: list[int]) -> None:
    memory, computed = Memory([Part(Replay(Branch(("block",))), Uniform(3))]), []
    inputs = Inputs({"sample": torch.zeros(1, 1)}, ("sample", None, None))
    for count, step in enumerate(steps):
        call = Call(inputs, dict.fromkeys(get_args(Lifetime), (A,)), step=step, total=9)
        if memory.decide(call) == {A.group: (True,)}:
            computed.append(count if step is None else step)
        memory.parts[0].lanes.put([Block((A,), [torch.zeros(1)])], count)
        memory.decided.clear()
    assert computed == due


def test_frames_that_left_are_forgotten_and_the_last_prompts_stay() -> None:
    memory = filled()
    prompts = [Lane(number, 0) for number in range(PROMPTS_KEPT + 2)]
    for step, lane in enumerate(prompts):
        for part in memory.parts:
            part.lanes.put([Block((lane,), [torch.zeros(1)])], step)
    memory.keep(dict.fromkeys(LIFETIMES, (prompts[0],)))
    run, prompt, *_ = (part.lanes.lanes for part in memory.parts)
    assert run == [prompts[0]]
    assert prompt == [*prompts[3:], prompts[0]]
    assert lasting(memory) == []
    assert memory.rows == {"method": {}}


def test_a_prompt_that_is_used_again_and_again_stays() -> None:
    memory, hot = filled(), Lane("hot", 0)
    for number in range(2 * PROMPTS_KEPT):
        for lane in (hot, Lane(number, 0)):
            for part in memory.parts:
                if not part.lanes.has((lane,)):
                    part.lanes.put([Block((lane,), [torch.full((1,), float(number))])], number)
            memory.keep(dict.fromkeys(LIFETIMES, (lane,)))
    prompts = memory.parts[1].lanes
    assert len(prompts.lanes) == PROMPTS_KEPT
    (block,) = prompts.take((hot,))
    assert block.entries[0] == 0  # stored once


def test_a_lane_is_dropped_everywhere() -> None:
    memory = filled()
    for part in memory.parts:
        part.lanes.put([Block((A,), [torch.zeros(1)])], 0)
    memory.drop((A,))
    assert all(part.lanes.lanes == [] for part in memory.parts)
    assert list(memory.rows["method"]) == [B]
    assert memory.nbytes() == 8


def test_outputs_that_stand_in_for_later_ones_take_storage() -> None:
    memory = Memory([])
    output = torch.zeros(3)
    memory.notes |= {
        "profile": SimpleNamespace(latest=output, history=[output, torch.zeros(2)]),
        "gate": (0, torch.zeros(1)),
    }
    assert memory.nbytes() == (3 + 2 + 1) * 4
    memory.clear()
    assert memory.nbytes() == 0


def test_calls_at_an_earlier_state_leave_no_trace() -> None:
    memory = filled()
    before = memory.copied_parts()
    memory.parts[0].aged((A,), computed=False)
    with memory.at(before):
        assert memory.parts[0].ages[A] == 1
        memory.parts[0].aged((A,), computed=False)
        memory.parts[0].lanes.put([Block((A,), [torch.zeros(1)])], 0)
        memory.decided["g"] = (True,)
    assert memory.parts[0].ages[A] == 2
    assert before[0].ages[A] == 1
    assert before[0].lanes.lanes == memory.parts[0].lanes.lanes == []
    assert not memory.decided


def test_what_a_controlnet_left_out_must_not_be_computed_in_that_step() -> None:
    memory = filled()
    memory.unfed["controlnet"] = 3, {"g": frozenset({1})}
    memory.decided["g"] = (True,)
    memory.require_fed(3, "g", [0, 2])
    memory.require_fed(4, "g", [1])  # in the next step it is asked anew
    assert memory.decided
    for group in ("g", "a group that it was not told of"):
        with pytest.raises(RuntimeError, match="a ControlNet left out"):
            memory.require_fed(3, group, [1])
    assert not memory.decided


def test_reuses_in_a_row_are_limited() -> None:
    pipe = pipeline(sd_unet(**SMALL))
    with accelerate(pipe, DeepCache(schedule=Threshold(1e9, max_reuse=2))) as handle:
        generate(pipe, 7)
        assert (handle.report().computed, handle.report().replayed) == (3, 4)
    with accelerate(pipe, DeepCache(schedule=Threshold(1e9))) as handle:
        generate(pipe, 7)
        assert (handle.report().computed, handle.report().replayed) == (1, 6)


def test_a_change_is_measured_from_the_last_computed_call_and_adds_up() -> None:
    unet = sd_unet(**SMALL)
    inputs = unet_inputs(unet)
    with accelerate(unet, DeepCache(schedule=Threshold(0.15))) as handle:
        for timestep, scale in ((900, 1.0), (800, 1.1), (700, 1.2)):  # 10 % more, then 20 %
            unet(**{**inputs, "sample": scale * inputs["sample"]}, timestep=timestep)
        assert (handle.report().computed, handle.report().replayed) == (2, 1)
