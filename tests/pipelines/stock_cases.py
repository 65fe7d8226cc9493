"""The stock pipelines that the custom ones become, with tiny random networks, and a call for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import stream_pipelines
import torch
from cells import cells
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableVideoDiffusionPipeline,
)
from tiny_networks import svd_unet
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from diffaccel.pipelines import (
    FastControlPipeline,
    FastImageToImagePipeline,
    FastInpaintPipeline,
    FastTextToImagePipeline,
    FastTransformerPipeline,
    FastVideoPipeline,
)

OFF = {"requires_safety_checker": False}
PICTURE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
MASK = torch.zeros(1, 1, 32, 32)
MASK[..., 8:24, 8:24] = 1
DEEP = {"type": "deepcache", "interval": 2, "branch": 0}
BLOCKS = {"type": "intervalcache", "schedule": {"type": "uniform", "interval": 2}}


@dataclass(frozen=True)
class Case:
    """A stock pipeline, the custom class that becomes it, arguments of a call, and a method that fits.

    Attributes:
        own: names of arguments that it has beside those of every custom pipeline.
    """

    name: str
    custom: Any
    build: Callable[[], Any]
    call: dict[str, Any]
    cache: dict[str, Any]
    own: frozenset[str] = frozenset()

    def run(self, pipe: Any, **changes: Any) -> torch.Tensor:
        """Pictures or frames of a seeded call, as a tensor."""
        pipe.set_progress_bar_config(disable=True)
        result = pipe(**{**self.call, "generator": torch.Generator().manual_seed(0), **changes}, return_dict=False)[0]
        return result if isinstance(result, torch.Tensor) else torch.stack(list(result))


def sd() -> StableDiffusionPipeline:
    """Stable Diffusion with an AutoencoderKL, whose type `from_pipe` insists on."""
    parts = stream_pipelines.sd(DDIMScheduler, clip_sample=False, steps_offset=1).components | {
        "vae": stream_pipelines._kl(4)
    }
    return StableDiffusionPipeline(**parts, **OFF)


def control(unet: Any) -> ControlNetModel:
    """A ControlNet of the UNet's shape that adds something."""
    torch.manual_seed(1)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8))
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(zero.weight, std=0.3)
    return net.eval()


def of(stock: Any, build: Callable[[], Any], controlled: bool = False) -> Callable[[], Any]:
    """Another stock pipeline on the components of one."""

    def made() -> Any:
        parts = dict(build().components)
        if controlled:
            parts["controlnet"] = control(parts["unet"])
        if "XL" in stock.__name__:
            return stock(**parts, add_watermarker=False)
        return stock(**parts, **OFF)

    return made


def animatediff() -> AnimateDiffPipeline:
    """A picture UNet and a motion adapter."""
    parts = sd().components
    torch.manual_seed(2)
    levels = tuple(parts["unet"].config.block_out_channels)
    layers = parts["unet"].config.layers_per_block
    adapter = MotionAdapter(
        block_out_channels=levels,
        motion_layers_per_block=layers,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    kept = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    return AnimateDiffPipeline(**{name: parts[name] for name in kept}, motion_adapter=adapter.eval())


def svd() -> StableVideoDiffusionPipeline:
    """Image to video."""
    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=32, projection_dim=16, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        intermediate_size=37,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3, block_out_channels=(32, 32, 32), latent_channels=4
    )
    processor = CLIPImageProcessor(crop_size=32, size=32)
    return StableVideoDiffusionPipeline(
        vae=vae.eval(), image_encoder=CLIPVisionModelWithProjection(vision).eval(), unet=svd_unet(),
        scheduler=EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous", sigma_min=0.002,
                                         sigma_max=700.0, use_karras_sigmas=True),
        feature_extractor=processor,
    )  # fmt: skip


TEXT = {"prompt": "a cat", "num_inference_steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32}
IMAGE = {"prompt": "a cat", "num_inference_steps": 4, "guidance_scale": 3.0, "image": PICTURE, "strength": 1.0}
CONTROLLED = TEXT | {"image": PICTURE}
PAINT = IMAGE | {"mask_image": MASK, "height": 32, "width": 32}
OUT = {"output_type": "pt"}
LINED = frozenset({"control_image", "control_scale", "fit"})
T2I, I2I, PAINTER = FastTextToImagePipeline, FastImageToImagePipeline, FastInpaintPipeline

CASES = (
    Case("sd", T2I, sd, TEXT | OUT, DEEP),
    Case("sdxl", T2I, stream_pipelines.sdxl, TEXT | OUT, DEEP),
    Case("sd-control", T2I, of(StableDiffusionControlNetPipeline, sd, True), CONTROLLED | OUT, DEEP),
    Case(
        "sdxl-control", T2I, of(StableDiffusionXLControlNetPipeline, stream_pipelines.sdxl, True),
        CONTROLLED | OUT, DEEP,
    ),
    Case(
        "sd-control-lines", FastControlPipeline, of(StableDiffusionControlNetPipeline, sd, True), CONTROLLED | OUT,
        {"type": "controlcache", "interval": 2}, LINED,
    ),
    Case(
        "pixart-lines", FastControlPipeline, stream_pipelines.pixart,
        TEXT | OUT | {"use_resolution_binning": False, "clean_caption": False}, BLOCKS, LINED,
    ),
    Case("sd-image", I2I, of(StableDiffusionImg2ImgPipeline, sd), IMAGE | OUT, DEEP),
    Case("sdxl-image", I2I, of(StableDiffusionXLImg2ImgPipeline, stream_pipelines.sdxl), IMAGE | OUT, DEEP),
    Case(
        "sd-control-image", I2I, of(StableDiffusionControlNetImg2ImgPipeline, sd, True),
        IMAGE | OUT | {"control_image": PICTURE}, DEEP,
    ),
    Case("sd-inpaint", PAINTER, of(StableDiffusionInpaintPipeline, sd), PAINT | OUT, DEEP),
    Case("sdxl-inpaint", PAINTER, of(StableDiffusionXLInpaintPipeline, stream_pipelines.sdxl), PAINT | OUT, DEEP),
    Case(
        "sd-control-inpaint", PAINTER, of(StableDiffusionControlNetInpaintPipeline, sd, True),
        PAINT | OUT | {"control_image": PICTURE}, DEEP,
    ),
    Case(
        "pixart", FastTransformerPipeline, stream_pipelines.pixart,
        TEXT | OUT | {"use_resolution_binning": False, "clean_caption": False}, BLOCKS,
    ),
    Case(
        "sana", FastTransformerPipeline, stream_pipelines.sana,
        TEXT | OUT | {"use_resolution_binning": False, "clean_caption": False}, BLOCKS,
    ),
    Case("sd3", FastTransformerPipeline, stream_pipelines.sd3, TEXT | OUT, BLOCKS),
    Case("flux", FastTransformerPipeline, stream_pipelines.flux, TEXT | OUT, BLOCKS),
    Case("animatediff", FastVideoPipeline, animatediff, TEXT | OUT | {"num_frames": 2}, DEEP),
    Case(
        "svd", FastVideoPipeline, svd,
        {"image": PICTURE, "num_frames": 2, "height": 32, "width": 32, "num_inference_steps": 4, "output_type": "pt"},
        DEEP,
    ),
)  # fmt: skip
QUICK = ("sd", "sdxl-inpaint", "pixart-lines", "flux")
EVERY = cells(CASES, quick=lambda case: case.name in QUICK, name=lambda case: case.name)
"""The cases as parameters, of which some belong to the quick tests."""
