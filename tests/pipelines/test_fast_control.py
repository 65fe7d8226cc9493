"""FastControlPipeline: one vocabulary for ControlNets and adapters, fitted control images, and clear refusals."""

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
from diffaccel.pipelines import FastControlPipeline
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
