"""Methods in modular pipelines, whose guiders make a call of the network for each prediction and name it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import walk
import walk_pictures
import walk_unets
from diffusers import ClassifierFreeGuidance, LayerSkipConfig, SkipLayerGuidance
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
    StableDiffusion3T2ICoreDenoiseStep,
)
from diffusers.modular_pipelines.stable_diffusion_xl import before_denoise
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep
from walk_parts import Draw, Stop, ddim, flow, transformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SKIPPING = {
    "skip_layer_guidance_scale": 2.0,
    "skip_layer_guidance_start": 0.0,
    "skip_layer_guidance_stop": 1.0,
    "skip_layer_config": LayerSkipConfig(indices=[1], fqn="blocks"),
}


class XLBlocks(SequentialPipelineBlocks):
    """Embeddings in, latents out."""

    model_name = "stable-diffusion-xl"
    block_classes = (
        before_denoise.StableDiffusionXLInputStep,
        before_denoise.StableDiffusionXLSetTimestepsStep,
        before_denoise.StableDiffusionXLPrepareLatentsStep,
        before_denoise.StableDiffusionXLPrepareAdditionalConditioningStep,
        StableDiffusionXLDenoiseStep,
    )
    block_names = ("input", "set_timesteps", "prepare_latents", "prepare_add_cond", "denoise")


def made(blocks: SequentialPipelineBlocks, **parts: Any) -> Any:
    pipe = blocks.init_pipeline()
    pipe.update_components(**parts)
    return pipe


def wan(guider: Any) -> Any:
    network = transformer("WanTransformer3DModel", in_channels=16, out_channels=16)  # as many as without autoencoder
    return made(WanCoreDenoiseStep(), transformer=network, scheduler=flow(), guider=guider)


def xl(guider: Any) -> Any:
    unet = walk_unets.xl("StableDiffusionXLPipeline").unet
    return made(XLBlocks(), unet=unet, scheduler=ddim(), guider=guider)


def sd3(guider: Any) -> Any:
    network = walk_pictures.sd3("StableDiffusion3Pipeline").transformer
    return made(StableDiffusion3T2ICoreDenoiseStep(), transformer=network, scheduler=flow(), guider=guider)


def inputs(draw: Draw, pooled: int, side: int, **more: Any) -> dict[str, Any]:
    words = {**draw.prompts(), **(draw.pooled(pooled) if pooled else {})}
    return {**words, "height": side, "width": side, "output": ["latents"], **more}


def steps(*places: tuple[int, ...]) -> Callable[[int], tuple[int, int]]:
    """Step and place of each call, given the places of each step's calls."""
    calls = [(step, place) for step, found in enumerate(places) for place in found]
    return calls.__getitem__


FULL = ClassifierFreeGuidance(guidance_scale=3.0)
LATE = ClassifierFreeGuidance(guidance_scale=3.0, start=0.4)
SKIPS = SkipLayerGuidance(guidance_scale=3.0, **SKIPPING)
STOPS = {
    "wan": Stop("", lambda: wan(FULL), lambda d: inputs(d, 0, 32, num_frames=5), "pn"),
    "wan, guidance from the third step on": Stop(
        "", lambda: wan(LATE), lambda d: inputs(d, 0, 32, num_frames=5), "pn", calls=steps(*[(0,)] * 2, *[(0, 1)] * 3)
    ),
    "wan, skipping layers from the second step on": Stop(
        "", lambda: wan(SKIPS), lambda d: inputs(d, 0, 32, num_frames=5), "pnx", calls=steps((0, 1), *[(0, 1, 2)] * 4)
    ),
    "sdxl": Stop("", lambda: xl(FULL), lambda d: inputs(d, 16, 64), "pn", networks=("unet",)),
    "sd3": Stop("", lambda: sd3(FULL), lambda d: inputs(d, 8, 64), "pn"),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("wan", "BlockCache"),
        ("wan", "TGate"),
        ("wan", "ResidualGuidance"),
        ("wan, guidance from the third step on", "IntervalCache"),
        ("wan, skipping layers from the second step on", "IntervalCache"),
        ("wan, skipping layers from the second step on", "TGate"),
        ("sdxl", "DeepCache"),
        ("sdxl", "TGate"),
        ("sd3", "ResidualGuidance"),
    ],
)
def test_a_guider_tells_the_calls_apart(name: str, method: str) -> None:
    assert walk.walk(STOPS[name], method, torch.float32) == walk.EXACT
