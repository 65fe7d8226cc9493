"""Caches within a chunk's steps that decide by rows, prompts, noise levels and the length of a run."""

from typing import Any

import pytest
import torch
from causal_reference import SIDE
from test_video_engine import CHUNK, Loop, engine_of, latents_of, scheduler_of

from diffaccel import (
    Always,
    BlockCache,
    CausalContext,
    ControlCache,
    DeltaCache,
    EasyCache,
    FullGuidance,
    IntervalCache,
    PerPrompt,
    SeaFilter,
    Steps,
    TeaCache,
    TokenReduction,
    Uniform,
    UnsupportedModelError,
)

STEPS, CHUNKS = 6, 2
FULL = FullGuidance(2.0)


class SkippingLoop(Loop):
    """A plain loop in which each row leaves the network out as EasyCache's paper says, anew in every chunk."""

    threshold, skipped = 0.25, 0

    def chunk(self, clean: torch.Tensor, sizes: list[int], noise: torch.Tensor, text: str, skip: int = 0) -> Any:
        scheduler, past = scheduler_of(self.family), clean.shape[2]
        scheduler.set_timesteps(self.steps)
        x, rows = noise.transpose(0, 1)[None], {row: self.row(row, clean, sizes) for row in ("", text)}
        for step, t in enumerate(scheduler.timesteps):
            times = torch.cat([torch.zeros(past), t.expand(x.shape[2]).float()])
            negative, positive = (rows[row](x, times, step) for row in ("", text))
            x = scheduler.step(negative + self.guidance * (positive - negative), t, x).prev_sample
        return x

    def row(self, text: str, clean: torch.Tensor, sizes: list[int]) -> Any:
        kept: dict[str, Any] = {}
        plain = Loop("wan", self.context, steps=self.steps)

        def predict(x: torch.Tensor, times: torch.Tensor, step: int) -> torch.Tensor:
            def mean(tensor: torch.Tensor) -> float:
                return float(tensor.abs().mean())

            if step >= 2:
                kept["sum"] += kept["rate"] * mean(x - kept["before"]) / mean(kept["v"])
            kept["before"] = x
            if step >= 2 and kept["sum"] < self.threshold:
                self.skipped += 1
                return kept["v"] + x - kept["x"]
            whole = torch.cat([clean, x], 2)
            v = plain.predict(whole, times, [*sizes, x.shape[2]], text)[:, :, clean.shape[2] :]
            if step:
                kept["rate"] = mean(v - kept["v"]) / mean(x - kept["x"])
            kept.update(x=x, v=v, sum=0.0)
            return v

        return predict


@pytest.mark.slow
def test_rows_leave_the_network_out_where_little_is_expected_to_change() -> None:
    engine = engine_of("wan", num_steps=STEPS, guidance=FULL, cache=EasyCache(SkippingLoop.threshold))
    loop = SkippingLoop("wan", CausalContext(), guidance=2.0, steps=STEPS)
    clean = torch.zeros(1, 4, 0, SIDE, SIDE)
    for k in range(CHUNKS):
        clean = torch.cat([clean, loop.chunk(clean, [CHUNK] * k, engine._video.noise(k, CHUNK), "a cat")], 2)
    found = latents_of(engine, CHUNKS)
    assert (found - clean).abs().max() < 1e-4
    report = engine.report()
    assert 0 < report.replayed_rows == loop.skipped < report.network_rows == 2 * STEPS * CHUNKS


def test_what_its_own_step_leaves_for_later_chunks_is_computed() -> None:
    """Leaving the network out, there would be nothing to keep."""
    settings = {"context": CausalContext(commit="last-step"), "cache": EasyCache(99.0), "num_steps": STEPS}
    engine = engine_of("wan", **settings)
    assert latents_of(engine, CHUNKS).isfinite().all()
    assert engine.report().replayed_rows == (STEPS - 3) * CHUNKS


def test_a_schedule_per_prompt_knows_which_rows_are_negative() -> None:
    counts = []
    for schedule in (PerPrompt(Always(), Uniform(3)), PerPrompt(Uniform(3), Always())):
        engine = engine_of("wan", num_steps=STEPS, guidance=FULL, cache=IntervalCache(schedule=schedule))
        counts.append((latents_of(engine, CHUNKS), engine.report().replayed_rows))
    assert [count for _, count in counts] == [4 * CHUNKS] * 2
    assert (counts[0][0] - counts[1][0]).abs().max() > 1e-3


@pytest.mark.slow
def test_a_measure_is_told_the_noise_level_and_a_gate_the_length_of_a_run() -> None:
    filtered = TeaCache(threshold=0.3, measure=SeaFilter())
    for method in (filtered, BlockCache(threshold=0.3), DeltaCache()):
        engine = engine_of("wan", num_steps=STEPS, cache=method, guidance=FULL)
        latents_of(engine, CHUNKS)
        assert engine.report().network_rows == 2 * STEPS * CHUNKS
        assert engine.report().replayed_rows or method != DeltaCache()
    gated = [latents_of(engine_of("wan", num_steps=STEPS, cache=DeltaCache(gate=gate)), CHUNKS) for gate in (None, 3)]
    assert torch.equal(*gated)


def test_what_is_for_controlnets_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="ControlCache needs a ControlNet, and videos"):
        engine_of("motion", cache=ControlCache(2))


def test_tokens_that_other_frames_see_are_not_reduced() -> None:
    with pytest.raises(UnsupportedModelError, match="none is known in UNetMotionModel"):
        engine_of("joint", cache=TokenReduction("pool", min_tokens=4))


def test_steps_that_only_some_chunks_make_are_refused() -> None:
    """Chunks that begin from a frame make half of the steps here."""
    cache = IntervalCache(schedule=Steps((0, 2, 4)))
    with pytest.raises(ValueError, match="steps lists call 4, but the run has 3 network calls"):
        engine_of("wan", num_steps=STEPS, strength=0.5, cache=cache)
    engine, plain = (engine_of("wan", num_steps=STEPS, cache=cache) for _ in range(2))
    engine.next()
    with pytest.raises(ValueError, match="steps lists call 4, but the run has 3 network calls"):
        engine.update(strength=0.5)
    plain.next()
    assert torch.equal(engine.next().latents, plain.next().latents)
    engine.update(strength=0.5, cache=IntervalCache(2))
