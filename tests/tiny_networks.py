"""Tiny denoisers with random weights, in the shapes of published models, and pipelines around them without encoders."""

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    I2VGenXLUNet,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)

TEXT = 16  # features of a prompt embedding


def sd_unet(**changes: Any) -> UNet2DConditionModel:
    """Stable Diffusion 1.5: four levels, two layers each, cross-attention in all but the lowest."""
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": TEXT,
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


# Changes of `sd_unet` for tests that are not about prompts: as many levels and layers, in two thirds of the time.
LIGHT = {
    "down_block_types": ("CrossAttnDownBlock2D",) + ("DownBlock2D",) * 3,
    "up_block_types": ("UpBlock2D",) * 3 + ("CrossAttnUpBlock2D",),
}


def sdxl_unet(**changes: Any) -> UNet2DConditionModel:
    """Stable Diffusion XL: three levels, several transformer blocks a layer, pooled embeddings and time ids."""
    config = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 2, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT,
    }
    return sd_unet(**{**config, **changes})


def unet_inputs(unet: UNet2DConditionModel, rows: int = 2, size: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs of a UNet, without the timestep."""
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Any] = {
        "sample": torch.randn(rows, unet.config.in_channels, size, size, generator=generator),
        "encoder_hidden_states": torch.randn(rows, 7, TEXT, generator=generator),
    }
    if unet.config.addition_embed_type == "text_time":
        pooled = torch.randn(rows, TEXT, generator=generator)
        inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.ones(rows, 6)}
    return inputs


def pipeline(unet: UNet2DConditionModel, scheduler: Any = None) -> Any:
    """A stock text-to-image pipeline around `unet`, for prompt embeddings in and latents out."""
    scheduler = scheduler or DDIMScheduler(steps_offset=1, clip_sample=False)
    parts = {"vae": None, "text_encoder": None, "tokenizer": None, "unet": unet, "scheduler": scheduler}
    if unet.config.addition_embed_type == "text_time":
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
    else:
        off = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, **off)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Any, steps: int = 6, seed: int = 0, **options: Any) -> torch.Tensor:
    """Latents that `pipe` makes of random prompt embeddings."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {f"{kind}prompt_embeds": torch.randn(1, 7, TEXT, generator=generator) for kind in ("", "negative_")}
    if isinstance(pipe, StableDiffusionXLPipeline):
        pooled = {kind: torch.randn(1, TEXT, generator=generator) for kind in ("", "negative_")}
        inputs |= {f"{kind}pooled_prompt_embeds": value for kind, value in pooled.items()}
    size = {} if "image" in options else {"height": 128, "width": 128}
    settings = {"num_inference_steps": steps, "output_type": "latent", "generator": generator, **size, **inputs}
    return pipe(**{**settings, **options}).images


def ddpm_unet() -> UNet2DModel:
    """DDPM: no prompt, attention in the lower level."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def motion_unet() -> UNetMotionModel:
    """AnimateDiff: a picture UNet with motion modules; samples are (rows, channels, frames, height, width)."""
    torch.manual_seed(0)
    return UNetMotionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=2,
        cross_attention_dim=TEXT,
        norm_num_groups=4,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    ).eval()


def svd_unet() -> UNetSpatioTemporalConditionModel:
    """Stable Video Diffusion: temporal layers beside spatial ones; samples are (rows, frames, channels, h, w)."""
    torch.manual_seed(0)
    return UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=2,
        cross_attention_dim=TEXT,
        num_attention_heads=(2, 4),
    ).eval()


def unet3d() -> UNet3DConditionModel:
    """ModelScope text-to-video: temporal convolutions and attentions; samples are (rows, channels, frames, h, w)."""
    torch.manual_seed(0)
    return UNet3DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=2,
        cross_attention_dim=TEXT,
        attention_head_dim=16,
        norm_num_groups=8,
    ).eval()


def i2vgen_unet() -> I2VGenXLUNet:
    """I2VGen-XL: picture to video; samples are (rows, channels, frames, h, w)."""
    torch.manual_seed(0)
    return I2VGenXLUNet(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=2,
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        num_attention_heads=2,
        norm_num_groups=8,
    ).eval()


def picture_unet() -> UNet2DConditionModel:
    """The smallest UNet for pictures with a prompt: two levels of two layers."""
    blocks = {
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return sd_unet(**blocks)


UNETS = {
    "UNet2DConditionModel": picture_unet,
    "UNet2DModel": ddpm_unet,
    "UNetMotionModel": motion_unet,
    "UNetSpatioTemporalConditionModel": svd_unet,
    "UNet3DConditionModel": unet3d,
    "I2VGenXLUNet": i2vgen_unet,
}


def network_inputs(model: Any, rows: int = 2, seed: int = 0) -> dict[str, Any]:
    """Random inputs of any network here, without the timestep; the first is the sample."""
    generator = torch.Generator().manual_seed(seed)
    name = type(model).__name__
    if name == "UNet2DConditionModel":
        return unet_inputs(model, rows, size=8, seed=seed)
    frames, channels, text = 2, model.config.in_channels, torch.randn(rows, 7, TEXT, generator=generator)
    if name == "UNet2DModel":
        return {"sample": torch.randn(rows, channels, 8, 8, generator=generator)}
    if name == "UNetSpatioTemporalConditionModel":
        sample = torch.randn(rows, frames, channels, 8, 8, generator=generator)
        return {"sample": sample, "encoder_hidden_states": text[:, :3], "added_time_ids": torch.ones(rows, 3)}
    sample = torch.randn(rows, channels, frames, 8, 8, generator=generator)
    if name == "I2VGenXLUNet":
        image = torch.randn(rows, channels, frames, 8, 8, generator=generator)
        embedding = torch.randn(rows, TEXT, generator=generator)
        fps = torch.full((rows,), 8)
        extra = {"image_latents": image, "image_embeddings": embedding, "fps": fps}
        return {"sample": sample, "encoder_hidden_states": text, **extra}
    if name == "UNetMotionModel":
        text = text.repeat_interleave(frames, dim=0)
    return {"sample": sample, "encoder_hidden_states": text}
