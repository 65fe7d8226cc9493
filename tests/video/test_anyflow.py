"""AnyFlow's FAR transformer makes the frames of its stock pipeline, through its own cache."""

from fractions import Fraction
from itertools import islice
from typing import Any

import diffusers
import pytest
import stream_pipelines
import torch
from cells import cells

from diffaccel import CausalContext, DeepCache, EasyCache, FullGuidance, IntervalCache, VideoEngine, accelerate
from diffaccel.cli import film
from diffaccel.media.errors import MediaError
from diffaccel.networks.video_calls import AnyFlow
from diffaccel.pipelines import CausalVideoPipeline
from diffaccel.sampling.samplers import FlowMatching

CHUNK, CHUNKS, STEPS, SIDE = 2, 4, 3, 64
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as the stock one
WHOLE = CausalContext(window=16, refresh="chunk")


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.manual_seed(0)
    network = diffusers.AnyFlowFARTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=64, full_chunk_limit=3,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 4, latents_std=[0.8] * 4,
    )  # fmt: skip
    made = diffusers.AnyFlowFARPipeline(
        stream_pipelines._words(), stream_pipelines._t5(), network.eval(), vae.eval(),
        diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def engine_of(pipe: Any, **settings: Any) -> VideoEngine:
    chosen = {"prompt": "a cat", "chunk": CHUNK, "num_steps": STEPS, "height": SIDE, "width": SIDE, "context": WHOLE}
    return VideoEngine(pipe, **{**chosen, "output_type": "latent", **settings})


@pytest.mark.slow
@pytest.mark.parametrize("scale", cells((1.0, 2.0), lambda scale: scale > 1))
def test_a_video_is_the_stock_pipelines(pipe: Any, scale: float) -> None:
    engine = engine_of(pipe, guidance=FullGuidance(scale) if scale > 1 else None)
    found = torch.cat([chunk.latents for chunk in islice(engine, CHUNKS)])
    noise = torch.cat([engine._video.noise(k, CHUNK) for k in range(CHUNKS)])
    frames = CHUNK * CHUNKS
    expected = pipe(
        "a cat", height=SIDE, width=SIDE, num_frames=1 + 4 * (frames - 1), num_inference_steps=STEPS,
        guidance_scale=scale, latents=noise.transpose(0, 1)[None], chunk_partition=[CHUNK] * CHUNKS,
        output_type="latent",
    ).frames[0].transpose(0, 1)  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    report = engine.report()
    rows = 2 if scale > 1 else 1
    assert (report.network_rows, report.context_calls) == (CHUNKS * STEPS * rows, (CHUNKS - 1) * rows)
    assert report.context_frames == frames - CHUNK


@pytest.mark.slow
def test_memory_is_known_before_and_a_window_keeps_it_level(pipe: Any) -> None:
    engine = engine_of(pipe, context=CausalContext(window=6, refresh="chunk"))
    held = [(engine.next(), engine.report().context_bytes)[1] for _ in range(6)]
    assert held[3] == held[4] == held[5] == engine._video.denoiser.planned_bytes((8, 8))[0][0]
    assert engine.report().context_frames == 6
    engine.close()
    assert engine.report().context_bytes == 0


@pytest.mark.slow
def test_given_pictures_prompts_and_the_pipeline(pipe: Any) -> None:
    given = [torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(k)) for k in range(5)]
    engine = engine_of(pipe, given=given, output_type="pt")
    first = engine.next()
    assert (first.first, len(first.frames)) == (5, 4 * CHUNK)
    engine.update(prompt="a dog", guidance=FullGuidance(1.5))
    assert torch.stack(engine.next().frames).isfinite().all()
    own = CausalVideoPipeline.from_pipe(pipe)
    call = {"num_frames": 3, "chunk_size": 2, "num_inference_steps": 1, "height": SIDE, "width": SIDE}
    found = own("a cat", context=WHOLE, output_type="np", **call)
    assert found.frames.shape == (1, 3, SIDE, SIDE, 3)
    assert isinstance(own, diffusers.AnyFlowFARPipeline)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"context": CausalContext()}, r"give CausalContext\(refresh='chunk', window="),
    ({"context": CausalContext(refresh="chunk", window=80)}, "82 frames are seen at once, and it has 64 positions"),
    ({"context": CausalContext(refresh="chunk", offload=True)}, "leave offload out"),
    ({"cache": DeepCache(2)}, "leave cache out"),
    ({"height": 48}, "height must be a multiple of 32"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG, ids=range(len(WRONG)))
def test_what_it_cannot_have_is_refused(pipe: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine_of(pipe, **settings)


def test_a_step_that_noises_afresh_leads_to_the_clean_frames(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def from_cache(self: Any, latents: torch.Tensor, timestep: float, following: float, **_: Any) -> torch.Tensor:
        told.append((timestep, following))
        return torch.zeros_like(latents)

    monkeypatch.setattr(AnyFlow, "from_cache", from_cache)
    for stochastic in (False, True):
        engine_of(pipe, sampler=FlowMatching(stochastic=stochastic)).next()
    starts = [timestep for timestep, _ in told[:STEPS]]
    assert told == [*zip(starts, [*starts[1:], 0.0], strict=True), *((start, 0.0) for start in starts)]


def test_the_command_names_its_own_options(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "_load", lambda _: pipe)
    given = dict.fromkeys([*film.NAMES, *("guidance_scale", "negative_prompt", "model", "steps", "strength", "seed")])
    given |= {"prompt": "a cat", "size": (SIDE, SIDE), "fit": None, "cache": None}
    for wrong, words in (({}, "give --refresh chunk$"), ({"refresh": "chunk", "cache": 2}, "leave --cache out$")):
        with pytest.raises(MediaError, match=words):
            film._opened(given | wrong, Fraction(8))


def test_an_accelerated_network_is_no_engines(pipe: Any) -> None:
    engine = engine_of(pipe)
    with accelerate(pipe, EasyCache()):
        for use in (engine.next, lambda: engine_of(pipe)):
            with pytest.raises(RuntimeError, match="accelerated already: detach that handle first"):
                use()


@pytest.mark.slow
def test_calls_that_fill_its_cache_compute_when_accelerated(pipe: Any) -> None:
    call = {
        "height": SIDE,
        "width": SIDE,
        "num_frames": 13,
        "num_inference_steps": 1,
        "chunk_partition": [CHUNK, CHUNK],
    }
    noise = torch.randn(1, 4, 2 * CHUNK, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = pipe("a cat", latents=noise, output_type="latent", **call).frames
    for method in (IntervalCache(2), EasyCache()):
        with accelerate(pipe, method) as handle:  # of one step in each chunk there is nothing to reuse
            assert torch.equal(pipe("a cat", latents=noise, output_type="latent", **call).frames, plain)
            assert handle.report().full == {"calls for keys and values that the network keeps itself": 1}
