"""Pictures of a camera become chunks as a plain loop makes them of their latents, with less noise where they move."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from causal_reference import FAMILIES, SIDE, embedded, one_pass, sights, video_pipe
from test_video_engine import scheduler_of

from diffaccel import CausalContext, MotionNoise, SelfNegative, VideoEngine
from diffaccel.sampling.samplers import DDIM
from diffaccel.video.codec import WanCodec

CHUNK, STEPS, STRENGTH = 2, 5, 0.8
NOISE = MotionNoise(full=0.5)


def engine_of(name: str = "wan", **settings: Any) -> VideoEngine:
    pipe = video_pipe(FAMILIES[name], scheduler_of(FAMILIES[name]))
    own = {"prompt": "a cat", "chunk": CHUNK, "num_steps": STEPS, "height": 64, "width": 64, "output_type": "latent"}
    own |= {"strength": STRENGTH, "motion": NOISE, "context": CausalContext(window=3)}
    own |= {"sampler": DDIM()} if name == "motion" else {}
    return VideoEngine(pipe, **{**own, **settings})


def pictures(chunks: int) -> list[torch.Tensor]:
    """Chunks of pictures ``(CHUNK, 3, 64, 64)`` in [0, 1] that move ever more."""
    base = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    moved = [base.lerp(1 - base, (k / 16) ** 2) for k in range(CHUNK * chunks)]
    return list(torch.stack(moved).split(CHUNK))


def strengths(clip: Sequence[torch.Tensor]) -> list[float]:
    """What each chunk begins at, written plainly."""
    found, before, last = [], STRENGTH, None
    for chunk in clip:
        scaled = [frame.double().numpy() * 2 - 1 for frame in chunk]
        pairs = pairwise(scaled if last is None else [last, *scaled])
        most = max(float(np.sqrt(((b - a) ** 2).mean())) for a, b in pairs)
        before = 0.9 * (STRENGTH - 0.2 * min(1.0, most / 0.5)) + 0.1 * before
        found, last = [*found, before], scaled[-1]
    return found


class Levels:
    """Noise levels of a network's scheduler, written plainly: signal, noise and what a step makes of a prediction."""

    def __init__(self, name: str) -> None:
        self.flow, scheduler = name != "motion", scheduler_of(FAMILIES[name])
        grid = scheduler
        if not self.flow:
            grid = diffusers.DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="linspace")
        grid.set_timesteps(STEPS)
        self.times = [float(t) for t in grid.timesteps]
        self.signal = None if self.flow else grid.alphas_cumprod.double().sqrt()

    def of(self, time: float) -> tuple[float, float]:
        if self.flow:
            return 1 - time / 1000, time / 1000
        alpha = float(self.signal[int(time)]) if time >= 0 else 1.0
        return alpha, (1 - alpha**2) ** 0.5

    def step(self, x: torch.Tensor, made: torch.Tensor, time: float, then: float | None) -> torch.Tensor:
        alpha, sigma = self.of(time)
        if self.flow:
            return x + ((0 if then is None else then / 1000) - sigma) * made
        clean, noise = alpha * x - sigma * made, sigma * x + alpha * made
        # On an uneven grid DDIMScheduler steps past the next point; an entry beside the grid steps to a point.
        end, rest = self.of(time - 1000 // STEPS if time in self.times or then is None else then)
        return end * clean + rest * noise

    def course(self, strength: float) -> list[float]:
        entry = strength * 1000 if self.flow else float(round(strength * 1000))
        return [entry, *(t for t in self.times if t < 1000 * (STRENGTH - 0.2))]


def encoded(engine: VideoEngine, chunk: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = engine.pipe.vae.encode(chunk * 2 - 1).latents
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "motion"])
def test_pushed_pictures_are_painted_as_a_plain_loop_does(name: str) -> None:
    engine, clip, levels = engine_of(name), pictures(3), Levels(name)
    clean = torch.zeros(1, 4, 0, SIDE, SIDE)
    numbering = "cyclic" if name == "motion" else "relative"
    begun = strengths(clip)
    assert begun[0] > begun[1] > begun[2] > 0.6
    for k, (chunk, strength) in enumerate(zip(clip, begun, strict=True)):
        made = engine.push(chunk)
        assert made is not None
        times = levels.course(strength)
        assert len(times) == len(levels.course(0.61)) >= 3
        alpha, sigma = levels.of(times[0])
        x = (alpha * encoded(engine, chunk) + sigma * engine._video.noise(k, CHUNK)).transpose(0, 1)[None]
        for time, then in zip(times, [*times[1:], None], strict=True):
            told = torch.cat([torch.zeros(clean.shape[2]), torch.full((CHUNK,), time)])
            plan = sights([CHUNK] * (k + 1), 3, 0, numbering)
            whole = one_pass(FAMILIES[name], torch.cat([clean, x], 2), told, embedded("a cat"), plan)
            x = levels.step(x, whole[:, :, -CHUNK:], time, then)
        clean = torch.cat([clean, x], 2)
        assert torch.allclose(made.latents.transpose(0, 1)[None], x, atol=1e-4 * float(x.abs().max()))


def test_a_stream_batch_of_pushed_pictures_is_denoised_at_once_under_a_causal_mask() -> None:
    engine, clip, levels = engine_of(stream_batch=True), pictures(5), Levels("wan")
    found = [chunk for each in clip if (chunk := engine.push(each)) is not None]
    courses = [levels.course(s) for s in strengths(clip)]
    stages = len(courses[0])
    assert len(found) == 5 - stages + 1
    assert engine.report().chunks_in_flight == stages - 1
    found += list(engine.drain())
    assert [chunk.index for chunk in found] == list(range(5))
    assert engine.report().chunks_in_flight == engine.report().context_calls == 0
    x = torch.cat([
        (1 - c[0] / 1000) * encoded(engine, chunk) + c[0] / 1000 * engine._video.noise(k, CHUNK)
        for k, (chunk, c) in enumerate(zip(clip, courses, strict=True))
    ]).transpose(0, 1)[None]  # fmt: skip
    plan = sights([CHUNK] * 5, 3, 0, "relative")
    for stage in range(stages):
        now, then = (torch.tensor([(*c, 0.0)[s] for c in courses]).repeat_interleave(CHUNK) for s in (stage, stage + 1))
        made = one_pass(FAMILIES["wan"], x, now, embedded("a cat"), plan)
        x = x + ((then - now) / 1000)[:, None, None] * made
    whole = torch.cat([chunk.latents for chunk in found]).transpose(0, 1)[None]
    assert torch.allclose(whole, x, atol=1e-4 * float(x.abs().max()))


def test_strength_alone_begins_all_alike_and_self_negatives_push_away_from_the_pictures() -> None:
    engine = engine_of(motion=None, guidance=SelfNegative(1.2))
    assert engine.push(pictures(1)[0]) is not None
    assert engine.report().network_calls == 4  # the last 0.8 of five steps
    assert engine.next().index == 1  # goes on from its last frame


def test_what_was_raised_is_gone_on_from() -> None:
    whole, engine, clip = engine_of(), engine_of(), pictures(2)
    expected = [whole.push(each).latents for each in clip]
    calls = {"left": 0}

    def fail(*_: Any) -> None:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt

    engine.pipe.transformer.blocks[1].register_forward_pre_hook(fail)
    found = []
    for number, each in enumerate(clip):
        calls["left"] = 1 + number  # before the pictures are in flight, and after
        with pytest.raises(KeyboardInterrupt):
            engine.push(each)
        with pytest.raises(RuntimeError, match=r"call next\(\) first"):
            engine.push(each)
        found.append(engine.next().latents)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_pictures_that_cannot_be_pushed_are_refused() -> None:
    engine, clip = engine_of(), pictures(1)[0]
    with pytest.raises(ValueError, match="push 2 pictures at once, which is a chunk of 2 latent frames here; got 1"):
        engine.push(clip[:1])
    with pytest.raises(ValueError, match="there are no pictures"):
        engine.push([])
    with pytest.raises(ValueError, match="pushed pictures need strength below 1"):
        engine_of(strength=1.0, motion=None).push(clip)
    with pytest.raises(ValueError, match="leave strength at 1, or push pictures"):
        engine_of(stream_batch=True).next()
    filling = engine_of(stream_batch=True)
    filling.push(clip)
    with pytest.raises(ValueError, match="cannot change while chunks are in flight"):
        filling.update(strength=0.4, motion=None)
    with pytest.raises(ValueError, match="less must be"):
        MotionNoise(less=2.0)
    assert engine.push(clip) is not None


def wan_vae() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 4, latents_std=[0.8] * 4,
    ).eval()  # fmt: skip


def test_a_video_goes_on_from_the_last_picture_that_was_given() -> None:
    family, vae, clip = FAMILIES["wan"], wan_vae(), torch.rand(8, 3, 32, 32)
    settings: dict[str, Any] = {"prompt": "a cat", "chunk": 1, "num_steps": 1, "height": 32, "width": 32, "vae": vae}
    pipe = video_pipe(family, diffusers.FlowMatchEulerDiscreteScheduler())
    last = VideoEngine(pipe, given=clip, **settings)._video.history.last
    expected = VideoEngine(pipe, given=clip[3:], **settings)._video.history.last  # one picture, and four
    assert last is not None
    assert expected is not None
    assert torch.equal(last, expected)


def test_wans_autoencoder_takes_a_stream_in_pieces() -> None:
    vae = wan_vae()
    clip, codec = torch.rand(13, 3, 32, 32) * 2 - 1, WanCodec(vae)
    with torch.no_grad():
        whole = vae.encode(clip.transpose(0, 1)[None]).latent_dist.mode()
    expected = ((whole - 0.1) / 0.8)[0].transpose(0, 1)
    assert not codec.begun
    found = torch.cat([codec.encode(part) for part in clip.split([5, 8])])
    assert codec.begun
    assert torch.allclose(found, expected, atol=1e-5)
    codec.restart()
    assert torch.allclose(codec.encode(clip[:1]), expected[:1], atol=1e-5)
