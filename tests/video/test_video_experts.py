"""Two transformers that take turns by noise level: each sees clean frames through its own attentions."""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from causal_reference import FAMILIES, Family, embedded, one_pass, sights, video_pipe, wan
from diffusers import FlowMatchEulerDiscreteScheduler

from diffaccel import CausalContext, DeepCache, FullGuidance, IntervalCache, VideoEngine
from diffaccel.networks import UnsupportedModelError

STEPS, CHUNK, BOUNDARY = 4, 2, 0.8


def low() -> Any:
    """Another network of the same shape."""
    model = wan()
    for weight in model.parameters():
        weight.data *= 0.9
    return model


HIGH, LOW = FAMILIES["wan"], replace(FAMILIES["wan"], build=low)


def scheduler() -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def engine_of(ratio: float | None = BOUNDARY, **settings: Any) -> VideoEngine:
    pipe = video_pipe(HIGH, scheduler())
    pipe.transformer_2, pipe.config = low(), SimpleNamespace(expand_timesteps=False, boundary_ratio=ratio)
    chosen = {"prompt": "a cat", "chunk": CHUNK, "num_steps": STEPS, "height": 64, "width": 64, "output_type": "latent"}
    return VideoEngine(pipe, **{**chosen, "context": CausalContext(window=3), **settings})


def latents_of(engine: VideoEngine, chunks: int) -> torch.Tensor:
    return torch.cat([chunk.latents for chunk in islice(engine, chunks)]).transpose(0, 1)[None]


def predicted(frames: torch.Tensor, times: torch.Tensor, sizes: list[int], scale: float = 2.0) -> torch.Tensor:
    """All frames in one pass through the network whose turn it is at the noise of the last one."""
    family: Family = HIGH if times[-1] >= BOUNDARY * 1000 else LOW
    plan = sights(sizes, 3, 0, "relative")
    found, negative = (one_pass(family, frames, times, embedded(text), plan) for text in ("a cat", ""))
    return negative + scale * (found - negative)


def test_a_video_of_two_experts_is_that_of_a_plain_loop() -> None:
    engine = engine_of(guidance=FullGuidance(2.0))
    found, clean = latents_of(engine, 3), torch.zeros(1, 4, 0, 8, 8)
    for k in range(3):
        grid, x = scheduler(), engine._video.noise(k, CHUNK).transpose(0, 1)[None]
        grid.set_timesteps(STEPS)
        turns = [bool(t >= BOUNDARY * 1000) for t in grid.timesteps]
        assert turns == [True, True, False, False]
        for t in grid.timesteps:
            times = torch.cat([torch.zeros(clean.shape[2]), t.expand(CHUNK)])
            made = predicted(torch.cat([clean, x], 2), times, [CHUNK] * (k + 1))[:, :, -CHUNK:]
            x = grid.step(made, t, x).prev_sample
        clean = torch.cat([clean, x], 2)
    assert torch.allclose(found, clean, atol=1e-4 * float(clean.abs().max()))
    report = engine.report()
    assert (report.network_calls, report.context_calls, report.context_frames) == (3 * STEPS, 2 * 2, 3)


def test_a_stream_batch_of_two_experts_is_a_whole_video_denoised_at_once() -> None:
    engine = engine_of(guidance=FullGuidance(2.0), stream_batch=True)
    found = latents_of(engine, 3)
    x = torch.cat([engine._video.noise(k, CHUNK) for k in range(3)]).transpose(0, 1)[None]
    grid = scheduler()
    grid.set_timesteps(STEPS)
    for t in grid.timesteps:
        x = grid.step(predicted(x, t.expand(x.shape[2]), [CHUNK] * 3), t, x).prev_sample
    assert torch.allclose(found, x, atol=1e-4 * float(x.abs().max()))


def test_without_a_boundary_the_first_one_does_it_all() -> None:
    engine = engine_of(ratio=None)
    latents_of(engine, 2)
    assert engine.report().context_calls == 1


def test_caches_compute_where_the_other_expert_takes_over() -> None:
    caches = (None, IntervalCache(1), IntervalCache(2))
    plain, exact, reusing = (engine_of(0.9, num_steps=6, cache=cache) for cache in caches)
    expected, found, other = (latents_of(engine, 2) for engine in (plain, exact, reusing))
    assert torch.equal(found, expected)
    assert not torch.equal(other, expected)
    assert reusing.report().replayed_rows == 2 * 2  # the second step of each expert, and no last one


def test_detached_experts_are_as_they_were_and_an_update_goes_on() -> None:
    engine = engine_of()
    latents, words = torch.zeros(1, 4, 2, 8, 8), embedded("a cat")
    nets = engine.pipe.transformer, engine.pipe.transformer_2
    latents_of(engine, 1)
    engine.update(num_steps=2, prompt="a dog")
    assert latents_of(engine, 1).isfinite().all()
    engine.close()
    for net, build in zip(nets, (wan, low), strict=True):
        given = latents, torch.tensor([500]), words
        assert torch.equal(net(*given).sample, build()(*given).sample)


def test_what_two_experts_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="each of two transformers needs its own keys and values: leave commit out"):
        engine_of(context=CausalContext(commit="last-step"))
    with pytest.raises(UnsupportedModelError, match="DeepCache needs a UNet"):
        engine_of(cache=DeepCache(2))
    pipe = engine_of().pipe
    pipe.transformer_2._compiled_call_impl = lambda *_: None
    with pytest.raises(TypeError, match="the transformer_2 was compiled as a whole"):
        VideoEngine(pipe, prompt="a cat", height=64, width=64)
