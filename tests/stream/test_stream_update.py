"""Live changes: what frames in flight and new frames are made with, checked against the independent reference."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from peft import LoraConfig
from stream_pipelines import Build
from stream_reference import Step, clean_latents, lcm, noises, text

from diffaccel._diffusers import hooks_of
from diffaccel.methods import DeepCache
from diffaccel.networks.conditioning import slerp
from diffaccel.sampling.guidance import FullGuidance, NoGuidance, OneTimeNegative, SelfNegative
from diffaccel.sampling.samplers import TCD, Euler
from diffaccel.stream.course import Course
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.similarity import SimilarityFilter

CHANGE = 3  # the frame that enters right after the update


@pytest.fixture(scope="module")
def frames(frames: torch.Tensor) -> torch.Tensor:
    """Before the update one frame leaves, two are in flight, and three come after it."""
    return frames[:6]


@pytest.fixture(scope="module")
def plain(engine: Build, frames: torch.Tensor) -> Callable[..., dict[int, torch.Tensor]]:
    """What a stream of these settings shows where nothing changes, painted once for all tests."""
    return cache(lambda **settings: run(engine(**settings), frames))


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max().item()))


def run(engine: StreamEngine, frames: torch.Tensor, **update: Any) -> dict[int, torch.Tensor]:
    """Every finished frame by id; ``update`` happens before frame CHANGE is pushed. Outputs come in order."""
    outputs = []
    for i, frame in enumerate(frames):
        if i == CHANGE and update:
            engine.update(**update)
        outputs += engine.push(frame)
    outputs += engine.flush()
    assert [o.frame_id for o in outputs] == list(range(len(frames)))
    return {o.frame_id: o.image for o in outputs}


CHANGES: list[dict[str, Any]] = [
    {"prompt": "a dog"},
    {"prompt": {"a cat": 1.0, "a dog": 2.0}},
    {"negative_prompt": "a dog"},
    {"guidance": NoGuidance()},
    {"guidance": FullGuidance(2.0)},
    {"guidance": SelfNegative(1.3, 0.4)},
    {"scale": 2.0, "delta": 0.3},
    {"delta": 0.2},
    {"timestep_indices": (15, 20, 45)},
    {"timestep_indices": (5, 15, 30, 45)},
    {"timestep_indices": (30,)},
    {"strength": 0.6, "num_steps": 2},
    {"seed": 9},
    {"add_noise": False},
    {"sampler": Euler()},
    {"sampler": TCD()},
    {"prompt": "a dog", "guidance": OneTimeNegative(1.1), "timestep_indices": (20, 40), "seed": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize("change", cells(CHANGES, lambda change: CHANGES.index(change) % 2 == 0, "+".join))
def test_new_reaches_only_new_frames(change: dict[str, Any], engine: Build, frames: torch.Tensor, plain: Any) -> None:
    settings: dict[str, Any] = {"guidance": OneTimeNegative(1.6, 0.7)}
    outputs = run(engine(**settings), frames, at="new", **change)
    before = plain(**settings)
    after_engine = engine(**settings)
    after_engine.update(**change)
    after = run(after_engine, frames)
    for i in range(len(frames)):
        close(outputs[i], before[i] if i < CHANGE else after[i])
        assert (outputs[i] - (after[i] if i < CHANGE else before[i])).abs().max() > 1e-3


STEPS = [799, 499, 199]


def steps_of(sd: Any, **before: Any) -> list[Step]:
    """Steps of a frame of the default engine."""
    noise = noises(2, 3, 1, (4, 4, 4))
    return [Step(t, noise[k, 0], text(sd, "a cat"), text(sd, "blurry"), **before) for k, t in enumerate(STEPS)]


def updated(frame: int, steps: list[Step], **changes: Any) -> list[Step]:
    """Stage s of frame f runs in tick f + s; ticks from CHANGE on see the new settings."""
    return [replace(step, **changes) if frame + s >= CHANGE else step for s, step in enumerate(steps)]


def test_all_changes_the_prompt_of_frames_in_flight(engine: Build, sd: Any, frames: torch.Tensor) -> None:
    outputs = run(engine(), frames, prompt="a dog")
    clean = clean_latents(sd, frames)
    for i in range(len(frames)):
        close(outputs[i], lcm(sd, clean[i], updated(i, steps_of(sd), prompt=text(sd, "a dog"))))


GUIDANCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "none": (NoGuidance(), {"guidance": "none"}),
    "full": (FullGuidance(1.9), {"guidance": "full", "scale": 1.9}),
    "self": (SelfNegative(1.3, 0.6), {"guidance": "self", "scale": 1.3, "delta": 0.6}),
    "once": (OneTimeNegative(1.5, 1.0), {"guidance": "once", "scale": 1.5, "delta": 1.0}),
    "once again": (OneTimeNegative(2.0, 0.5), {"guidance": "once", "scale": 2.0, "delta": 0.5}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    cells(
        [("none", "full"), ("full", "self"), ("self", "once"), ("once", "once again"), ("once", "none")],
        lambda cell: cell[1] in ("full", "self", "once again"),
        "-".join,
    ),
)
def test_all_changes_the_guidance_of_frames_in_flight(
    old: str, new: str, engine: Build, sd: Any, frames: torch.Tensor
) -> None:
    outputs = run(engine(guidance=GUIDANCES[old][0]), frames, guidance=GUIDANCES[new][0])
    clean = clean_latents(sd, frames)
    for i in range(len(frames)):
        steps = updated(i, steps_of(sd, **GUIDANCES[old][1]), **GUIDANCES[new][1])
        close(outputs[i], lcm(sd, clean[i], steps))


def test_a_new_negative_prompt_is_asked_again_for_frames_in_flight(
    engine: Build, sd: Any, frames: torch.Tensor
) -> None:
    outputs = run(engine(guidance=OneTimeNegative(1.5)), frames, negative_prompt="a dog")
    clean = clean_latents(sd, frames)
    for i in range(len(frames)):
        steps = updated(i, steps_of(sd, guidance="once", scale=1.5), negative=text(sd, "a dog"))
        first = next((s for s in range(3) if i + s == CHANGE), None)
        if first is not None:
            steps[first] = replace(steps[first], new_anchor=True)
        close(outputs[i], lcm(sd, clean[i], steps))


@pytest.mark.slow
@pytest.mark.parametrize(
    "indices",
    [
        (5, 20, 35, 45),
        (20, 40),
        (5,),
        *(
            pytest.param(other, marks=pytest.mark.exhaustive)
            for other in ((10, 20, 45), (15, 20, 45), (0, 5, 15, 25, 35, 48), (30,))
        ),
    ],
    ids=str,
)
def test_all_lets_frames_in_flight_join_new_stages(
    indices: tuple[int, ...], engine: Build, sd: Any, frames: torch.Tensor
) -> None:
    outputs = run(engine(), frames, timestep_indices=indices)
    clean, new = clean_latents(sd, frames), noises(2, len(indices), 1, (4, 4, 4))
    grid = [999 - 20 * index for index in indices]
    prompt = text(sd, "a cat")
    for i in range(len(frames)):
        done = max(0, min(3, CHANGE - i))
        steps = steps_of(sd)[:done]
        if done < 3:
            reached = steps[-1].timestep if steps else 1000
            steps += [Step(t, new[k, 0], prompt) for k, t in enumerate(grid) if t < reached]
        close(outputs[i], lcm(sd, clean[i], steps))


def test_all_renoises_frames_in_flight_with_a_new_seed(engine: Build, sd: Any, frames: torch.Tensor) -> None:
    outputs = run(engine(), frames, seed=9)
    clean, new = clean_latents(sd, frames), noises(9, 3, 1, (4, 4, 4))
    for i in range(len(frames)):
        steps = [replace(step, noise=new[s, 0]) if i + s >= CHANGE else step for s, step in enumerate(steps_of(sd))]
        close(outputs[i], lcm(sd, clean[i], steps))


def test_many_updates_in_flight_account_for_every_frame(engine: Build, frames: torch.Tensor) -> None:
    stream = engine()
    outputs = []
    for i in range(24):
        stream.update(
            at="new" if i % 2 else "all",
            **CHANGES[i % len(CHANGES)] if "delta" not in CHANGES[i % len(CHANGES)] else {},
        )
        outputs += stream.push(frames[i % 6])
    outputs += stream.flush()
    assert [o.frame_id for o in outputs] == list(range(24))
    assert all(o.image.isfinite().all() for o in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["new", "all"])
def test_transition_over_frames(at: str, engine: Build, sd: Any, frames: torch.Tensor) -> None:
    outputs = run(engine(guidance=SelfNegative(1.0)), frames, at=at, transition=2, prompt="a dog", scale=2.0)
    clean, cat, dog = clean_latents(sd, frames), text(sd, "a cat"), text(sd, "a dog")

    def weight(tick: int) -> float:
        return min(1.0, max(0, tick - CHANGE + 1) / 2)

    for i in range(len(frames)):
        steps = []
        for s, step in enumerate(steps_of(sd, guidance="self")):
            tick = min(i + s, len(frames) - 1) if at == "all" else i  # flushing moves no transition on
            w = weight(tick)
            steps.append(replace(step, prompt=torch.lerp(cat, dog, w), scale=1 + w))
        close(outputs[i], lcm(sd, clean[i], steps))


@pytest.mark.parametrize("blend", ["linear", "slerp"])
def test_weighted_prompts(blend: str, engine: Build, sd: Any, frames: torch.Tensor) -> None:
    outputs = run(engine(prompt=[("a cat", 1), ("a dog", 3)], blend=blend), frames[:2])
    cat, dog = text(sd, "a cat"), text(sd, "a dog")
    prompt = 0.25 * cat + 0.75 * dog
    if blend == "slerp":
        angle = torch.acos((cat * dog).sum(-1) / cat.norm(dim=-1) / dog.norm(dim=-1)).unsqueeze(-1)
        unit = (torch.sin(0.25 * angle) * cat / cat.norm(dim=-1, keepdim=True)
                + torch.sin(0.75 * angle) * dog / dog.norm(dim=-1, keepdim=True)) / torch.sin(angle)  # fmt: skip
        length = 0.25 * cat.norm(dim=-1, keepdim=True) + 0.75 * dog.norm(dim=-1, keepdim=True)
        prompt = torch.where(angle > 1e-3, unit * length, prompt)
    clean = clean_latents(sd, frames)
    for i in range(2):
        close(outputs[i], lcm(sd, clean[i], [replace(s, prompt=prompt) for s in steps_of(sd)]))


def test_slerp_ends_and_parallel_vectors() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([[2.5, 2.5]]) / 2**0.5)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"nonsense": 1}, TypeError, "cannot update nonsense: live fields are .*prompt"),
        ({"height": 64}, TypeError, "cannot update height"),
        ({"at": "later"}, ValueError, "at must be one of all, new; got 'later'"),
        ({"transition": -1}, ValueError, "transition must be an integer >= 0; got -1"),
        ({"timestep_indices": (40, 10)}, ValueError, r"must ascend.*\(40, 10\)"),
        ({"timestep_indices": (10, 60)}, ValueError, r"must lie in 0 to 49, not \(10, 60\)"),
        ({"strength": 1.5}, ValueError, r"strength must be in \(0, 1\], not 1.5"),
        ({"strength": 0.02, "num_steps": 4}, ValueError, "num_steps=4 does not fit"),
        ({"delta": 0.5}, TypeError, "NoGuidance has no delta"),
        ({"guidance": SelfNegative(), "delta": float("nan")}, ValueError, "delta must be a finite number; got nan"),
        ({"guidance": "self"}, TypeError, "guidance must be a Guidance object, not 'self'"),
        ({"prompt": 3}, TypeError, "a prompt is text"),
        ({"prompt": {"a": -1.0}}, ValueError, "prompt weights must be finite, not negative"),
        ({"prompt": {"a": float("inf")}}, ValueError, r"prompt weights must be finite.*not \[inf\]"),
        ({"lora_scale": {"style": float("nan")}}, ValueError, r"lora_scale of 'style' must be a number in .*got nan"),
        ({"seed": 1.5}, TypeError, "a seed is an integer, a mapping of seed to weight, or pairs, not 1.5"),
        ({"similarity": 0.9}, TypeError, "similarity must be a SimilarityFilter object, not 0.9"),
        ({"output_type": "jpeg"}, ValueError, "output_type must be one of pil, np, pt, latent; got 'jpeg'"),
    ],
)
def test_a_refused_update_changes_nothing(
    change: dict[str, Any], error: type[Exception], match: str, engine: Build, frames: torch.Tensor, plain: Any
) -> None:
    stream, unchanged = engine(), plain()
    config = stream.config
    outputs = []
    for i, frame in enumerate(frames):
        if i == CHANGE:
            with pytest.raises(error, match=match):
                stream.update(prompt=change.pop("prompt", "a dog"), **change)
        outputs += stream.push(frame)
    outputs += stream.flush()
    assert stream.config == config
    assert all(torch.equal(o.image, unchanged[o.frame_id]) for o in outputs)


def test_self_negative_refuses_text_to_image(engine: Build) -> None:
    stream = engine()
    stream.push()
    with pytest.raises(ValueError, match="text-to-image frames are in flight: flush, or use at='new'"):
        stream.update(guidance=SelfNegative())
    stream.update(guidance=SelfNegative(), at="new")
    with pytest.raises(ValueError, match="SelfNegative needs an input picture"):
        stream.push()
    assert [o.frame_id for o in stream.flush()] == [0]


def test_filter_and_output_type_change_live(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(timestep_indices=(30,))
    assert isinstance(stream.push(frames[0])[0].image, torch.Tensor)
    stream.update(similarity=SimilarityFilter(0.5, max_skip=100), output_type="pil")
    assert stream.push(frames[0])[0].image.size == (32, 32)  # nothing of this kind to show yet: it is not skipped
    assert stream.push(frames[0])[0].skipped
    stream.update(similarity=None)
    assert not stream.push(frames[0])[0].skipped


def lora(pipe: Any) -> Any:
    """The pipeline with a LoRA that changes its pictures."""
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.unet.add_adapter(config, adapter_name="style")
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data *= 3
    return pipe


@pytest.mark.slow
def test_lora_loaded_scaled_and_fused_while_the_stream_runs(engine: Build, frames: torch.Tensor, plain: Any) -> None:
    unstyled = plain()
    pipe = stream_pipelines.sd()
    stream = engine(pipe)
    first = stream.push(frames[0]) + stream.flush()
    close(first[0].image, unstyled[0])
    lora(pipe)
    stream.reset()
    styled = run(stream, frames)
    assert (styled[0] - unstyled[0]).abs().max() > 1e-2
    again = run(engine(pipe, stream_batch=False), frames)
    for i in range(len(frames)):
        close(styled[i], again[i])
    stream.update(lora_scale={"style": 0.0})
    stream.reset()
    unscaled = run(stream, frames)
    close(unscaled[5], unstyled[5])
    stream.update(lora_scale={"style": 1.0})
    pipe.fuse_lora(adapter_names=["style"])
    stream.reset()
    close(run(stream, frames)[5], styled[5])


@pytest.mark.parametrize("second", [(20, 45), (5, 45), (30,), (49,), (10, 25, 40)], ids=str)
def test_of_two_updates_between_frames_the_second_counts(
    second: tuple[int, ...], engine: Build, frames: torch.Tensor
) -> None:
    once, twice = engine(timestep_indices=(0, 30)), engine(timestep_indices=(0, 30))
    shown: list[list[torch.Tensor]] = []
    for stream in (once, twice):
        outputs = stream.push(frames[0])
        if stream is twice:
            stream.update(timestep_indices=(15, 35))
        stream.update(timestep_indices=second)
        shown.append([o.image for o in [*outputs, *stream.push(frames[1]), *stream.flush()]])
    assert all(torch.equal(a, b) for a, b in zip(*shown, strict=True))


@pytest.mark.parametrize("at", ["new", "all"])
def test_a_transition_may_end_without_guidance(at: str, engine: Build, frames: torch.Tensor) -> None:
    stream = engine(guidance=FullGuidance(2.0))
    outputs = stream.push(frames[0])
    stream.update(scale=1.0, transition=2, at=at)
    outputs += [o for frame in frames[1:] for o in stream.push(frame)] + stream.flush()
    assert [o.frame_id for o in outputs] == list(range(6))
    assert torch.equal(outputs[5].image, run(engine(guidance=FullGuidance(1.0)), frames)[5])


def test_a_transition_counts_frames_not_buffers(engine: Build, frames: torch.Tensor) -> None:
    settings = {"timestep_indices": (30,), "shared_noise": True}
    one, two = engine(**settings), engine(**settings, frame_buffer=2)
    shown: list[list[torch.Tensor]] = []
    for stream in (one, two):
        stream.update(prompt="a dog", transition=4)
        shown.append([o.image for frame in frames for o in stream.push(frame)])
    for i in (1, 3, 4, 5):  # the last ones of their buffers, and those behind the transition
        close(shown[1][i], shown[0][i])


def test_other_changes_do_not_end_a_transition(engine: Build, frames: torch.Tensor) -> None:
    plain, busy = engine(), engine()
    shown: list[list[torch.Tensor]] = []
    for stream in (plain, busy):
        stream.push(frames[0])
        stream.update(prompt="a dog", transition=4, at="new")
        outputs = stream.push(frames[1])
        if stream is busy:
            stream.update(similarity=SimilarityFilter(1.0))
        shown.append([o.image for frame in frames[2:] for o in [*outputs, *stream.push(frame)]])
    assert all(torch.equal(a, b) for a, b in zip(*shown, strict=True))


def test_guidance_by_the_picture_goes_on_where_something_else_changes(engine: Build) -> None:
    settings = engine()._course.settings
    course, end = Course(settings), replace(settings, image_guidance=3.0)
    course.turn(end, 4, "new")
    course.advance(2, "linear")
    assert course.settings.image_guidance == 2.0
    course.turn(replace(end, guidance=FullGuidance(2.0)), 0, "new")
    assert course.settings.image_guidance == 2.0
    course.advance(1, "linear")
    assert course.settings.image_guidance == 2.5


@pytest.mark.parametrize("change", [{"seed": 5}, {"timestep_indices": (20,)}, {"guidance": FullGuidance(2.0)}])
@pytest.mark.parametrize("at", ["all", "new"])
def test_what_is_on_its_way_goes_on_where_something_else_changes(
    change: dict[str, Any], at: str, engine: Build, frames: torch.Tensor
) -> None:
    changed, all_along = engine(timestep_indices=(30,)), engine(**{"timestep_indices": (30,), **change})
    shown: list[list[torch.Tensor]] = []
    for stream in (changed, all_along):
        stream.update(prompt="a dog", transition=4, at=at)
        stream.push(frames[0])
        if stream is changed:
            stream.update(**change, at=at)
        shown.append([o.image for frame in frames[1:] for o in stream.push(frame)])
    assert all(torch.equal(a, b) for a, b in zip(*shown, strict=True))


def test_self_negative_refuses_text_to_image_frames_that_wait(engine: Build) -> None:
    stream = engine(frame_buffer=2)
    stream.push()
    for at in ("all", "new"):
        with pytest.raises(ValueError, match="text-to-image frames wait for their buffer to fill: flush"):
            stream.update(guidance=SelfNegative(), at=at)
    assert [o.frame_id for o in stream.flush()] == [0]


def test_lora_loaded_between_two_engines(engine: Build, frames: torch.Tensor) -> None:
    pipe = stream_pipelines.sd()
    with engine(pipe) as first:
        first.push(frames[0])
        lora(pipe)
        with engine(pipe) as second:
            styled = run(second, frames)
            first.update(cache=DeepCache(2))
            first.reset()
            first.push(frames[0])
    assert not any(hooks_of(module) for module in pipe.unet.modules())
    pipe.unet.disable_adapters()
    assert (run(engine(pipe), frames)[5] - styled[5]).abs().max() > 1e-2


def test_a_negative_prompt_without_effect_is_said_once(engine: Build, caplog: pytest.LogCaptureFixture) -> None:
    stream = engine(negative_prompt="blurry", guidance=NoGuidance())
    stream.update(seed=3)
    assert [record.getMessage() for record in caplog.records] == [
        "the negative prompt 'blurry' changes nothing under NoGuidance(): "
        "OneTimeNegative reads it, and FullGuidance at other scales than 1"
    ]
    stream.update(guidance=OneTimeNegative(1.5))
    stream.update(guidance=SelfNegative(1.5))
    assert len(caplog.records) == 2
    stream.update(guidance=FullGuidance(1.0))
    stream.update(negative_prompt_embeds=torch.zeros(1, 77, 32))
    said = [record.getMessage().partition(":")[0] for record in caplog.records[2:]]
    assert said == [
        "the negative prompt 'blurry' changes nothing under FullGuidance(scale=1.0)",
        "the negative prompt of negative_prompt_embeds changes nothing under FullGuidance(scale=1.0)",
    ]
    stream.close()
