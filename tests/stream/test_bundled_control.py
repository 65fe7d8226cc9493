"""emoji-control: small, found by name, loaded by stock diffusers, and its pictures follow the lines."""

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, LCMScheduler, StableDiffusionControlNetPipeline

from diffaccel import StreamEngine, models
from diffaccel.measure import edge_agreement
from diffaccel.models.quiet import quiet_loading
from diffaccel.stream.control import edges

X, Y, RADIUS = 44, 78, 34


def disc() -> torch.Tensor:
    """A red disc off the middle of a white picture, ``(3, 128, 128)`` in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    inside = torch.hypot(x - X, y - Y) <= RADIUS
    return torch.where(inside, torch.tensor([0.9, 0.1, 0.1])[:, None, None], torch.ones(3, 1, 1))


def agreement(pictures: torch.Tensor) -> float:
    """Mean agreement of pictures ``(n, 3, 128, 128)`` with the disc's edges."""
    lines = edges(disc()).expand(len(pictures), -1, -1, -1)
    return edge_agreement(torch.stack([edges(picture) for picture in pictures]), lines).mean().item()


@pytest.fixture(scope="module")
def pipe() -> Any:
    with quiet_loading():
        net = ControlNetModel.from_pretrained(models.path("emoji-control"))
        pipe = StableDiffusionControlNetPipeline.from_pretrained(models.path("emoji-sd"), controlnet=net)
    models.load_lora(pipe, "emoji-lcm-lora")
    pipe.fuse_lora()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
def test_it_is_small(pipe: Any) -> None:
    parameters = [sum(p.numel() for p in net.parameters()) for net in (pipe.controlnet, pipe.unet)]
    assert parameters[0] <= parameters[1] / 3
    assert sum(file.stat().st_size for file in models.path("emoji-control").iterdir()) <= 7e6


@pytest.mark.slow
def test_it_is_found_by_name_and_goes_before_the_unet(pipe: Any) -> None:
    net = models.load_controlnet("emoji-control", dtype=torch.float32, device=torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), pipe.controlnet.parameters(), strict=True))
    assert models.names("controlnet") == ("emoji-control",)
    with pytest.raises(models.ModelError, match="emoji-control is a controlnet, not a pipeline"):
        models.resolve("emoji-control")
    with pytest.raises(models.ModelError, match="or a bundled name: emoji-control"):
        models.find_controlnet("emoji-controll")
    with pytest.raises(models.ModelError, match=r"an adapter, no ControlNet: .*load_control\('emoji-dit-control'\)"):
        models.find_controlnet("emoji-dit-control")


@pytest.mark.slow
def test_stock_pictures_follow_the_lines(pipe: Any) -> None:
    prompts = ["orange circle", "pizza", "happy face"]
    found = []
    for scale in (1.0, 0.0):
        pictures = pipe(
            prompts,
            image=edges(disc())[None].repeat(len(prompts), 1, 1, 1),
            num_inference_steps=4,
            guidance_scale=1.0,
            controlnet_conditioning_scale=scale,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        found.append(agreement(pictures))
    assert found[0] >= 0.75
    assert found[1] < 0.4


@pytest.mark.slow
def test_streams_follow_the_lines_of_their_frames(pipe: Any) -> None:
    engine = StreamEngine(
        pipe,
        prompt="orange circle",
        strength=1.0,
        num_steps=4,
        height=128,
        width=128,
        control="edges",
        output_type="pt",
    )
    outputs = engine.push(disc()) + engine.flush()
    assert agreement(torch.stack([output.image for output in outputs])) >= 0.75
