"""Train a PT-DiT (arXiv 2409.04005) from a PixArt-like model's weights: `emoji-ptdit` from `emoji-dit`.

    python scripts/train_ptdit.py --teacher emoji-sd
    python scripts/train_ptdit.py --full 1 --run runs/full --output runs/full/model     # its twin with full attention

A network that cuts latents into patches of 2 x 2 is first made one of single latents, four times as many tokens. The
autoencoder and the text encoder are those of the bundled models, both frozen here. With `--teacher` it learns a UNet's
predictions on the same latents. Run again to resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from control_nets import base_folder
from diffusers import PixArtTransformer2DModel
from diffusion import arguments, train_denoiser
from train_dit import denoise, load_teacher, pipeline

from diffaccel import PTDiTTransformer2DModel


@torch.no_grad()
def finer(transformer: PixArtTransformer2DModel) -> PixArtTransformer2DModel:
    """The network on single latents: each is embedded like a patch that it fills, at its place among the patches.

    What a token gives is the mean of what a patch gave to its latents.
    """
    patch, config = transformer.config.patch_size, transformer.config
    made = PixArtTransformer2DModel.from_config(config, patch_size=1, interpolation_scale=patch)
    weights = transformer.state_dict()
    weights["pos_embed.pos_embed"] = made.pos_embed.pos_embed
    weights["pos_embed.proj.weight"] = weights["pos_embed.proj.weight"].sum((2, 3), keepdim=True)
    for name in ("proj_out.weight", "proj_out.bias"):
        weights[name] = weights[name].unflatten(0, (patch * patch, -1)).mean(0)
    made.load_state_dict(weights, strict=False)
    return made


def new_network(folder: Path, window: int, compression: int, full: bool) -> Any:
    """The network to train, of single latents, from a pipeline's folder."""
    transformer = PixArtTransformer2DModel.from_pretrained(folder, subfolder="transformer").float()
    base = finer(transformer) if transformer.config.patch_size > 1 else transformer
    return base if full else PTDiTTransformer2DModel.from_transformer(base, window, compression)


def main() -> None:
    """Parse the arguments and train."""
    parts = {"vae": base_folder("emoji-dit") / "vae", "clip": base_folder("emoji-clip")}
    args = arguments(__doc__, "ptdit", lr=5e-4, **parts, teacher="", window=8, compression=4, full=0)
    torch.manual_seed(args.seed)
    network = new_network(args.init or base_folder("emoji-dit"), args.window, args.compression, bool(args.full))
    print(f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters", flush=True)
    teacher = load_teacher(base_folder(args.teacher), args.device) if args.teacher else None
    train_denoiser(args, network, denoise, pipeline, teacher=teacher)


if __name__ == "__main__":
    main()
