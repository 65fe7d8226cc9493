"""Masks that move, and pictures to be changed by a prompt: as the stock pipelines paint them, and one by one."""

import inspect
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stream_pipelines
import torch
from cells import cells
from diffusers import (
    FluxKontextPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)
from PIL import Image
from stream_pipelines import Build
from test_image_prompts import adapted, picture
from test_stream_host import together

from diffaccel import (
    DeepCache,
    EasyCache,
    FullGuidance,
    ImagePrompt,
    OneTimeNegative,
    SelfNegative,
    SimilarityFilter,
    SlotCache,
    StreamEngine,
    StreamHost,
    Threshold,
)

STEPS = 4


def widened(channels: int, kind: Any, base: Any = None) -> Any:
    """A pipeline whose UNet takes so many channels."""
    base = base or stream_pipelines.sd()
    if base.unet.config.in_channels != channels:
        own = {name: value for name, value in base.unet.config.items() if name != "_use_default_values"}
        config = {**own, "in_channels": channels}
        base.register_modules(unet=stream_pipelines._seeded(lambda: type(base.unet).from_config(config)))
    options = {} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    parts = {name: part for name, part in base.components.items() if name in inspect.signature(kind).parameters}
    pipe = kind(**parts, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def inpainting() -> Any:
    return widened(9, StableDiffusionInpaintPipeline)


@pytest.fixture(scope="module")
def masking() -> Any:
    return widened(4, StableDiffusionInpaintPipeline)


@pytest.fixture(scope="module")
def instructed() -> Any:
    return widened(8, StableDiffusionInstructPix2PixPipeline)


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    """A square that moves, ``(9, 1, 32, 32)``."""
    found = torch.zeros(9, 1, 32, 32)
    for i in range(9):
        found[i, :, 8:24, 2 * i : 2 * i + 14] = 1
    return found


def painted(engine: StreamEngine, frames: torch.Tensor, masks: Sequence[Any]) -> torch.Tensor:
    with engine:
        outputs = [o for frame, mask in zip(frames, masks, strict=True) for o in engine.push(frame, mask=mask)]
        return torch.stack([o.image for o in outputs + engine.flush()])


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def stock(pipe: Any, frame: torch.Tensor, mask: torch.Tensor | None, scale: float, **arguments: Any) -> torch.Tensor:
    if mask is not None:
        arguments |= {"mask_image": mask[None], "height": 32, "width": 32}
    return pipe(
        "a cat", image=frame[None], num_inference_steps=STEPS, guidance_scale=scale, negative_prompt="blurry",
        generator=torch.Generator().manual_seed(2), output_type="latent", **arguments,
    ).images[0]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 0.75])
@pytest.mark.parametrize(
    ("kind", "scale"), [("inpainting", 1.0), ("inpainting", 2.5), ("masking", 1.0), ("masking", 2.5)]
)
def test_a_mask_as_the_stock_pipeline_paints_it(
    request: Any, engine: Build, frames: torch.Tensor, masks: torch.Tensor, kind: str, scale: float, strength: float
) -> None:
    pipe = request.getfixturevalue(kind)
    indices = range(STEPS - int(STEPS * strength), STEPS)
    guidance = {} if scale == 1 else {"guidance": FullGuidance(scale)}
    stream = engine(pipe, timestep_indices=indices, num_inference_steps=STEPS, **guidance)
    (ours,) = painted(stream, frames[:1], masks[3:4])
    close(ours, stock(pipe, frames[0], masks[3], scale, strength=strength))


@pytest.mark.slow
def test_sdxl_with_a_mask_as_the_stock_pipeline_paints_it(
    engine: Build, frames: torch.Tensor, masks: torch.Tensor
) -> None:
    base = stream_pipelines.sdxl()
    base.register_modules(vae=stream_pipelines.tiny_vae())  # the stock pipeline samples what others encode
    pipe = widened(9, StableDiffusionXLInpaintPipeline, base)
    stream = engine(pipe, timestep_indices=range(STEPS), num_inference_steps=STEPS)
    (ours,) = painted(stream, frames[:1], masks[3:4])
    close(ours, stock(pipe, frames[0], masks[3], 1.0, strength=1.0))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_picture_that_a_prompt_changes_as_the_stock_pipeline_does(
    instructed: Any, engine: Build, frames: torch.Tensor, scale: float
) -> None:
    guidance = {} if scale == 1 else {"guidance": FullGuidance(scale)}
    stream = engine(instructed, timestep_indices=range(STEPS), num_inference_steps=STEPS, **guidance)
    (ours,) = painted(stream, frames[:1], [None])
    close(ours, stock(instructed, frames[0], None, scale, image_guidance_scale=1.0))


@pytest.mark.parametrize("cosxl", [False, True])
def test_sdxl_changes_a_picture_as_the_stock_pipeline_does(engine: Build, frames: torch.Tensor, cosxl: bool) -> None:
    base = stream_pipelines.sdxl()
    base.register_modules(vae=stream_pipelines.tiny_vae())
    base.vae.register_to_config(scaling_factor=3.0)
    pipe = widened(8, StableDiffusionXLInstructPix2PixPipeline, base)
    pipe.is_cosxl_edit = cosxl
    settings = {"timestep_indices": range(STEPS), "num_inference_steps": STEPS, "image_guidance_scale": 1.8}
    (ours,) = painted(engine(pipe, guidance=FullGuidance(2.5), **settings), frames[:1], [None])
    close(ours, stock(pipe, frames[0], None, 2.5, image_guidance_scale=1.8, height=32, width=32))


def test_guidance_by_the_picture_is_the_stock_pipelines(instructed: Any, engine: Build, frames: torch.Tensor) -> None:
    settings = {"timestep_indices": range(STEPS), "num_inference_steps": STEPS, "image_guidance_scale": 1.8}
    (ours,) = painted(engine(instructed, guidance=FullGuidance(2.5), **settings), frames[:1], [None])
    close(ours, stock(instructed, frames[0], None, 2.5, image_guidance_scale=1.8))
    plain = engine(instructed, **{**settings, "image_guidance_scale": 1.0}, guidance=FullGuidance(2.5))
    assert not torch.allclose(ours, painted(plain, frames[:1], [None])[0], atol=1e-2)


@pytest.mark.parametrize(("scale", "by_picture"), [(1.0, 1.0), (2.5, 1.8)])
def test_an_image_prompt_beside_the_picture_that_changes(
    engine: Build, frames: torch.Tensor, tmp_path: Path, scale: float, by_picture: float
) -> None:
    pipe, red = adapted(widened(8, StableDiffusionInstructPix2PixPipeline), tmp_path), picture("red")
    guidance = {} if scale == 1 else {"guidance": FullGuidance(scale)}
    settings = {"timestep_indices": range(STEPS), "num_inference_steps": STEPS, "image_guidance_scale": by_picture}
    expected = stock(pipe, frames[0], None, scale, image_guidance_scale=by_picture, ip_adapter_image=red)
    embeds = pipe.prepare_ip_adapter_image_embeds(red, None, "cpu", 1, True)
    for prompt in (ImagePrompt(red), ImagePrompt(embeds=embeds)):
        (ours,) = painted(engine(pipe, image_prompt=prompt, **settings, **guidance), frames[:1], [None])
        close(ours, expected)


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, DeepCache(2), SlotCache(DeepCache(2), "frame")], ids=str)
def test_guidance_by_the_picture_in_a_stream_batch_and_a_host(
    instructed: Any, engine: Build, frames: torch.Tensor, cache: Any
) -> None:
    guided = {"guidance": FullGuidance(2.5), "image_guidance_scale": 1.8}
    if cache is None:
        one, other = (
            painted(engine(instructed, stream_batch=batch, frame_buffer=2, **guided), frames[:5], [None] * 5)
            for batch in (True, False)
        )
        close(one, other)
    common = {"timestep_indices": (10, 25, 40), "height": 32, "width": 32, "output_type": "latent", "cache": cache}
    settings: list[dict[str, Any]] = [{"prompt": "a cat", **guided}, {"prompt": "a dog", "seed": 2}]
    with StreamHost(instructed, 32, wait=0.3) as host:
        engines = [host.open(**common, **own) for own in settings]
        assert host.report().rows == 9 + 3
        shown = together([lambda e=e: painted(e, frames[:4], [None] * 4) for e in engines])
        assert host.report().streams_per_call["network"] > 1.3
    for ours, own in zip(shown, settings, strict=True):
        close(ours, painted(StreamEngine(instructed, **common, **own), frames[:4], [None] * 4))


@pytest.mark.slow
def test_guidance_by_the_picture_changes_live(instructed: Any, engine: Build, frames: torch.Tensor) -> None:
    guided = {"guidance": FullGuidance(2.5), "image_guidance_scale": 1.8}
    with engine(instructed, guidance=FullGuidance(2.5)) as stream:
        outputs = [o for k in range(4) for o in stream.push(frames[k])]
        stream.update(image_guidance_scale=1.8, at="new")
        outputs += [o for k in range(4, 8) for o in stream.push(frames[k])] + stream.flush()
        stream.update(guidance=FullGuidance(0.5), transition=2)  # past a scale of 1
        assert all(o.image.isfinite().all() for o in stream.stream(frames[:4]))
    close(torch.stack([o.image for o in outputs[4:]]), painted(engine(instructed, **guided), frames[4:8], [None] * 4))


def test_guidance_by_the_picture_that_cannot_be_had_is_refused(instructed: Any, masking: Any, engine: Build) -> None:
    with pytest.raises(
        ValueError, match=r"image_guidance_scale=1\.5 is for InstructPix2Pix, and this pipeline is none"
    ):
        engine(masking, guidance=FullGuidance(2.0), image_guidance_scale=1.5)
    for guidance in (SelfNegative(1.2), FullGuidance(1.0)):
        with pytest.raises(ValueError, match=r"image_guidance_scale=1\.5 needs .* use guidance=FullGuidance"):
            engine(instructed, guidance=guidance, image_guidance_scale=1.5)
    with pytest.raises(ValueError, match=r"image_guidance_scale must be a number in \[1\.0, 100\.0\]"):
        engine(instructed, image_guidance_scale=0.5)


@pytest.mark.parametrize(
    ("kind", "guidance"),
    cells(
        product(("inpainting", "masking", "instructed"), (SelfNegative(1.4), OneTimeNegative(1.4, 0.5))),
        lambda cell: (cell[0] == "masking") == isinstance(cell[1], SelfNegative),
    ),
)
def test_the_stream_batch_gives_what_the_sequential_mode_gives(
    request: Any, engine: Build, frames: torch.Tensor, masks: torch.Tensor, kind: str, guidance: Any
) -> None:
    pipe, given = request.getfixturevalue(kind), [None] * 5 if kind == "instructed" else masks[:5]
    settings = {"guidance": guidance, "frame_buffer": 2}
    ours, theirs = (painted(engine(pipe, **settings, stream_batch=batch), frames[:5], given) for batch in (True, False))
    close(ours, theirs)


def test_what_is_black_in_the_mask_stays(
    masking: Any, engine: Build, frames: torch.Tensor, masks: torch.Tensor
) -> None:
    frames, masks = frames[:4], masks[:4]
    shown = painted(engine(masking), frames, masks)
    source = masking.vae.encode(frames * 2 - 1).latents * masking.vae.config.scaling_factor
    stays = torch.nn.functional.interpolate(masks, (4, 4)) == 0
    close(torch.where(stays, shown, 0), torch.where(stays, source, 0))
    assert not torch.allclose(shown, source, atol=1e-2)
    whole = painted(engine(masking), frames, torch.ones_like(masks))
    assert torch.equal(whole, painted(engine(masking), frames, [None] * 4))


@pytest.mark.slow
def test_streams_of_a_host_keep_their_masks(
    inpainting: Any, masking: Any, frames: torch.Tensor, masks: torch.Tensor
) -> None:
    common = {"timestep_indices": (10, 25, 40), "height": 32, "width": 32, "output_type": "latent"}
    settings: list[dict[str, Any]] = [
        {"prompt": "a cat", "seed": 1},
        {"prompt": "a dog", "seed": 2, "cache": DeepCache(2), "guidance": FullGuidance(1.5)},
        {"prompt": "a star", "seed": 3},
    ]
    films = [(frames[k : k + 4], masks[2 - k : 6 - k]) for k in range(3)]
    for pipe in (inpainting, masking):
        with StreamHost(pipe, 32, wait=0.3) as host:
            engines = [host.open(**common, **own) for own in settings]
            shown = together([lambda e=e, f=f: painted(e, *f) for e, f in zip(engines, films, strict=True)])
            assert host.report().streams_per_call["network"] > 1.5
        for k, own in enumerate(settings):
            alone = painted(StreamEngine(pipe, **common, **own), *films[k])
            close(shown[k], alone)


def test_a_mask_that_moves_over_a_still_picture_is_seen(
    masking: Any, engine: Build, frames: torch.Tensor, masks: torch.Tensor
) -> None:
    with engine(masking, timestep_indices=(30,), similarity=SimilarityFilter(-1.0)) as stream:
        for mask in masks:  # however like the picture and the mask before they are
            stream.push(frames[0], mask=mask)
        assert stream.report().frames_skipped == 0
        stream.push(frames[0], mask=masks[-1])
        assert stream.report().frames_skipped == 1


@pytest.mark.parametrize(
    "cache", [EasyCache(0.05), DeepCache(schedule=Threshold(0.15))], ids=lambda c: type(c).__name__
)
def test_a_cache_that_goes_by_the_latents_follows_a_mask_over_a_still_picture(
    inpainting: Any, engine: Build, frames: torch.Tensor, masks: torch.Tensor, cache: Any
) -> None:
    still = frames[:1].repeat(5, 1, 1, 1)
    close(painted(engine(inpainting, cache=cache), still, masks[:5]), painted(engine(inpainting), still, masks[:5]))
    resting = engine(inpainting, cache=cache)
    painted(resting, still, masks[:1].expand(5, -1, -1, -1))
    assert resting.report().replayed_rows > 0


def test_new_stages_leave_what_stays(masking: Any, engine: Build, frames: torch.Tensor, masks: torch.Tensor) -> None:
    with engine(masking) as stream:
        outputs = [o for k in range(3) for o in stream.push(frames[k], mask=masks[k])]
        stream.update(timestep_indices=(30,))
        outputs += stream.flush()
    source = masking.vae.encode(frames[:3] * 2 - 1).latents * masking.vae.config.scaling_factor
    for output in outputs:
        stays = torch.nn.functional.interpolate(masks[output.frame_id][None], (4, 4))[0] == 0
        close(torch.where(stays, output.image, 0), torch.where(stays, source[output.frame_id], 0))


@pytest.mark.parametrize("form", [
    lambda m: m[0], lambda m: m, lambda m: m[0].bool(), lambda m: m[0].numpy(), lambda m: m.expand(3, -1, -1),
    lambda m: Image.fromarray((m[0].numpy() * 255).astype(np.uint8)), lambda m: m[0].numpy().astype(bool),
    lambda m: m[None],
])  # fmt: skip
def test_forms_of_a_mask(masking: Any, engine: Build, frames: torch.Tensor, masks: torch.Tensor, form: Any) -> None:
    settings = {"timestep_indices": (30,)}
    expected = painted(engine(masking, **settings), frames[:1], masks[:1])
    assert torch.equal(painted(engine(masking, **settings), frames[:1], [form(masks[0])]), expected)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("sd", {"num_class_embeds": 2}, r"is told a class or a picture in its place \(unCLIP\)"),
        ("sana", {"guidance_embeds": True}, "SANA-Sprint steps along another course .*: use SANA"),
        ("flux", None, "FLUX Kontext reads a picture beside what it paints"),
    ],
)
def test_networks_that_are_told_more_are_refused(engine: Build, kind: str, config: Any, words: str) -> None:
    pipe = getattr(stream_pipelines, kind)()
    if config is None:
        pipe = FluxKontextPipeline(**pipe.components)
    else:
        (getattr(pipe, "unet", None) or pipe.transformer).register_to_config(**config)
    with pytest.raises(ValueError, match=words):
        engine(pipe)


def test_a_refiner_is_refused(engine: Build) -> None:
    pipe = StableDiffusionXLImg2ImgPipeline(**stream_pipelines.sdxl().components, requires_aesthetics_score=True)
    with pytest.raises(ValueError, match=r"this is a refiner, .*: stream that model"):
        engine(pipe)


def test_wrong_input_is_refused_and_the_stream_goes_on(
    inpainting: Any, instructed: Any, masking: Any, engine: Build, frames: torch.Tensor, masks: torch.Tensor
) -> None:
    stream = engine(inpainting, timestep_indices=(30,))
    with pytest.raises(ValueError, match=r"has no mask: push\(picture, mask=\.\.\.\)"):
        stream.push(frames[0])
    with pytest.raises(ValueError, match=r"mask is 32 x 16 pixels and its picture 32 x 32"):
        stream.push(frames[0], mask=masks[0][:, :16])
    with pytest.raises(ValueError, match=r"the mask cannot be used: .*found 0\.0 to 255"):
        stream.push(frames[0], mask=masks[0] * 255)
    with pytest.raises(TypeError, match="the mask cannot be used"):
        stream.push(frames[0], mask="white")
    with pytest.raises(ValueError, match=r"1 of 255 where it is lightest, .* give it as booleans"):
        stream.push(frames[0], mask=masks[0].byte())
    with pytest.raises(ValueError, match="1 frames need as many masks, not 2"):
        stream.push(frames[0], mask=masks[:2])
    assert len(stream.push(frames[0], mask=masks[0])) == 1
    with pytest.raises(ValueError, match=r"has no picture: push\(picture\)"):
        engine(instructed).push(latents=torch.zeros(4, 4, 4))
    with pytest.raises(ValueError, match="no picture to keep outside of a mask"):
        engine(masking).push(mask=masks[0])
    stream = engine(inpainting)
    stream.warmup()
    assert len(painted(stream, frames, masks)) == 9
