"""Chunks of an engine equal a loop of one pass a step, written with diffusers' own schedulers."""

from itertools import islice
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from causal_reference import FAMILIES, SIDE, Family, embedded, one_pass, sights, video_pipe
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from diffaccel import (
    CausalContext,
    DeepCache,
    FullGuidance,
    MotionNoise,
    OneTimeNegative,
    SelfNegative,
    TGate,
    VideoEngine,
)
from diffaccel.networks.causal import causal_layout_of
from diffaccel.video.report import FramesNotFinite

STEPS, CHUNK = 2, 3


def scheduler_of(family: Family) -> Any:
    if family.component == "unet":
        return DPMSolverMultistepScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def engine_of(name: str, **settings: Any) -> VideoEngine:
    family = FAMILIES[name]
    pipe = video_pipe(family, scheduler_of(family))
    chosen = {"prompt": "a cat", "chunk": CHUNK, "num_steps": STEPS, "height": 64, "width": 64, "output_type": "latent"}
    return VideoEngine(pipe, **{**chosen, **settings})


def latents_of(engine: VideoEngine, chunks: int) -> torch.Tensor:
    """(1, C, frames, h, w)."""
    found = torch.cat([chunk.latents for chunk in islice(engine, chunks)])
    return found.transpose(0, 1)[None]


class Loop:
    """The same, plainly: every step looks at all clean frames anew."""

    def __init__(self, name: str, context: CausalContext, guidance: float = 1.0, steps: int = STEPS) -> None:
        self.family, self.context, self.guidance, self.steps = FAMILIES[name], context, guidance, steps
        self.numbering = context.numbering(causal_layout_of(self.family.build()))

    def predict(self, frames: torch.Tensor, times: torch.Tensor, sizes: list[int], text: str) -> torch.Tensor:
        plan = sights(sizes, self.context.window, self.context.sink, self.numbering)
        found = one_pass(self.family, frames, times, embedded(text), plan)
        if self.guidance == 1:
            return found
        negative = one_pass(self.family, frames, times, embedded(""), plan)
        return negative + self.guidance * (found - negative)

    def chunk(
        self, clean: torch.Tensor, sizes: list[int], noise: torch.Tensor, text: str, skip: int = 0
    ) -> torch.Tensor:
        """The next chunk behind clean frames (1, C, frames, h, w), which came in chunks of these sizes."""
        scheduler, past = scheduler_of(self.family), clean.shape[2]
        scheduler.set_timesteps(self.steps)
        x = noise.transpose(0, 1)[None]
        if skip:
            scheduler.set_begin_index(skip)
            sigma = scheduler.sigmas[skip]
            x = (1 - sigma) * clean[:, :, -1:] + sigma * x
        for t in scheduler.timesteps[skip:]:
            times = torch.cat([torch.zeros(past), t.expand(x.shape[2]).float()])
            found = self.predict(torch.cat([clean, x], 2), times, [*sizes, x.shape[2]], text)[:, :, past:]
            x = scheduler.step(found, t, x).prev_sample
        return x

    def video(self, engine: VideoEngine, chunks: int, text: str = "a cat") -> torch.Tensor:
        clean = torch.zeros(1, 4, 0, SIDE, SIDE)
        for k in range(chunks):
            made = self.chunk(clean, [CHUNK] * k, engine._video.noise(k, CHUNK), text)
            clean = torch.cat([clean, made], 2)
        return clean


@pytest.mark.slow
@pytest.mark.parametrize("name", ["motion", "joint", "latte", "wan"])
def test_a_video_is_that_of_a_plain_loop(name: str) -> None:
    context = CausalContext(window=4)
    engine = engine_of(name, context=context, guidance=FullGuidance(2.0))
    found, expected = latents_of(engine, 3), Loop(name, context, 2.0).video(engine, 3)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    report = engine.report()
    assert (report.chunks, report.pictures, report.network_calls, report.network_rows) == (3, 9, 6, 12)
    assert (report.context_calls, report.context_frames, report.replayed_rows) == (2, 4, 0)
    assert "3 chunks, 9 pictures" in str(report)


def test_given_frames_are_gone_on_from() -> None:
    context = CausalContext(window=4)
    pictures = [np.random.default_rng(k).random((64, 64, 3)) for k in range(5)]
    engine = engine_of("wan", context=context, given=pictures, strength=0.5)
    clean = engine._video.history._frames
    clean = torch.stack([clean[n][0] for n in range(5)], 1)[None]
    loop = Loop("wan", context)
    expected = loop.chunk(clean, [3, 2], engine._video.noise(0, CHUNK), "a cat", skip=1)
    chunk = engine.next()
    assert chunk.first == 5
    assert torch.allclose(chunk.latents.transpose(0, 1)[None], expected, atol=1e-4)
    assert engine.report().pictures == 3


@pytest.mark.parametrize("refresh", ["never", "prompt", "chunk"])
def test_a_new_prompt_reaches_kept_frames_as_the_context_says(refresh: Any) -> None:
    context = CausalContext(window=3, refresh=refresh)
    engine = engine_of("wan", context=context)
    clean = latents_of(engine, 2)
    engine.update(prompt="a dog")
    found = latents_of(engine, 1)
    seen = clean[:, :, 3:]  # all that the context is computed from
    anew = Loop("wan", context).chunk(seen, [CHUNK], engine._video.noise(2, CHUNK), "a dog")
    assert torch.allclose(found, anew, atol=1e-4) == (refresh != "never")


def test_a_context_that_is_computed_anew_before_every_chunk_forgets_older_frames() -> None:
    context = CausalContext(window=3, sink=1, refresh="chunk")
    engine = engine_of("wan", context=context)
    clean = latents_of(engine, 3)
    found = latents_of(engine, 1)
    seen = torch.cat([clean[:, :, :1], clean[:, :, 6:]], 2)  # the sink and the window
    loop = Loop("wan", CausalContext(window=None))
    assert torch.allclose(found, loop.chunk(seen, [1, 3], engine._video.noise(3, CHUNK), "a cat"), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["motion", "joint", "latte", "wan"])
def test_a_stream_batch_is_a_whole_video_denoised_at_once_under_a_causal_mask(name: str) -> None:
    context = CausalContext(window=4)
    engine = engine_of(name, context=context, stream_batch=True, guidance=FullGuidance(2.0))
    found = latents_of(engine, 4)
    assert engine.report().network_calls == 4 + STEPS - 1
    assert engine.report().chunks_in_flight == STEPS - 1
    loop, chunks = Loop(name, context, 2.0), 4
    x = torch.cat([engine._video.noise(k, CHUNK) for k in range(chunks)]).transpose(0, 1)[None]
    scheduler = scheduler_of(loop.family)
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        x = scheduler.step(loop.predict(x, t.expand(x.shape[2]), [CHUNK] * chunks, "a cat"), t, x).prev_sample
    assert torch.allclose(found, x, atol=1e-4 * float(x.abs().max()))


def test_given_frames_of_a_stream_batch_are_as_noisy_as_its_stages() -> None:
    pictures = [np.random.default_rng(k).random((64, 64, 3)) for k in range(3)]
    alone, engine = (engine_of("wan", stream_batch=True, given=given) for given in (None, pictures))
    assert not torch.allclose(latents_of(alone, 1), latents_of(engine, 1), atol=1e-2)
    assert engine.report().context_calls == STEPS


def test_the_last_step_can_stand_for_clean_frames() -> None:
    clean, engine = (engine_of("motion", context=CausalContext(commit=commit)) for commit in ("clean", "last-step"))
    expected, found = latents_of(clean, 3), latents_of(engine, 3)
    assert torch.equal(found[:, :, :3], expected[:, :, :3])
    assert not torch.equal(found[:, :, 3:], expected[:, :, 3:])
    assert (found - expected).abs().mean() < 0.5 * expected.abs().mean()
    assert engine.report().context_calls == 0


def test_what_raised_is_gone_on_from() -> None:
    whole, engine = engine_of("motion"), engine_of("motion")
    expected = latents_of(whole, 3)
    calls = {"left": 0}

    def fail(*_: Any) -> None:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt

    engine.pipe.unet.mid_block.register_forward_pre_hook(fail)
    found = []
    for chunk in range(3):
        for at in (1, 2):  # the call that keeps the frames before, and one of the steps
            calls["left"] = at
            with pytest.raises(KeyboardInterrupt):
                engine.next()
        calls["left"] = 0
        found.append(engine.next().latents)
        assert engine.report().chunks == chunk + 1
    assert torch.equal(torch.cat(found).transpose(0, 1)[None], expected)


def test_a_chunk_under_way_keeps_what_it_sees() -> None:
    engine, plain = engine_of("motion"), engine_of("motion")
    expected, found = latents_of(plain, 2), latents_of(engine, 1)

    def interrupted(*_: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    engine.on_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.next()
    engine.on_step = None
    with pytest.raises(ValueError, match=r"call next\(\) first"):
        engine.update(cache=DeepCache(interval=1))
    assert torch.equal(torch.cat([found, latents_of(engine, 1)], 2), expected)
    engine.update(cache=DeepCache(interval=1))


def test_a_refused_update_changes_nothing_and_reset_begins_again() -> None:
    engine, other = engine_of("wan"), engine_of("wan")
    expected = latents_of(other, 3)
    first = latents_of(engine, 2)
    for wrong, words in (
        ({"prompt": 7}, "a prompt is text"),
        ({"strenght": 0.5}, "did you mean strength"),
        ({"height": 32}, "cannot update height"),
        ({"num_steps": 0}, "num_steps must be an integer"),
        ({"cache": TGate()}, "cannot work in a stream"),
        ({"scale": 2.0}, "NoGuidance has no scale"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            engine.update(**wrong)
    assert torch.equal(torch.cat([first, latents_of(engine, 1)], 2), expected)
    engine.reset()
    assert torch.equal(latents_of(engine, 3), expected)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.next()


def test_guidance_and_cache_can_change_between_chunks() -> None:
    engine = engine_of("motion", negative_prompt="a dog")
    latents_of(engine, 2)
    engine.update(guidance=OneTimeNegative(1.5))
    latents_of(engine, 1)
    assert engine.report().context_calls == 1 + 2  # those of two chunks anew, now under both prompts
    engine.update(cache=DeepCache(interval=2), guidance=SelfNegative(1.2))
    latents_of(engine, 1)
    assert engine.report().replayed_rows == 1
    engine.update(num_steps=2, scale=1.5)
    assert latents_of(engine, 1).isfinite().all()


@pytest.mark.parametrize("guidance", [OneTimeNegative(1.5), FullGuidance(2.0)])
def test_prompts_of_any_length_follow_each_other(guidance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latte pads a prompt to the longest of a call: its kept projections are none of another length."""

    def encoded(text: str, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        return embedded(text).repeat(1, 2, 1)[:, : len(text.split())], None  # a token for each word

    def made() -> torch.Tensor:
        engine = engine_of("latte", guidance=guidance)
        monkeypatch.setattr(engine.pipe, "encode_prompt", encoded)
        engine.update(prompt="cat", negative_prompt="a bad dog")
        found = [latents_of(engine, 1)]
        for prompt in ("a cat that runs far away", "a"):
            engine.update(prompt=prompt)
            found.append(latents_of(engine, 1))
        return torch.cat(found, 2)

    kept = made()
    monkeypatch.setattr("diffaccel.stream.machine.prompt_parts", lambda _: [])
    assert torch.allclose(kept, made(), atol=1e-5)


def test_a_cache_that_always_computes_changes_nothing() -> None:
    plain, cached, reusing = (
        engine_of("motion", cache=cache, guidance=FullGuidance(2.0))
        for cache in (None, DeepCache(interval=1), DeepCache(interval=2))
    )
    expected, found, other = (latents_of(engine, 2) for engine in (plain, cached, reusing))
    assert torch.equal(found, expected)
    assert not torch.equal(other, expected)
    assert reusing.report().replayed_rows == 2 * 2  # the second step, two rows, two chunks


@pytest.mark.slow
def test_memory_is_known_before_and_stays_level(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("motion", "latte", "wan"):
        engine = engine_of(name, guidance=FullGuidance(2.0), context=CausalContext(window=4))
        latents_of(engine, 3)
        level = engine.report().context_bytes
        latents_of(engine, 3)
        assert engine.report().context_bytes == level
        assert sum(map(sum, engine._video.denoiser.planned_bytes((SIDE, SIDE)))) == level
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(MemoryError, match=r"free on cpu: give a smaller window"):
        engine_of("wan")


def test_a_video_keeps_no_note_of_each_call() -> None:
    engine = engine_of("wan", num_steps=1)
    latents_of(engine, 3)
    tally = engine._video.denoiser.denoisers[0]._machine.session.tally
    assert not tally._current
    assert len(tally.calls) <= 3  # kinds of calls, not calls


def test_frames_that_are_not_finite_stop_the_video() -> None:
    engine = engine_of("wan")
    latents_of(engine, 1)
    engine.pipe.transformer.proj_out.weight.data[:] = float("nan")
    for _ in range(2):
        with pytest.raises(FramesNotFinite, match=r"frames 3 to 5 are not finite"):
            engine.next()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"chunk": 5}, "window=4 is shorter than a chunk of 5"),
    ({"strength": 0}, "strength must be above 0"),
    ({"guidance": SelfNegative()}, "there is none: give frames"),
    ({"stream_batch": True, "cache": DeepCache(2)}, "leave cache out"),
    ({"motion": MotionNoise()}, "must be above it and below 1; got 1"),
    ({"context": CausalContext(commit="latest")}, "give stream_batch=True"),
    ({"context": CausalContext(commit="last-step"), "guidance": OneTimeNegative()}, "in the first one alone"),
    ({"stream_batch": True, "context": CausalContext(refresh="chunk")}, "leave refresh and commit out, or give"),
    ({"given": []}, "there are no pictures"),
    ({"seed": {3: 0.5, 8: 0.5}}, "seed must be an integer"),
    ({"height": 60}, "height must be a multiple of"),
    ({"context": 4}, "context must be a CausalContext"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG, ids=range(len(WRONG)))
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        engine_of("wan", **settings)


def test_pictures_come_out_as_asked() -> None:
    engine = engine_of("motion", output_type="pil")
    chunk = engine.next()
    assert [frame.size for frame in chunk.frames] == [(64, 64)] * CHUNK
    assert set(chunk.seconds) == {"context", "denoise", "decode"}


def test_calls_in_and_out_of_inference_mode_go_on_from_each_other() -> None:
    def chunks(modes: list[bool]) -> list[torch.Tensor]:
        engine, found = engine_of("latte", context=CausalContext(window=4)), []
        for mode in modes:
            with torch.inference_mode(mode):
                found.append(engine.next().latents.clone())
        return found

    plain = chunks([False] * 3)
    for modes in ([True, False, True], [False, True, False]):
        assert all(torch.equal(a, b) for a, b in zip(chunks(modes), plain, strict=True))
