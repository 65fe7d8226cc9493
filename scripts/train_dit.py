"""Train the bundled `emoji-dit`: a PixArt-alpha transformer (arXiv 2310.00426) with the parts of `emoji-sd`.

Needs the autoencoder (train_autoencoder.py) and the text encoder (train_clip.py), both frozen here. Run again to
resume.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel
from diffusion import Denoiser, arguments, train_denoiser

WIDTH, HEADS, LAYERS = 192, 6, 6
CONFIG = {
    "num_attention_heads": HEADS,
    "attention_head_dim": WIDTH // HEADS,
    "num_layers": LAYERS,
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "sample_size": 16,
    "caption_channels": 128,
    "cross_attention_dim": WIDTH,
    "use_additional_conditions": False,
}
NO_RESOLUTION = {"resolution": None, "aspect_ratio": None}


def denoise(transformer: PixArtTransformer2DModel) -> Denoiser:
    """How the network is called."""
    return lambda latents, timesteps, context, mask: (
        transformer(
            latents,
            encoder_hidden_states=context,
            encoder_attention_mask=mask,
            timestep=timesteps,
            added_cond_kwargs=NO_RESOLUTION,
        ).sample
    )


def pipeline(transformer: PixArtTransformer2DModel, **parts: Any) -> PixArtAlphaPipeline:
    """The pipeline to save."""
    return PixArtAlphaPipeline(transformer=transformer, **parts)


def main() -> None:
    """Parse the arguments and train."""
    args = arguments(__doc__, "dit", lr=1.5e-3)
    torch.manual_seed(args.seed)
    load = PixArtTransformer2DModel.from_pretrained
    transformer = load(args.init, subfolder="transformer") if args.init else PixArtTransformer2DModel(**CONFIG)
    train_denoiser(args, transformer, denoise, pipeline)


if __name__ == "__main__":
    main()
