"""Pipelines in the shape of Stable Diffusion with random weights: for embeddings in and latents out, or for streams."""

from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

PROMPT = (1, 77, 768)


def sd15_unet() -> UNet2DConditionModel:
    """The denoiser of Stable Diffusion 1.5, 860 million parameters."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ).eval()  # fmt: skip


def turbo_unet() -> UNet2DConditionModel:
    """The denoiser of SD-Turbo and Stable Diffusion 2.1, 866 million parameters."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ).eval()  # fmt: skip


def sd15_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for it, 361 million parameters, whose residuals are not all zero as they are before training."""
    torch.manual_seed(1)
    net = ControlNetModel.from_unet(unet)
    for zero in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(zero.weight, std=0.01)
    return net.eval()


def pipeline(unet: UNet2DConditionModel, controlnet: ControlNetModel | None = None) -> Any:
    """A stock pipeline without encoders and without a VAE."""
    parts: dict[str, Any] = {
        "vae": None, "text_encoder": None, "tokenizer": None, "unet": unet,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False, beta_schedule="scaled_linear"),
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip
    pipe = (
        StableDiffusionPipeline(**parts)
        if controlnet is None
        else StableDiffusionControlNetPipeline(**parts, controlnet=controlnet)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stream_pipeline(bundled: Any, unet: UNet2DConditionModel, dtype: torch.dtype) -> Any:
    """A pipeline that streams, with a TinyVAE of random weights, and zeros for the embeddings of all texts."""
    pipe = StableDiffusionPipeline(
        vae=AutoencoderTiny().eval(), text_encoder=bundled.text_encoder, tokenizer=bundled.tokenizer, unet=unet,
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.to(dtype)
    shape = (1, 77, unet.config.cross_attention_dim)
    pipe.encode_prompt = lambda _, device, *__, **___: (torch.zeros(shape, dtype=dtype, device=device), None)
    return pipe


def latents(pipe: Any, steps: int, size: int = 32, guidance_scale: float = 1.0) -> torch.Tensor:
    """One run of such a pipeline from the same noise each time, (1, 4, size, size); one row a call without guidance."""
    generator = torch.Generator().manual_seed(0)
    prompts = {f"{kind}prompt_embeds": torch.randn(PROMPT, generator=generator) for kind in ("", "negative_")}
    if guidance_scale <= 1:
        del prompts["negative_prompt_embeds"]
    image = torch.rand(1, 3, 8 * size, 8 * size, generator=generator)
    more = {"image": image} if hasattr(pipe, "controlnet") else {"height": 8 * size, "width": 8 * size}
    result: torch.Tensor = pipe(
        num_inference_steps=steps, guidance_scale=guidance_scale, generator=generator, output_type="latent",
        **prompts, **more,
    ).images  # fmt: skip
    return result
