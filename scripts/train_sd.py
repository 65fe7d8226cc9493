"""Train the bundled `emoji-sd`: Stable Diffusion's architecture on 16 x 16 latents, velocity prediction.

Needs the autoencoder (train_autoencoder.py) and the text encoder (train_clip.py), both frozen here. Run again to
resume.
"""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusion import SCHEDULE, LatentPool, TextEncoder, arguments, diffusion_loss, load_vae, look
from training import Run, has_fast_bf16, optimisers

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


def main() -> None:
    """Parse the arguments and train."""
    args = arguments(__doc__, "sd", lr=1.5e-3)
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    text, vae = TextEncoder.load(args.clip, device), load_vae(args.vae, device)
    pool = LatentPool(args.latents, args.data, vae, args.seed, centred=args.centred)
    start = (
        UNet2DConditionModel.from_pretrained(args.init, subfolder="unet")
        if args.init
        else UNet2DConditionModel(**CONFIG)
    )
    unet = start.to(device, memory_format=torch.channels_last)
    alphas = DPMSolverMultistepScheduler(**SCHEDULE).alphas_cumprod
    bf16 = has_fast_bf16(device)

    def denoise(net: UNet2DConditionModel):
        return lambda latents, timesteps, context, _: net(latents, timesteps, context).sample

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        captions, latents = pool.batch(step, args.batch)
        latents = latents.to(device, memory_format=torch.channels_last)
        return diffusion_loss(denoise(unet), text, alphas, captions, latents, step + (args.seed << 32), bf16), {}

    def every(_: int) -> None:
        look(denoise(run.ema), text, vae, args.run / "look.png")
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            unet=run.ema,
            safety_checker=None,
            feature_extractor=None,
            scheduler=DPMSolverMultistepScheduler(**SCHEDULE),
            requires_safety_checker=False,
        ).save_pretrained(args.output)

    run = Run(
        args.run,
        unet,
        loss,
        optimisers(unet, args.lr, 0.01, muon=True),
        args.lr,
        args.steps,
        every=every,
        every_steps=500,
    )
    run.train()


if __name__ == "__main__":
    main()
