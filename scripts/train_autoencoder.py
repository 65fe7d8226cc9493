"""Train the bundled autoencoder (AutoencoderTiny, 128 x 128 pixels -> 16 x 16 x 4 latents) on emoji drawings.

First encoder and decoder together, with latents pulled towards a unit Gaussian; then, with `--decoder-only` and the
encoder frozen, the decoder alone. `--distil` trains a small autoencoder for streams on the latents of a trained one: an
eleventh of the multiply-accumulates for the same diffusion models. Run again to resume.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from emoji_data import COLOURS, Placed, background_rgb, compose, contact_sheet, place, recolour, render_all
from torch import nn
from training import Run, has_fast_bf16, optimisers

CONFIG = {
    "encoder_block_out_channels": (32, 32, 32, 32),
    "decoder_block_out_channels": (32, 32, 32, 32),
    "num_encoder_blocks": (1, 1, 2, 3),
    "num_decoder_blocks": (4, 3, 2, 1),
    "latent_channels": 4,
}
SMALL = CONFIG | {
    "encoder_block_out_channels": (16, 16, 16, 16),
    "decoder_block_out_channels": (16, 16, 16, 16),
    "num_encoder_blocks": (0, 0, 1, 3),  # none at full resolution, where most of the time goes
    "num_decoder_blocks": (1, 1, 2, 0),
}


def split(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All drawings, and those held out: one name in twenty, in both styles."""
    train, test = [], []
    for drawings in render_all(folder).values():
        for name, rgba in drawings.items():
            (test if zlib.crc32(name.encode()) % 20 == 0 else train).append(rgba)
    return train, test


def scene(drawings: list[np.ndarray], rng: np.random.Generator) -> tuple[list[Placed], np.ndarray]:
    """One or two drawings at random places, a third of them recoloured, one in four on a coloured background."""
    colours = list(COLOURS)
    background = np.ones(3, np.float32)
    if rng.random() < 0.25:
        background = background_rgb(colours[rng.integers(len(colours))], rng)
    placed = []
    for _ in range(1 + (rng.random() < 0.3)):
        rgba = drawings[rng.integers(len(drawings))]
        if rng.random() < 0.3:
            rgba = recolour(rgba, colours[rng.integers(len(colours))])
        placed.append(
            place(rgba, rng.uniform(0.4, 1.0), rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), rng.uniform(-15, 15))
        )
    return placed, background


def crops(pictures: torch.Tensor, size: int, count: int, rng: np.random.Generator) -> torch.Tensor:
    """`count` crops of each picture, positions on the latents' grid of 8 pixels: (count * batch, 3, size, size)."""
    room = (pictures.shape[-1] - size) // 8
    result = []
    for picture in pictures:
        for _ in range(count):
            y, x = (8 * rng.integers(room + 1, size=2)).tolist()
            result.append(picture[:, y : y + size, x : x + size])
    return torch.stack(result)


def gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences to the right and to the lower neighbour."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + half the L1 of the gradients."""
    pairs = zip(gradients(output), gradients(target), strict=True)
    return F.l1_loss(output, target) + F.mse_loss(output, target) + 0.5 * sum(F.l1_loss(a, b) for a, b in pairs)


def gaussian_loss(latents: torch.Tensor) -> torch.Tensor:
    """Distance of the channels' means, deviations and correlations from a unit Gaussian's."""
    flat = latents.permute(1, 0, 2, 3).flatten(1)  # (4, batch * h * w)
    centred = flat - flat.mean(1, keepdim=True)
    covariance = centred @ centred.T / flat.shape[1]
    return flat.mean(1).square().mean() + (covariance - torch.eye(len(flat), device=flat.device)).square().mean()


@torch.no_grad()
def psnr(vae: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Mean over pictures of the reconstruction's PSNR in dB."""
    mse = []
    for batch in pictures.split(16):
        output = vae.decode(vae.encode(batch).latents).sample.clamp(-1, 1)
        mse.append(((output - batch) / 2).square().flatten(1).mean(1))
    return (-10 * torch.cat(mse).clamp(min=1e-10).log10()).mean()


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--run", type=Path, default=Path("runs/autoencoder"))
    parser.add_argument("--output", type=Path, default=Path("runs/autoencoder/vae"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--muon", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--decoder-only", type=Path, metavar="VAE", help="freeze the encoder of this folder, train its decoder"
    )
    parser.add_argument("--distil", type=Path, metavar="VAE", help="train a small one on the latents of this folder")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    train, test = split(args.data)
    white = np.ones(3, np.float32)
    held_out = compose([([place(rgba, 1.0, 0.0, 0.0, 0.0)], white) for rgba in test[:: max(1, len(test) // 96)]]).to(
        device
    )
    new = AutoencoderTiny(**(SMALL if args.distil else CONFIG))
    vae = AutoencoderTiny.from_pretrained(args.decoder_only) if args.decoder_only else new
    vae.to(device, memory_format=torch.channels_last)
    teacher = AutoencoderTiny.from_pretrained(args.distil).to(device).requires_grad_(False) if args.distil else None
    vae.encoder.requires_grad_(not args.decoder_only)
    bf16 = has_fast_bf16(device)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng((args.seed, step, 7 if args.decoder_only else 0))
        pictures = compose([scene(train, rng) for _ in range(args.batch // 2)])
        target = crops(pictures, 64, 2, rng).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            latents = own = vae.encode(target).latents
            if teacher is not None:
                latents = teacher.encode(target).latents
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step)).to(device)
            output = vae.decode(latents + (0.03 if args.decoder_only else 0.05) * noise).sample
        reconstruction = reconstruction_loss(output.float(), target)
        if teacher is not None:
            apart = F.mse_loss(own.float(), latents.float())
            return reconstruction + 0.3 * apart, {"latents": apart.item()}
        regular = gaussian_loss(latents.float())
        total = reconstruction if args.decoder_only else reconstruction + 0.01 * regular
        return total, {"regular": regular.item()}

    def evaluate(step: int) -> None:
        run.log(step=step, psnr=psnr(run.ema, held_out).item(), psnr_now=psnr(vae, held_out).item())
        with torch.no_grad():
            sample = held_out[:24]
            output = run.ema.decode(run.ema.encode(sample).latents).sample
        contact_sheet(torch.cat([sample, output]).cpu(), 12).save(args.run / "reconstructions.png")

    run = Run(
        args.run,
        vae,
        loss,
        optimisers(vae, args.lr, 0.0, muon=args.muon),
        args.lr,
        args.steps,
        every=evaluate,
        every_steps=250,
    )
    run.train()
    if teacher is not None:
        run.ema.register_to_config(scaling_factor=teacher.config.scaling_factor)
        run.ema.save_pretrained(args.output)
        return
    with torch.no_grad():
        latents = torch.cat(
            [run.ema.encode(batch).latents for batch in compose_many(train, args.seed).to(device).split(16)]
        )
    run.ema.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    run.log(mean=latents.mean().item(), std=latents.std().item())
    run.ema.save_pretrained(args.output)


def compose_many(drawings: list[np.ndarray], seed: int, count: int = 256) -> torch.Tensor:
    """`count` random scenes, for the latents' statistics."""
    rng = np.random.default_rng((seed, 99))
    return compose([scene(drawings, rng) for _ in range(count)])


if __name__ == "__main__":
    main()
