"""The stream batch equals one frame at a time, and an independent reference written from the papers."""

from itertools import product
from typing import Any

import pytest
import stream_pipelines
import stream_reference
import torch
from cells import cells
from stream_pipelines import Build

from diffaccel.sampling.guidance import FullGuidance, Guidance, NoGuidance, OneTimeNegative, SelfNegative
from diffaccel.sampling.samplers import LCM, TCD, Euler, EulerAncestral
from diffaccel.stream.engine import StreamEngine

GUIDANCES = [NoGuidance(), FullGuidance(1.8), SelfNegative(1.4, 0.5), OneTimeNegative(1.6, 0.7)]
NAMES = {NoGuidance: "none", FullGuidance: "full", SelfNegative: "self", OneTimeNegative: "once"}
SAMPLERS = [LCM(), TCD(), TCD(0.0), Euler(), EulerAncestral()]
STAGES = {1: (30,), 2: (20, 40), 3: (10, 25, 40), 4: (5, 15, 30, 45)}


def run(engine: StreamEngine, frames: torch.Tensor) -> dict[int, torch.Tensor]:
    """Every finished frame by id."""
    return {o.frame_id: o.image for o in engine.stream(frames)}


def same(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for i in a:
        close(a[i], b[i])


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize(
    ("stages", "frame_buffer", "guidance"),
    cells(
        product((1, 2, 3, 4), (1, 2, 3), GUIDANCES),
        lambda cell: cell[:2] == ((1, 3), (2, 2), (3, 1), (4, 3))[GUIDANCES.index(cell[2])],
    ),
)
def test_equals_sequential_mode(
    stages: int, frame_buffer: int, guidance: Guidance, engine: Build, frames: torch.Tensor
) -> None:
    add_noise = (stages + frame_buffer + GUIDANCES.index(guidance)) % 2 == 0  # each value with every other setting
    settings = {
        "timestep_indices": STAGES[stages],
        "frame_buffer": frame_buffer,
        "guidance": guidance,
        "add_noise": add_noise,
    }
    same(run(engine(**settings), frames[:5]), run(engine(stream_batch=False, **settings), frames[:5]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "guidance"),
    cells(product(SAMPLERS, GUIDANCES), lambda cell: SAMPLERS.index(cell[0]) % 4 == GUIDANCES.index(cell[1])),
)
def test_equals_sequential_mode_with_every_sampler(
    sampler: Any, guidance: Guidance, engine: Build, frames: torch.Tensor
) -> None:
    settings = {"sampler": sampler, "guidance": guidance, "frame_buffer": 2}
    same(run(engine(**settings), frames[:5]), run(engine(stream_batch=False, **settings), frames[:5]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frame_buffer", "guidance"),
    cells(product((2, 3, 7), GUIDANCES), list(zip((2, 3, 7), GUIDANCES[1:], strict=True)).__contains__),
)
def test_shared_noise_gives_the_pictures_of_a_buffer_of_one(
    frame_buffer: int, guidance: Guidance, engine: Build, frames: torch.Tensor
) -> None:
    sampler = (LCM(), TCD(), EulerAncestral(), Euler())[GUIDANCES.index(guidance)]
    one, own, shared = (
        run(engine(guidance=guidance, sampler=sampler, **buffer), frames[:5])
        for buffer in ({}, {"frame_buffer": frame_buffer}, {"frame_buffer": frame_buffer, "shared_noise": True})
    )
    same(shared, one)
    assert (own[1] - one[1]).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "sana", "pixart", "z_image"])
def test_equals_sequential_mode_on_every_family(name: str, engine: Build, frames: torch.Tensor) -> None:
    pipe = getattr(stream_pipelines, name)()
    settings = {"guidance": OneTimeNegative(1.6), "frame_buffer": 2, "prompt": "a red cat", "negative_prompt": "a dog"}
    same(run(engine(pipe, **settings), frames[:3]), run(engine(pipe, stream_batch=False, **settings), frames[:3]))


@pytest.mark.parametrize(
    ("stages", "guidance", "add_noise", "prediction_type"),
    cells(
        product((1, 3), GUIDANCES, (True, False), ("epsilon", "v_prediction", "sample")),
        lambda cell: (
            (cell[0], *cell[2:])
            == ((1, True, "epsilon"), (3, False, "v_prediction"), (3, True, "sample"), (3, True, "epsilon"))[
                GUIDANCES.index(cell[1])
            ]
        ),
    ),
)
def test_equals_independent_reference(
    stages: int, guidance: Guidance, add_noise: bool, prediction_type: str, engine: Build, frames: torch.Tensor
) -> None:
    pipe = stream_pipelines.sd(prediction_type=prediction_type)
    settings = {"timestep_indices": STAGES[stages], "frame_buffer": 2, "guidance": guidance, "add_noise": add_noise}
    outputs = run(engine(pipe, **settings), frames[:3])
    noise = stream_reference.noises(2, stages, 2, (4, 4, 4))
    clean = stream_reference.clean_latents(pipe, frames[:3])
    prompt, negative = stream_reference.text(pipe, "a cat"), stream_reference.text(pipe, "blurry")
    scale, delta = getattr(guidance, "scale", 1.0), getattr(guidance, "delta", 1.0)
    for i, output in outputs.items():
        steps = [
            stream_reference.Step(
                999 - 20 * index, noise[k, i % 2], prompt, negative, NAMES[type(guidance)], scale, delta
            )
            for k, index in enumerate(STAGES[stages])
        ]
        close(output, stream_reference.lcm(pipe, clean[i], steps, add_noise=add_noise))


def test_one_time_negative_with_one_stage_equals_full_guidance(engine: Build, frames: torch.Tensor) -> None:
    settings = {"timestep_indices": (30,)}
    same(
        run(engine(guidance=OneTimeNegative(1.7, 1.0), **settings), frames[:3]),
        run(engine(guidance=FullGuidance(1.7), **settings), frames[:3]),
    )


@pytest.mark.parametrize("guidance", cells(GUIDANCES, GUIDANCES[2:].__contains__))
def test_a_row_of_a_batch_equals_that_row_alone(guidance: Guidance, engine: Build, frames: torch.Tensor) -> None:
    batch = run(engine(guidance=guidance), frames[:4])
    for i in range(4):
        alone = engine(guidance=guidance)
        close(batch[i], run(alone, frames[i : i + 1])[0])


def test_same_seed_same_pictures_bit_for_bit(engine: Build, frames: torch.Tensor) -> None:
    first, second = run(engine(), frames[:5]), run(engine(), frames[:5])
    assert all(torch.equal(first[i], second[i]) for i in first)
    other = run(engine(seed=3), frames[:1])
    assert not torch.allclose(first[0], other[0], atol=1e-2)


def test_a_changed_frame_changes_no_earlier_output(engine: Build, frames: torch.Tensor) -> None:
    changed = frames[:6].clone()
    changed[3] = 1 - changed[3]
    before, after = run(engine(), frames[:6]), run(engine(), changed)
    for i in range(6):
        if i < 3:
            assert torch.equal(before[i], after[i])
        elif i == 3:
            assert not torch.allclose(before[i], after[i], atol=1e-2)
        else:
            close(after[i], before[i])


def test_text_to_image_draws_are_seeded(engine: Build) -> None:
    def draw(seed: int) -> list[torch.Tensor]:
        return [o.image for o in engine(seed=seed).stream([None] * 4)]

    first, again, other = draw(2), draw(2), draw(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[0], other[0], atol=1e-2)
    assert not torch.allclose(first[0], first[1], atol=1e-2)


def test_own_noise_of_a_picture_replaces_the_first_stage_noise(engine: Build, frames: torch.Tensor) -> None:
    fixed = stream_reference.noises(2, 3, 1, (4, 4, 4))[0, 0]
    own = engine()
    outputs = own.push(frames[0], latents=fixed) + own.push(frames[1], latents=-fixed) + own.flush()
    plain = run(engine(), frames[:2])
    close(outputs[0].image, plain[0])
    assert not torch.allclose(outputs[1].image, plain[1], atol=1e-2)


def test_engines_on_one_pipe_do_not_touch_each_other(engine: Build, frames: torch.Tensor) -> None:
    settings = [{"seed": 1}, {"seed": 5, "guidance": OneTimeNegative(1.5), "timestep_indices": (20, 40)}]
    alone = [run(engine(**s), frames[:5]) for s in settings]
    engines = [engine(**s) for s in settings]
    outputs: list[dict[int, torch.Tensor]] = [{}, {}]
    for frame in frames[:5]:
        for k, e in enumerate(engines):
            outputs[k] |= {o.frame_id: o.image for o in e.push(frame)}
    for k, e in enumerate(engines):
        outputs[k] |= {o.frame_id: o.image for o in e.flush()}
        assert all(torch.equal(alone[k][i], outputs[k][i]) for i in alone[k])


@pytest.mark.parametrize(("guidance", "rows"), list(zip(GUIDANCES, (4, 8, 4, 5), strict=True)))
def test_network_rows_per_frame(guidance: Guidance, rows: int, engine: Build, frames: torch.Tensor) -> None:
    stream = engine(guidance=guidance, timestep_indices=STAGES[4])
    for frame in frames[:4]:
        stream.push(frame)
    before = stream.report()
    stream.push(frames[0])
    after = stream.report()
    assert (after.network_calls - before.network_calls, after.network_rows - before.network_rows) == (1, rows)


def test_strength_and_number_of_steps(engine: Build) -> None:
    assert engine(strength=1.0, num_steps=4)._course.settings.stages.timesteps == (999, 759, 499, 259)
    assert engine(strength=0.5, num_steps=2)._course.settings.stages.timesteps == (499, 259)


def test_a_buffer_that_is_not_full_draws_for_its_frames_alone(engine: Build) -> None:
    shown = []
    for buffer in ({}, {"frame_buffer": 3, "shared_noise": True}):
        stream = engine(**buffer)
        shown.append({o.frame_id: o.image for _ in range(3) for o in [*stream.push(), *stream.flush()]})
    same(shown[1], shown[0])
