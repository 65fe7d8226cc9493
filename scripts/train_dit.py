"""Train the bundled `emoji-dit`: a PixArt-alpha transformer (arXiv 2310.00426) with the parts of `emoji-sd`.

Needs the autoencoder (train_autoencoder.py) and the text encoder (train_clip.py), both frozen here. With `--teacher`
it learns the predictions of a UNet on the same latents; with `--init` and more `--layers` than that model has it is
deepened first, without a change to what it computes. Run again to resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import train_sd
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel, UNet2DConditionModel
from diffusion import Denoiser, arguments, train_denoiser
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    """How the network is called; for 64 tokens the plain attention is the fastest, above all backwards."""

    def call(latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            output: torch.Tensor = transformer(
                latents,
                encoder_hidden_states=context,
                encoder_attention_mask=mask,
                timestep=timesteps,
                added_cond_kwargs=NO_RESOLUTION,
            ).sample
        return output

    return call


@torch.no_grad()
def deepen(transformer: PixArtTransformer2DModel, layers: int) -> PixArtTransformer2DModel:
    """The same function with more blocks: each new one is a copy of the block before it whose outputs are zero."""
    old = len(transformer.transformer_blocks)
    if layers < old:
        raise ValueError(f"cannot deepen {old} blocks to {layers}: give --layers of {old} or more")
    deeper = PixArtTransformer2DModel.from_config(transformer.config, num_layers=layers)
    rest = {k: v for k, v in transformer.state_dict().items() if not k.startswith("transformer_blocks.")}
    deeper.load_state_dict(rest, strict=False)
    sources = [i * old // layers for i in range(layers)]
    for i, (block, source) in enumerate(zip(deeper.transformer_blocks, sources, strict=True)):
        block.load_state_dict(transformer.transformer_blocks[source].state_dict())
        if i and sources[i - 1] == source:
            for output in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
                output.weight.zero_()
                output.bias.zero_()
    return deeper


def pipeline(transformer: PixArtTransformer2DModel, **parts: Any) -> PixArtAlphaPipeline:
    """The pipeline to save."""
    return PixArtAlphaPipeline(transformer=transformer, **parts)


def load_teacher(folder: Path, device: str) -> Denoiser:
    """The frozen UNet of a pipeline's folder."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval().requires_grad_(False)
    unet.to(device, memory_format=torch.channels_last)
    call = train_sd.denoise(unet)
    return lambda latents, *rest: call(latents.contiguous(memory_format=torch.channels_last), *rest)


def main() -> None:
    """Parse the arguments and train."""
    args = arguments(__doc__, "dit", lr=1.5e-3, layers=LAYERS, teacher="")
    torch.manual_seed(args.seed)
    if args.init:
        transformer = deepen(PixArtTransformer2DModel.from_pretrained(args.init, subfolder="transformer"), args.layers)
    else:
        transformer = PixArtTransformer2DModel(**{**CONFIG, "num_layers": args.layers})
    teacher = load_teacher(Path(args.teacher), args.device) if args.teacher else None
    train_denoiser(args, transformer, denoise, pipeline, teacher=teacher)


if __name__ == "__main__":
    main()
