"""FastControlPipeline: one vocabulary for ControlNets and adapters, fitted control images, and clear refusals."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stream_pipelines
import torch
from diffusers import DiffusionPipeline, StableDiffusionControlNetPipeline
from PIL import Image
from stock_cases import TEXT, of, sd

from diffaccel import ControlCache, accelerate, models
from diffaccel.control import RelaCtrlAdapter, attach
from diffaccel.measure import edge_agreement
from diffaccel.pipelines import FastControlPipeline, fast_control
from diffaccel.stream.control import edges

pytestmark = pytest.mark.filterwarnings("ignore")  # what stock pipelines say of tiny parts
ROOT = Path(__file__).parents[2]
LINES = torch.zeros(3, 32, 32)
LINES[:, 10:22, 5:8] = 1
PIXART = TEXT | {"use_resolution_binning": False, "clean_caption": False}


def paint(pipe: Any, call: dict[str, Any], **more: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(**call, **more, generator=torch.Generator().manual_seed(0), output_type="pt").images


def adapter_for(pipe: Any) -> RelaCtrlAdapter:
    adapter = RelaCtrlAdapter.from_transformer(pipe.transformer, blocks=1)
    generator = torch.Generator().manual_seed(1)
    for layer in (adapter.blocks[0].before, adapter.blocks[0].after):
        torch.nn.init.normal_(layer.weight, std=0.5, generator=generator)
    return adapter.eval()


@pytest.mark.slow
def test_a_controlnet_by_the_common_names(tmp_path: Path) -> None:
    stock = of(StableDiffusionControlNetPipeline, sd, True)()
    expected = paint(stock, TEXT, image=LINES[None], controlnet_conditioning_scale=0.7)
    pipe = FastControlPipeline.from_pipe(stock)
    assert torch.equal(paint(pipe, TEXT, control_image=LINES, control_scale=0.7), expected)
    assert torch.equal(paint(pipe, TEXT, image=LINES[None], controlnet_conditioning_scale=0.7), expected)
    with accelerate(stock, ControlCache(2)):
        cached = paint(stock, TEXT, image=LINES[None])
    assert torch.equal(paint(pipe, TEXT, control_image=LINES, cache="controlcache:interval=2"), cached)
    assert pipe.report().controlnet == (2, 2)
    stock.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path, custom_pipeline=str(ROOT / "pipelines" / "fast_control.py"), trust_remote_code=True
    )
    assert torch.equal(paint(loaded, TEXT, control_image=LINES, control_scale=0.7), expected)


def test_a_control_image_of_another_size_is_fitted() -> None:
    pipe = FastControlPipeline.from_pipe(of(StableDiffusionControlNetPipeline, sd, True)())
    expected = paint(pipe, TEXT, control_image=LINES)
    wide = torch.zeros(3, 64, 128)
    wide[:, :, 32:96] = LINES.repeat_interleave(2, 1).repeat_interleave(2, 2)
    found = paint(pipe, TEXT, control_image=Image.fromarray((wide * 255).byte().movedim(0, -1).numpy()))
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.5 * (
        paint(pipe, TEXT, control_image=wide, fit="pad") - expected
    ).abs().mean()
    assert paint(pipe, TEXT, control_image=np.zeros((50, 20, 3), np.uint8), fit="stretch").shape == expected.shape


def test_an_adapter_equals_control_blocks_put_on_by_hand(tmp_path: Path) -> None:
    pipe = FastControlPipeline.from_pipe(stream_pipelines.pixart())
    plain, adapter = paint(pipe, PIXART), adapter_for(pipe)
    adapter.save_pretrained(tmp_path)
    encoded = pipe.vae.encode(LINES[None] * 2 - 1)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    handle = attach(pipe.transformer, adapter)
    handle.set_control(latents.detach() * pipe.vae.config.scaling_factor, 0.7)
    expected = paint(stream_pipelines.pixart().__class__(**pipe.components), PIXART)
    handle.detach()
    pipe.load_control(tmp_path)
    assert torch.equal(paint(pipe, PIXART, control_image=LINES, control_scale=0.7), expected)
    assert not torch.equal(expected, plain)
    assert torch.equal(paint(pipe, PIXART, control_image=LINES, control_scale=0.0), plain)
    two = paint(
        pipe, PIXART | {"prompt": ["a cat", "a cat"]}, control_image=[LINES, LINES.flip(1)], num_images_per_prompt=2
    )
    assert len(two) == 4
    pipe.unload_control()
    assert torch.equal(paint(pipe, PIXART), plain)


def test_what_is_refused() -> None:
    pipe = FastControlPipeline.from_pipe(of(StableDiffusionControlNetPipeline, sd, True)())
    for arguments, message in (
        ({}, "needs a control image: give control_image"),
        ({"control_image": LINES, "control_scale": -1.0}, "control_scale must be"),
        ({"control_image": LINES, "control_scale": 11.0}, "control_scale must be"),
        ({"control_image": LINES, "control_scale": float("nan")}, "control_scale must be"),
        ({"control_image": LINES * 2}, r"control image cannot be used: frame values must lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**TEXT, **arguments)
    with pytest.raises(ValueError, match="no transformer: adapters are for PixArt-like ones"):
        pipe.load_control("folder")
    pixart = FastControlPipeline.from_pipe(stream_pipelines.pixart())
    with pytest.raises(ValueError, match=r"needs an adapter: call load_control"):
        pixart(**PIXART, control_image=LINES)
    other = RelaCtrlAdapter(dim=64, num_layers=4, positions=[0], groups=[2])
    with pytest.raises(ValueError, match="a transformer of 64 channels"):
        pixart.load_control(other)
    pixart.load_control(adapter_for(pixart))
    with pytest.raises(ValueError, match="the adapter needs a control image"):
        pixart(**PIXART)
    with pytest.raises(ValueError, match="takes one control_scale"):
        pixart(**PIXART, control_image=LINES, control_scale=[1.0])


def test_names_and_places_of_the_stock_call_will_do() -> None:
    pipe = FastControlPipeline.from_pipe(of(StableDiffusionControlNetPipeline, sd, True)())
    short = {name: value for name, value in TEXT.items() if name != "prompt"} | {"num_inference_steps": 1}
    expected = paint(pipe, short | {"prompt": "a cat"}, control_image=LINES, control_scale=0.3)
    for given in (
        {"image": LINES[None], "control_scale": 0.3},
        {"control_image": LINES, "controlnet_conditioning_scale": 0.3},
    ):
        assert torch.equal(paint(pipe, short | {"prompt": "a cat"}, **given), expected)
    noise = {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    assert torch.equal(pipe("a cat", LINES[None], **short, **noise, control_scale=0.3).images, expected)
    for given, message in (
        ({"image": LINES[None], "control_image": LINES}, "control_image and image mean the same"),
        (
            {"control_image": LINES, "control_scale": 0.3, "controlnet_conditioning_scale": 0.3},
            "control_scale and controlnet_conditioning_scale mean the same",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            pipe("a cat", **short, **given)
    with pytest.raises(TypeError, match="multiple values"):
        pipe("a cat", LINES[None], **short, image=LINES[None])


def test_an_adapter_follows_each_picture_its_own_image() -> None:
    pipe = FastControlPipeline.from_pipe(stream_pipelines.pixart())
    pipe.load_control(adapter_for(pipe))
    short, other = PIXART | {"num_inference_steps": 1}, LINES.flip(2)
    mine, theirs = (paint(pipe, short, control_image=x, num_images_per_prompt=2) for x in (LINES, other))
    both = paint(pipe, short, control_image=[LINES, other], num_images_per_prompt=2)
    torch.testing.assert_close(both, torch.stack([mine[0], theirs[1]]), rtol=0, atol=1e-5)
    assert (mine[1] - theirs[1]).abs().max() > 1e-2
    with pytest.raises(ValueError, match="one for each prompt: got 2 for 1"):  # once: one for each half of guidance
        pipe(**short, control_image=[LINES, other])


def test_an_adapter_follows_what_becomes_of_its_pipeline() -> None:
    pipe = FastControlPipeline.from_pipe(stream_pipelines.pixart())
    pipe.load_control(adapter_for(pipe))
    short = PIXART | {"num_inference_steps": 1}
    assert paint(pipe.to(torch.bfloat16), short, control_image=LINES).dtype is torch.bfloat16
    pipe.to(torch.float32)
    copied = copy.copy(pipe)
    copied.unload_control()
    with pytest.raises(RuntimeError, match="taken off through a copy of the pipeline"):
        pipe(**short, control_image=LINES)
    pipe.load_control(adapter_for(pipe))
    pipe.register_modules(transformer=stream_pipelines.pixart().transformer)
    with pytest.raises(RuntimeError, match="which was replaced"):
        pipe(**short, control_image=LINES)


def test_an_adapter_is_shown_the_size_at_which_pixart_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = FastControlPipeline.from_pipe(stream_pipelines.pixart())
    bins = {"1.0": [32.0, 32.0], "2.0": [64.0, 32.0]}
    monkeypatch.setattr(fast_control, "BINS", {pipe.transformer.config.sample_size: bins})
    pipe.load_control(adapter_for(pipe))
    shown = []
    monkeypatch.setattr(pipe, "_encoded", lambda images: shown.append(images) or images[:, :1, :8, :8])
    with pytest.raises(ValueError, match=r"do not fit latents|Invalid sample size"):
        pipe(**TEXT | {"height": 36, "width": 32}, control_image=torch.ones(3, 36, 32), clean_caption=False)
    assert shown[0].shape == (1, 3, 32, 32)
    middle = shown[0][0, 0].mean(0)  # 36 x 32 pixels are the middle of a picture that is drawn at 32 x 32
    assert middle[16] == 1
    assert middle[0] == 0


@pytest.mark.slow
def test_the_bundled_adapter_paints_along_the_lines() -> None:
    pipe: Any = FastControlPipeline.from_pretrained(models.path("emoji-dit"))
    pipe.load_control("emoji-dit-control")
    y, x = torch.meshgrid(torch.arange(128) - 64, torch.arange(128) - 64, indexing="ij")
    ring = ((y.square() + x.square()).sqrt() - 40).abs() < 2
    lines = ring.float().expand(3, -1, -1)
    call = {"num_inference_steps": 10, "guidance_scale": 2.0, "use_resolution_binning": False, "clean_caption": False}
    pictures = [
        paint(pipe, {"prompt": ["a red heart", "a tomato"], **call}, control_image=lines, control_scale=scale)
        for scale in (0.0, 1.0)
    ]
    both = lines.expand(2, -1, -1, -1)
    without, along = (edge_agreement(torch.stack([edges(one) for one in few]), both) for few in pictures)
    assert (along > without + 0.2).all()
