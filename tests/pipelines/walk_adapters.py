"""Pipelines around Stable Diffusion's UNets with ControlNets and adapters beside them, or with perturbed attention."""

from dataclasses import replace
from typing import Any

import diffusers
from tiny_networks import motion_unet
from walk_parts import Draw, Stop, seeded
from walk_unets import (
    HALF,
    animated,
    control,
    mask,
    picture_inputs,
    sd,
    sd_inputs,
    video_inputs,
    with_controlnet,
    xl,
    xl_inputs,
    xl_picture,
)

SHARED = (
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "down_block_types",
    "layers_per_block",
    "norm_num_groups",
    "projection_class_embeddings_input_dim",
    "transformer_layers_per_block",
    "use_linear_projection",
)
EMBEDDING = {"conditioning_embedding_out_channels": (4, 8, 8, 16)}


def adapter(channels: tuple[int, ...], kind: str, factor: int) -> Any:
    return seeded(
        lambda: diffusers.T2IAdapter(
            in_channels=3, channels=list(channels), num_res_blocks=1, downscale_factor=factor, adapter_type=kind
        )
    )


def with_union(name: str) -> Any:
    unet = xl("StableDiffusionXLPipeline").unet
    config = {key: unet.config[key] for key in SHARED}
    sizes = {"num_trans_channel": 8, "num_trans_head": 2, "num_trans_layer": 1, "num_proj_channel": 8}
    net = seeded(lambda: diffusers.ControlNetUnionModel(**config, **EMBEDDING, **sizes, num_control_type=6))
    return xl(name, unet=unet, controlnet=net)


def animated_control(name: str) -> Any:
    unet = motion_unet()
    config = {key: unet.config[key] for key in ("block_out_channels", "layers_per_block", "norm_num_groups")}
    kinds = tuple(kind.replace("Motion", "2D") for kind in unet.config.down_block_types)
    net = seeded(
        lambda: diffusers.ControlNetModel(
            **config,
            **EMBEDDING,
            down_block_types=kinds,
            cross_attention_dim=unet.config.cross_attention_dim,
            attention_head_dim=2,
        )
    )
    return animated(name, unet=unet, controlnet=net)


def frames(d: Draw) -> list[Any]:
    return [d.picture(3, 64, 64).float()] * 2


def painted(d: Draw, make: Any = sd_inputs, **more: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = make(d, image=d.picture(1, 3, 64, 64), mask_image=mask(), strength=1.0, **more)
    return inputs


def united(d: Draw, make: Any = xl_inputs, **more: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = make(d, control_image=[control(d)], control_mode=[1], **more)
    return inputs


STOPS = [
    Stop(
        "StableDiffusionAdapterPipeline",
        lambda: sd("StableDiffusionAdapterPipeline", adapter=adapter((8, 16), "full_adapter", 8)),
        lambda d: sd_inputs(d, image=d.picture(1, 3, 64, 64)),
        "b",
    ),
    Stop(
        "StableDiffusionXLAdapterPipeline",
        lambda: xl("StableDiffusionXLAdapterPipeline", adapter=adapter((8, 16, 16, 16), "full_adapter_xl", 16)),
        lambda d: xl_inputs(d, image=d.picture(1, 3, 64, 64)),
        "b",
    ),
    Stop("StableDiffusionPAGInpaintPipeline", lambda: sd("StableDiffusionPAGInpaintPipeline"), painted, "x"),
    Stop(
        "StableDiffusionControlNetPAGInpaintPipeline",
        lambda: with_controlnet("StableDiffusionControlNetPAGInpaintPipeline", sd),
        lambda d: painted(d, control_image=control(d)),
        "x",
    ),
    Stop("StableDiffusionXLPAGImg2ImgPipeline", lambda: xl("StableDiffusionXLPAGImg2ImgPipeline"), xl_picture, "x", 4),
    Stop(
        "StableDiffusionXLPAGInpaintPipeline",
        lambda: xl("StableDiffusionXLPAGInpaintPipeline"),
        lambda d: painted(d, xl_inputs),
        "x",
    ),
    Stop(
        "StableDiffusionXLControlNetImg2ImgPipeline",
        lambda: with_controlnet("StableDiffusionXLControlNetImg2ImgPipeline", xl),
        lambda d: xl_picture(d, control_image=control(d)),
        "b",
        4,
    ),
    Stop(
        "StableDiffusionXLControlNetInpaintPipeline",
        lambda: with_controlnet("StableDiffusionXLControlNetInpaintPipeline", xl),
        lambda d: painted(d, xl_inputs, control_image=control(d)),
        "b",
    ),
    Stop(
        "StableDiffusionXLControlNetPAGPipeline",
        lambda: with_controlnet("StableDiffusionXLControlNetPAGPipeline", xl),
        lambda d: xl_inputs(d, image=control(d)),
        "x",
    ),
    Stop(
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        lambda: with_controlnet("StableDiffusionXLControlNetPAGImg2ImgPipeline", xl),
        lambda d: xl_picture(d, control_image=control(d)),
        "x",
        4,
    ),
    Stop(
        "StableDiffusionXLControlNetUnionPipeline",
        lambda: with_union("StableDiffusionXLControlNetUnionPipeline"),
        united,
        "b",
    ),
    Stop(
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        lambda: with_union("StableDiffusionXLControlNetUnionImg2ImgPipeline"),
        lambda d: united(d, xl_picture),
        "b",
        4,
    ),
    Stop(
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        lambda: with_union("StableDiffusionXLControlNetUnionInpaintPipeline"),
        lambda d: painted(d, xl_inputs, control_image=[control(d)], control_mode=[1]),
        "b",
    ),
    Stop(
        "AnimateDiffControlNetPipeline",
        lambda: animated_control("AnimateDiffControlNetPipeline"),
        lambda d: video_inputs(d, conditioning_frames=frames(d)),
        "b",
    ),
    Stop(
        "AnimateDiffVideoToVideoControlNetPipeline",
        lambda: animated_control("AnimateDiffVideoToVideoControlNetPipeline"),
        lambda d: {**sd_inputs(d), "video": frames(d), "conditioning_frames": frames(d), **HALF},
        "b",
        4,
    ),
    Stop(
        "StableDiffusionPipeline, guidance ends early",
        lambda: sd("StableDiffusionPipeline"),
        lambda d: sd_inputs(
            d, callback_on_step_end=stops_guiding, callback_on_step_end_tensor_inputs=["prompt_embeds"]
        ),
        ("b", "x"),
        calls=lambda index: (index, int(index > 1)),
    ),
    Stop(
        "StableDiffusionImg2ImgPipeline, several pictures",
        lambda: sd("StableDiffusionImg2ImgPipeline"),
        lambda d: picture_inputs(d, num_images_per_prompt=2),
        "b",
        4,
    ),
]


def stops_guiding(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
    """After two steps, as diffusers' own guide shows it."""
    if step != 1:
        return {}
    pipe._guidance_scale = 0.0
    return {"prompt_embeds": given["prompt_embeds"].chunk(2)[-1]}


STOPS = [replace(stop, networks=("unet",)) for stop in STOPS]
