"""Train the bundled `emoji-sd`: Stable Diffusion's architecture on 16 x 16 latents, velocity prediction.

Needs the autoencoder (train_autoencoder.py) and the text encoder (train_clip.py), both frozen here. Run again to
resume.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusion import Denoiser, arguments, train_denoiser

CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}


def denoise(unet: UNet2DConditionModel) -> Denoiser:
    """How the network is called; its context has no mask, as in Stable Diffusion."""
    return lambda latents, timesteps, context, _: unet(latents, timesteps, context).sample


def pipeline(unet: UNet2DConditionModel, **parts: Any) -> StableDiffusionPipeline:
    """The pipeline to save."""
    return StableDiffusionPipeline(
        unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts
    )


def main() -> None:
    """Parse the arguments and train."""
    args = arguments(__doc__, "sd", lr=1.5e-3)
    torch.manual_seed(args.seed)
    load = UNet2DConditionModel.from_pretrained
    unet = load(args.init, subfolder="unet") if args.init else UNet2DConditionModel(**CONFIG)
    train_denoiser(args, unet, denoise, pipeline, torch.channels_last)


if __name__ == "__main__":
    main()
