"""Train the bundled `emoji-dit`: a PixArt-alpha transformer (arXiv 2310.00426) with the parts of `emoji-sd`.

Needs the autoencoder (train_autoencoder.py) and the text encoder (train_clip.py), both frozen here. Run again to
resume.
"""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from diffusion import SCHEDULE, LatentPool, TextEncoder, arguments, diffusion_loss, load_vae, look
from training import Run, has_fast_bf16, optimisers

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


def main() -> None:
    """Parse the arguments and train."""
    args = arguments(__doc__, "dit", lr=1.5e-3)
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    text, vae = TextEncoder.load(args.clip, device), load_vae(args.vae, device)
    pool = LatentPool(args.latents, args.data, vae, args.seed, centred=args.centred)
    network = PixArtTransformer2DModel
    start = network.from_pretrained(args.init, subfolder="transformer") if args.init else network(**CONFIG)
    transformer = start.to(device)
    alphas = DPMSolverMultistepScheduler(**SCHEDULE).alphas_cumprod
    bf16 = has_fast_bf16(device)

    def denoise(net: PixArtTransformer2DModel):
        return lambda latents, timesteps, context, mask: (
            net(
                latents,
                encoder_hidden_states=context,
                encoder_attention_mask=mask,
                timestep=timesteps,
                added_cond_kwargs=NO_RESOLUTION,
            ).sample
        )

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        captions, latents = pool.batch(step, args.batch)
        return diffusion_loss(
            denoise(transformer), text, alphas, captions, latents.to(device), step + (args.seed << 32), bf16
        ), {}

    def every(_: int) -> None:
        look(denoise(run.ema), text, vae, args.run / "look.png")
        PixArtAlphaPipeline(
            vae=vae,
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            transformer=run.ema,
            scheduler=DPMSolverMultistepScheduler(**SCHEDULE),
        ).save_pretrained(args.output)

    run = Run(
        args.run,
        transformer,
        loss,
        optimisers(transformer, args.lr, 0.01, muon=True),
        args.lr,
        args.steps,
        every=every,
        every_steps=500,
    )
    run.train()


if __name__ == "__main__":
    main()
