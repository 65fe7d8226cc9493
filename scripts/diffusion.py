"""What the diffusion training scripts share: a pool of encoded samples, the loss, sampling for a look."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DiffusionPipeline, DPMSolverMultistepScheduler
from emoji_data import Emojis, contact_sheet
from safetensors import safe_open
from torch import nn
from train_clip import tokenize
from training import Run, has_fast_bf16, optimisers, save_shard
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}

TRAINED_VAE, TRAINED_CLIP = Path("runs/autoencoder/vae"), Path("runs/clip/model")
# shares of coloured, paired and centred drawings that training ends with
CENTRED = {"p_colour": 0.12, "p_pair": 0.1, "p_background": 0.05, "p_centred": 0.85}


class Denoiser(Protocol):
    """A network that predicts v from noisy latents, timesteps and the text encoder's output."""

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Latents (batch, 4, 16, 16), timesteps (batch,), context (batch, tokens, 128), mask (batch, tokens)."""


@dataclass
class TextEncoder:
    """The frozen text encoder of the bundled CLIP."""

    tokenizer: CLIPTokenizer
    model: CLIPTextModel

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> TextEncoder:
        """From a folder of train_clip.py."""
        model = CLIPModel.from_pretrained(folder).text_model
        return cls(CLIPTokenizer.from_pretrained(folder), model.to(device).eval().requires_grad_(False))

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Context (captions, tokens, 128) and the mask of real tokens (captions, tokens)."""
        ids = tokenize(self.tokenizer, captions).to(self.model.device)
        first_end = (ids == self.tokenizer.eos_token_id).int().argmax(1, keepdim=True)
        mask = torch.arange(ids.shape[1], device=ids.device)[None] <= first_end
        return self.model(ids).last_hidden_state, mask


class LatentPool:
    """Encoded samples in shards on disk, each made when first asked for; equal for equal seed and autoencoder."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        vae: AutoencoderTiny,
        seed: int = 0,
        shards: int = 20,
        shard_size: int = 2048,
        centred: bool = False,
    ) -> None:
        self.folder = folder / f"{'centred' if centred else 'scattered'}-{seed}"
        self.vae, self.shards, self.shard_size = vae, 6 if centred else shards, shard_size
        self.emojis = Emojis(data, seed=seed + (3 if centred else 2), **(CENTRED if centred else {}))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._current: tuple[int, list[str], torch.Tensor] | None = None

    @torch.no_grad()
    def _make(self, shard: int, file: Path) -> None:
        captions: list[str] = []
        latents = []
        device = next(self.vae.parameters()).device
        bf16 = has_fast_bf16(device)
        for start in range(shard * self.shard_size, (shard + 1) * self.shard_size, 64):
            names, pictures = self.emojis.batch(range(start, start + 64))
            captions += names
            pictures = pictures.to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                # four at a time: what they need stays in a processor's cache
                latents += [self.vae.encode(few).latents.half().cpu().contiguous() for few in pictures.split(4)]
        save_shard(file, {"latents": torch.cat(latents)}, captions)

    def _shard(self, shard: int) -> tuple[list[str], torch.Tensor]:
        if self._current is None or self._current[0] != shard:
            file = self.folder / f"{shard:03d}.safetensors"
            if not file.exists():
                self._make(shard, file)
            with safe_open(file, "pt") as stored:
                captions = stored.metadata()["captions"].split("\n")
                self._current = (shard, captions, stored.get_tensor("latents"))
        return self._current[1], self._current[2]

    def batch(self, step: int, size: int) -> tuple[list[str], torch.Tensor]:
        """Captions and latents of unit variance, (size, 4, 16, 16), of a step; shuffled anew on every pass."""
        per_shard = self.shard_size // size
        visit, position = divmod(step, per_shard)
        captions, latents = self._shard(visit % self.shards)
        order = np.random.default_rng((visit, 5)).permutation(self.shard_size)
        chosen = order[position * size : (position + 1) * size]
        return [captions[i] for i in chosen], latents[torch.from_numpy(chosen)].float() * self.vae.config.scaling_factor


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents and the velocity v = sqrt(a) noise - sqrt(1 - a) latents (Salimans & Ho, arXiv 2202.00512)."""
    a, b = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    return a * latents + b * noise, a * noise - b * latents


def diffusion_loss(
    denoise: Denoiser,
    text: TextEncoder,
    alphas: torch.Tensor,
    captions: list[str],
    latents: torch.Tensor,
    seed: int,
    bf16: bool,
    teacher: Denoiser | None = None,
    noisier: float = 0.0,
) -> torch.Tensor:
    """Mean square error of v at stratified timesteps; one caption in ten is dropped for guidance.

    Timesteps are drawn with a density that grows as t ** `noisier`: 0 is uniform, at 1 three in four are in the
    noisier half.

    A teacher's prediction on the same noisy latents takes the true v's place: it has the same mean and none of the
    noise that a single sample has, so that a student learns from far fewer of them.
    """
    device, size = latents.device, len(latents)
    rng = torch.Generator().manual_seed(seed)
    uniform = (torch.arange(size) + torch.rand(size, generator=rng)) / size
    timesteps = (uniform ** (1 / (1 + noisier)) * len(alphas)).long().clamp(max=len(alphas) - 1).to(device)
    noise = torch.randn(latents.shape, generator=rng).to(device)
    dropped = torch.rand(size, generator=rng) < 0.1
    context, mask = text(["" if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)])
    noisy, velocity = add_noise(latents, noise, alphas.to(device)[timesteps])
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        prediction = denoise(noisy, timesteps, context, mask)
        if teacher is not None:
            with torch.no_grad():
                velocity = teacher(noisy, timesteps, context, mask).float()
    return F.mse_loss(prediction.float(), velocity)


@torch.no_grad()
def sample(
    denoise: Denoiser,
    text: TextEncoder,
    vae: AutoencoderTiny,
    captions: list[str],
    steps: int = 20,
    scale: float = 2.0,
    seed: int = 0,
) -> torch.Tensor:
    """Pictures in [-1, 1], (captions, 3, 128, 128), with DPM-Solver++ and classifier-free guidance."""
    device = text.model.device
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps, device=device)
    context, mask = text([""] * len(captions) + captions)
    x = torch.randn((len(captions), 4, 16, 16), generator=torch.Generator().manual_seed(seed)).to(device)
    for t in scheduler.timesteps:
        rows = torch.cat([x, x])
        without, with_text = denoise(rows, t.expand(len(rows)), context, mask).chunk(2)
        x = scheduler.step(without + scale * (with_text - without), t, x).prev_sample
    return vae.decode(x / vae.config.scaling_factor).sample.clamp(-1, 1)


LOOK_AT = (
    "red heart",
    "cat",
    "dog",
    "burger",
    "rocket",
    "tree",
    "panda",
    "sunflower",
    "pizza",
    "car",
    "house",
    "rainbow",
    "blue star",
    "purple star",
    "green car",
    "blue cat",
    "pink elephant",
    "orange umbrella",
    "red heart and blue circle",
    "dog and cat",
    "green tree and yellow sun",
    "robot and purple flower",
    "frog on a pink background",
    "fish on a blue background",
)


def look(denoise: Denoiser, text: TextEncoder, vae: AutoencoderTiny, file: Path) -> None:
    """Save a sheet of pictures of LOOK_AT."""
    contact_sheet(sample(denoise, text, vae, list(LOOK_AT)).cpu(), 12).save(file)


def arguments(
    description: str | None, name: str, lr: float, vae: Path = TRAINED_VAE, clip: Path = TRAINED_CLIP, **more: Any
) -> argparse.Namespace:
    """The options of all diffusion trainings, and `more` with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--vae", type=Path, default=vae)
    parser.add_argument("--clip", type=Path, default=clip)
    parser.add_argument("--latents", type=Path, default=Path("runs/latents"), help="where encoded samples are kept")
    parser.add_argument("--run", type=Path, default=Path("runs") / name)
    parser.add_argument("--output", type=Path, default=Path("runs") / name / "model")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--init", type=Path, metavar="MODEL", help="start from the denoiser of this pipeline folder")
    parser.add_argument("--centred", action="store_true", help="mostly drawings placed as they are drawn, to end with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for option, default in more.items():
        parser.add_argument(f"--{option}", type=type(default), default=default)
    return parser.parse_args()


def load_vae(folder: Path, device: torch.device) -> AutoencoderTiny:
    """The frozen autoencoder."""
    vae: nn.Module = AutoencoderTiny.from_pretrained(folder)
    return vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def train_denoiser(
    args: argparse.Namespace,
    network: nn.Module,
    denoise: Callable[[nn.Module], Denoiser],
    pipeline: Callable[..., DiffusionPipeline],
    memory_format: torch.memory_format = torch.contiguous_format,
    teacher: Denoiser | None = None,
    also: Callable[[], torch.Tensor] | None = None,
    noisier: float = 0.0,
) -> None:
    """Train a denoiser on the frozen autoencoder and text encoder; every 500 steps save a look and a pipeline.

    Args:
        args: of `arguments`.
        network: the denoiser, new or loaded.
        denoise: calls a network of its kind.
        pipeline: makes the pipeline to save, of vae, text_encoder, tokenizer, scheduler and the denoiser.
        memory_format: of network and latents.
        teacher: whose predictions are learned instead of the true velocities.
        also: a loss to add, asked for after every step's calls of network and teacher.
        noisier: of `diffusion_loss`.
    """
    device = torch.device(args.device)
    text, vae = TextEncoder.load(args.clip, device), load_vae(args.vae, device)
    pool = LatentPool(args.latents, args.data, vae, args.seed, centred=args.centred)
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE)
    network.to(device, memory_format=memory_format)
    bf16 = has_fast_bf16(device)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        captions, latents = pool.batch(step, args.batch)
        latents, seed = latents.to(device, memory_format=memory_format), step + (args.seed << 32)
        alphas = scheduler.alphas_cumprod
        value = diffusion_loss(denoise(network), text, alphas, captions, latents, seed, bf16, teacher, noisier)
        more = also() if also else torch.zeros(())
        return value + more, {"also": more.item()} if also else {}

    def every(_: int) -> None:
        look(denoise(run.ema), text, vae, args.run / "look.png")
        parts = {"vae": vae, "text_encoder": text.model, "tokenizer": text.tokenizer, "scheduler": scheduler}
        pipeline(run.ema, **parts).save_pretrained(args.output)

    steppers = optimisers(network, args.lr, 0.01, muon=True)
    run = Run(args.run, network, loss, steppers, args.lr, args.steps, every=every, every_steps=500)
    run.train()
