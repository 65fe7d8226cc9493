"""A causal video pipeline is a stock one, becomes one from its components, and makes videos of any length."""

import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import stock_cases
import stream_pipelines
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import diffaccel.pipelines.causal_video
from diffaccel import CausalContext, DeepCache
from diffaccel.pipelines import CausalVideoPipeline

FILE = str(Path(__file__).parents[2] / "pipelines" / "causal_video.py")
SHORT: dict[str, Any] = {"num_inference_steps": 2, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def stock() -> Any:
    pipe = stock_cases.animatediff()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(stock: Any) -> Any:
    made = CausalVideoPipeline.from_pipe(stock)
    made.set_progress_bar_config(disable=True)
    return made


def wan() -> Any:
    torch.manual_seed(0)
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 4, latents_std=[0.8] * 4,
    )  # fmt: skip
    text = stream_pipelines._t5()
    return diffusers.WanPipeline(
        stream_pipelines._words(), text, vae.eval(), diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ), network.eval(),
    )  # fmt: skip


def latte() -> Any:
    torch.manual_seed(0)
    network = diffusers.LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, patch_size=2,
        cross_attention_dim=16, attention_bias=True, sample_size=8, norm_type="ada_norm_single",
        norm_elementwise_affine=False, caption_channels=32, num_embeds_ada_norm=1000, video_length=16,
    )  # fmt: skip
    return diffusers.LattePipeline(
        stream_pipelines._words(), stream_pipelines._t5(), stream_pipelines._kl(4), network.eval(),
        diffusers.DDIMScheduler(clip_sample=False),
    )  # fmt: skip


@pytest.mark.slow
def test_any_number_of_frames_and_more_of_them_begin_alike(pipe: Any) -> None:
    short = pipe("a cat", num_frames=5, output_type="np", **SHORT)
    long = pipe("a cat", num_frames=10, output_type="np", **SHORT)
    assert isinstance(short, type(stock_cases.animatediff()(  # what the stock pipeline returns
        "a cat", num_frames=1, num_inference_steps=1, height=32, width=32)))  # fmt: skip
    assert short.frames.shape == (1, 5, 32, 32, 3)
    assert np.array_equal(long.frames[:, :5], short.frames)


def test_it_is_the_stock_pipeline_of_its_parts(stock: Any, pipe: Any, tmp_path: Path) -> None:
    assert isinstance(pipe, diffusers.AnimateDiffPipeline)
    stock.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=FILE, trust_remote_code=True)
    assert isinstance(loaded, diffusers.AnimateDiffPipeline)
    loaded.set_progress_bar_config(disable=True)
    call = {"num_frames": 2, "chunk_size": 2, "output_type": "np", **SHORT}
    assert np.array_equal(loaded("a cat", **call).frames, pipe("a cat", **call).frames)


def test_guidance_batches_generators_caches_and_output_types(pipe: Any) -> None:
    call = {"num_frames": 2, "chunk_size": 2, **SHORT}
    seeded = [
        pipe("a cat", generator=torch.Generator().manual_seed(s), output_type="pt", **call).frames for s in (1, 1, 2)
    ]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    both = pipe(["a cat", "a dog"], output_type="latent", guidance_scale=3.0, **call)
    assert both.frames.shape[:3] == (2, 4, 2)
    pictures = pipe("a cat", cache="deepcache:interval=2", context="causalcontext:window=6", **call, return_dict=False)[
        0
    ]
    assert [picture.size for picture in pictures[0]] == [(32, 32)] * 2
    assert isinstance(pictures[0][0], Image.Image)


def test_frames_are_gone_on_from_and_callbacks_are_called(pipe: Any) -> None:
    steps, chunks = [], []

    def on_step(_: Any, step: int, timestep: float, told: dict[str, Any]) -> dict[str, Any]:
        steps.append((step, timestep > 0, tuple(told["latents"].shape)))
        return {"latents": told["latents"] * 0} if len(steps) == 4 else {}

    given = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    found = pipe(
        "a cat", frames=given, num_frames=3, chunk_size=2, callback_on_step_end=on_step, output_type="latent",
        callback_on_chunk_end=lambda _, chunk: chunks.append(chunk.first), **SHORT,
    ).frames  # fmt: skip
    assert [step for step, *_ in steps] == [0, 1, 0, 1]
    assert {shape for *_, shape in steps} == {(1, 4, 2, 8, 8)}  # as diffusers shows them
    assert chunks == [2, 4]
    assert float(found[0, :, 2].abs().max()) == 0

    def interrupt(pipe: Any, _: Any) -> None:
        pipe._interrupt = True

    cut = pipe("a cat", num_frames=8, chunk_size=2, callback_on_chunk_end=interrupt, **SHORT).frames[0]
    assert len(cut) == 2


@pytest.mark.parametrize("build", [wan, latte])
def test_other_networks_make_videos_from_stock_components(build: Any) -> None:
    stock = build()
    pipe = CausalVideoPipeline.from_pipe(stock)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe, type(stock))
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "chunk_size": 2, "guidance_scale": 2.0}
    found = pipe("a cat", "dog", num_frames=7, output_type="np", **call).frames
    assert found.shape == (1, 7, 64, 64, 3)
    assert found.std() > 0
    latents = 3 if build is wan else 7  # Wan's first one is a picture, each later one four
    whole = pipe("a cat", "dog", num_frames=7, output_type="latent", **call).frames
    assert whole.shape[:3] == (1, 4, latents)
    more = pipe("a cat", "dog", num_frames=3, frames=found[0], output_type="latent", **call).frames
    assert more.shape[2] == (1 if build is wan else 3)


def test_the_autoencoder_of_wan_leaves_no_seams() -> None:
    from diffaccel.video.codec import WanCodec

    vae = wan().vae
    latents = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    codec = WanCodec(vae)
    pieces = torch.cat([codec.decode(latents[:2]), codec.decode(latents[2:3]), codec.decode(latents[3:])])
    scaled = latents.transpose(0, 1)[None] * 0.8 + 0.1
    with torch.no_grad():
        whole = vae.decode(scaled).sample[0].transpose(0, 1)
    assert torch.allclose(pieces.clamp(-1, 1), whole, atol=1e-6)
    assert len(pieces) == 17
    codec.restart()
    assert torch.equal(codec.decode(latents[:2]), pieces[:5])
    assert codec.encode(torch.zeros(7, 3, 32, 32)).shape == (2, 4, 4, 4)


@pytest.mark.slow
def test_videos_of_several_prompts_have_negatives_and_generators_of_their_own(pipe: Any) -> None:
    call = {"num_frames": 2, "chunk_size": 2, "output_type": "pt", "guidance_scale": 2.0, **SHORT}

    def alone(prompt: str, negative: str, seed: int, **more: Any) -> torch.Tensor:
        found: torch.Tensor = pipe(
            prompt, negative, generator=torch.Generator().manual_seed(seed), **call, **more
        ).frames
        return found

    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = pipe(["a cat", "a dog"], ["red", "blue"], generator=generators, **call).frames
    assert torch.equal(both, torch.cat([alone("a cat", "red", 1), alone("a dog", "blue", 2)]))
    several = pipe("a cat", num_videos_per_prompt=2, **call).frames
    assert torch.equal(several, torch.cat([pipe("a cat", seed=seed, **call).frames for seed in (0, 1)]))
    assert not torch.equal(*several)
    weighted = pipe({"a cat": 0.5, "a dog": 0.5}, **call).frames
    assert len(weighted) == 1


def test_an_interrupt_cuts_no_video_short_beside_others(pipe: Any) -> None:
    chunks = []

    def stop(own: Any, _: Any) -> None:
        chunks.append(own)
        own._interrupt = len(chunks) == 3

    call = {"num_frames": 4, "chunk_size": 2, "output_type": "np", **SHORT}
    cut = pipe(["a cat", "a dog", "a cow"], callback_on_chunk_end=stop, **call).frames
    assert cut.shape == (1, 4, 32, 32, 3)
    assert len(chunks) == 3


def test_it_says_once_that_other_weights_drift(pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    diffaccel.pipelines.causal_video._said.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            pipe.stream("a cat", height=32, width=32, cache=DeepCache(2), context=CausalContext()).close()
    assert caplog.text.count("drift away") == 1


def test_what_it_cannot_do_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="num_frames must be a positive integer"):
        pipe("a cat", num_frames=0)
    with pytest.raises(ValueError, match=r"num_frames must be a positive integer, not 2\.5"):
        pipe("a cat", num_frames=2.5)
    with pytest.raises(ValueError, match="there is no video to make"):
        pipe([])
    with pytest.raises(ValueError, match="one for each of 2 prompts, not 3"):
        pipe(["a cat", "a dog"], ["a", "b", "c"])
    with pytest.raises(ValueError, match="one for each of 2 videos, not 1"):
        pipe(["a cat", "a dog"], generator=[torch.Generator()])
    with pytest.raises(ValueError, match="callbacks get latents"):
        pipe("a cat", callback_on_step_end_tensor_inputs=["noise"])
    with pytest.raises(ValueError, match="give callback_on_chunk_end instead"):
        pipe("a cat", stream_batch=True, callback_on_step_end=lambda *_: {})
    with pytest.raises(TypeError, match=r"num_steps is what stream\(\) takes: give num_inference_steps=4 in a call"):
        pipe("a cat", num_steps=4)
    with pytest.raises(TypeError, match="streangth"):
        pipe("a cat", streangth=1.0)
    with pytest.raises(TypeError, match="cannot be built of"):
        CausalVideoPipeline.from_pipe(stream_pipelines.sd3())
