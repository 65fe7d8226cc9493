"""T2I-Adapters in streams: as the stock pipelines read them, with each frame, at a scale of its stream."""

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import stream_pipelines
import torch
from diffusers import (
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionXLAdapterPipeline,
    T2IAdapter,
)
from stream_pipelines import Build
from test_stream_host import together

from diffaccel import DeepCache, FullGuidance, OneTimeNegative, StreamEngine, StreamHost, Taylor, Threshold
from diffaccel.methods import EncoderPropagation
from diffaccel.reuse.schedule import Uniform

STEPS = 4


def adapter(unet: Any, factor: int, seed: int = 1, **config: Any) -> T2IAdapter:
    """Random weights; its first features are as small as what leaves the first block."""
    first, last = unet.config.block_out_channels
    settings = {
        "channels": [first, last, last, last], "num_res_blocks": 1, "downscale_factor": 2 * factor,
        "adapter_type": "full_adapter_xl",
    } | config  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return T2IAdapter(**settings).eval()


def adapted(base: Any, kind: Any, seeds: Sequence[int] = (1,), **config: Any) -> Any:
    nets = [adapter(base.unet, base.vae_scale_factor, seed, **config) for seed in seeds]
    options = {} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    parts = {name: part for name, part in base.components.items() if name in inspect.signature(kind).parameters}
    pipe = kind(**parts, **options, adapter=MultiAdapter(nets) if len(nets) > 1 else nets[0])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return adapted(stream_pipelines.sd(), StableDiffusionAdapterPipeline)


@pytest.fixture(scope="module")
def two() -> Any:
    return adapted(stream_pipelines.sd(), StableDiffusionAdapterPipeline, (1, 2))


def painted(engine: StreamEngine, frames: torch.Tensor, controls: Sequence[Any]) -> torch.Tensor:
    with engine:
        outputs = [o for frame, image in zip(frames, controls, strict=True) for o in engine.push(frame, control=image)]
        return torch.stack([o.image for o in outputs + engine.flush()])


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def compared(pipe: Any, image: Any, control: Any, scale: Any, guidance: float) -> None:
    """One frame of text-to-image, beside the stock pipeline's."""
    side = 32 // pipe.vae_scale_factor
    noise = torch.randn(4, side, side, generator=torch.Generator().manual_seed(5))
    chance = torch.Generator().manual_seed(3)
    torch.randn(1, 4, side, side, generator=chance)
    stock = pipe(
        "a cat", image=image, latents=noise[None], generator=chance, num_inference_steps=STEPS, height=32, width=32,
        guidance_scale=guidance, adapter_conditioning_scale=scale, output_type="latent",
    ).images[0]  # fmt: skip
    more: dict[str, Any] = {} if guidance == 1 else {"guidance": FullGuidance(guidance)}
    engine = StreamEngine(
        pipe, prompt="a cat", timestep_indices=range(STEPS), num_inference_steps=STEPS, height=32, width=32, seed=3,
        output_type="latent", controlnet_scale=scale, **more,
    )  # fmt: skip
    with engine:
        (output,) = engine.push(latents=noise, control=control) + engine.flush()
    close(output.image, stock)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_control_image_as_the_stock_pipeline_reads_it(pipe: Any, frames: torch.Tensor, guidance: float) -> None:
    compared(pipe, frames[:1], frames[0], 0.7, guidance)


def test_several_adapters(two: Any, frames: torch.Tensor) -> None:
    compared(two, [frames[:1], frames[1:2]], [frames[0], frames[1]], [0.4, 1.2], 2.5)


def test_sdxl(frames: torch.Tensor) -> None:
    pipe = adapted(stream_pipelines.sdxl(), StableDiffusionXLAdapterPipeline)
    compared(pipe, frames[:1], frames[0], 0.7, 1.0)


def test_sketches_have_one_channel(frames: torch.Tensor) -> None:
    pipe = adapted(stream_pipelines.sd(), StableDiffusionAdapterPipeline, in_channels=1)
    compared(pipe, frames[:1].mean(1, keepdim=True), frames[0], 0.7, 1.0)


def test_the_stream_batch_gives_what_the_sequential_mode_gives(pipe: Any, engine: Build, frames: torch.Tensor) -> None:
    settings = {"guidance": OneTimeNegative(1.4, 0.5), "frame_buffer": 2, "cache": DeepCache(1)}
    ours, theirs = (painted(engine(pipe, **settings, stream_batch=b), frames, frames.flip(0)) for b in (True, False))
    close(ours, theirs)


@pytest.mark.parametrize("forecast", [None, Taylor(1)], ids=str)
def test_a_still_scene_stays_as_it_is_where_its_encoder_is_replayed(
    pipe: Any, engine: Build, frames: torch.Tensor, forecast: Any
) -> None:
    """What the adapter adds behind a block is added to its last skip feature, too."""
    still = frames[:1].repeat(4, 1, 1, 1)
    settings = {"timestep_indices": (20, 40), "control": "edges"}
    stream = engine(pipe, cache=EncoderPropagation(Uniform(2), forecast), **settings)
    close(painted(stream, still, [None] * 4), painted(engine(pipe, **settings), still, [None] * 4))
    assert stream.report().replayed_rows > 0


def test_a_cache_that_goes_by_the_latents_follows_a_control_image_over_a_still_picture(
    pipe: Any, engine: Build, frames: torch.Tensor
) -> None:
    still, controls = frames[:1].repeat(5, 1, 1, 1), torch.zeros(5, 3, 32, 32)
    for i in range(5):
        controls[i, :, :, 4 * i : 4 * i + 4] = 1
    cached = engine(pipe, cache=DeepCache(schedule=Threshold(0.5)))
    close(painted(cached, still, controls), painted(engine(pipe), still, controls))
    resting = engine(pipe, cache=DeepCache(schedule=Threshold(0.5)))
    painted(resting, still, controls[:1].expand(5, -1, -1, -1))
    assert resting.report().replayed_rows > 0


def test_streams_of_a_host_follow_their_own_images(pipe: Any, frames: torch.Tensor) -> None:
    common = {"timestep_indices": (10, 25, 40), "height": 32, "width": 32, "output_type": "latent", "prompt": "a cat"}
    settings: list[dict[str, Any]] = [{"controlnet_scale": 0.5}, {"seed": 4, "guidance": FullGuidance(1.5)}]
    films = [(frames[:5], frames[4:]), (frames[2:7], frames[1:6])]
    with StreamHost(pipe, 32, wait=0.3) as host:
        engines = [host.open(**common, **own) for own in settings]
        shown = together([lambda e=e, f=f: painted(e, *f) for e, f in zip(engines, films, strict=True)])
        assert host.report().streams_per_call["network"] > 1.5
    for own, film, ours in zip(settings, films, shown, strict=True):
        close(ours, painted(StreamEngine(pipe, **common, **own), *film))


def test_scales_and_images_of_frames_change_live(pipe: Any, engine: Build, frames: torch.Tensor) -> None:
    plain = painted(engine(), frames, [None] * 9)
    close(painted(engine(pipe, control="edges", controlnet_scale=0.0), frames, [None] * 9), plain)
    with engine(pipe, control="edges") as stream:
        for frame in frames[:3]:
            stream.push(frame)
        stream.update(controlnet_scale=0.0)
        shown = [o.image for f in frames[3:] for o in stream.push(f)]
    close(torch.stack(shown[2:]), plain[3:7])


def test_adapters_and_images_that_do_not_fit_are_refused_by_name(
    pipe: Any, engine: Build, frames: torch.Tensor
) -> None:
    base = stream_pipelines.sd()
    other = adapted(base, StableDiffusionAdapterPipeline, channels=[8, 24, 24, 24])
    with pytest.raises(ValueError, match=r"made for a UNet of 8, 24, 24, 24 channels, and the pipeline's has"):
        engine(other)
    with pytest.raises(ValueError, match="needs a control image"):
        engine(pipe).push(frames[0])
    with pytest.raises(ValueError, match="multiples of 32, not 48 and 32"):
        engine(pipe, height=48)
    with pytest.raises(ValueError, match="1 ControlNets need as many values"):
        engine(pipe, controlnet_scale=[1.0, 1.0])
