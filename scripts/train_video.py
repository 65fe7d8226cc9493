"""Train `emoji-video`: a causal MotionAdapter for emoji-sd, and a text encoder that knows motions.

Every pass denoises all chunks of a clip at once, each given the clean chunks before it (teacher forcing with a
block-causal mask; Gao et al., arXiv 2411.16375, train one chunk a pass). The image weights are frozen. Run again to
resume.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from causal_motion import CYCLE, teacher_forcing
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler
from diffusion import SCHEDULE
from emoji_data import Emojis
from safetensors import safe_open
from torch.nn.attention import SDPBackend, sdpa_kernel
from training import Run, has_fast_bf16, optimisers, save_shard
from video_data import Clips
from video_model import SEEN, VideoModel, encode, strips, words

import diffaccel.models

CONTEXT_NOISE = 0.15  # at most, on clean frames, still labelled t = 0
REDRAWN = 500  # the latest timestep up to which shown frames are noised and redrawn
PARTITIONS = ((4, 0.7), (2, 0.2), (1, 0.1))  # frames a chunk, share of the steps
RESTART = 624  # the timestep at a strength of 0.625, from which chunks go on from the frame before them


class ScaledAdamW(torch.optim.AdamW):
    """AdamW at a share of the run's learning rate."""

    def __init__(self, params: Any, share: float, **options: Any) -> None:
        super().__init__(params, **options)
        self.share = share

    def step(self, closure: Any = None) -> Any:
        """One update at the share of the rate that the run has set."""
        for group in self.param_groups:
            group["lr"] *= self.share
        return super().step(closure)


@dataclass
class ClipPool:
    """Encoded clips in shards on disk, each made when first asked for; equal for equal seed and autoencoder."""

    folder: Path
    clips: Clips
    vae: AutoencoderTiny
    shards: int = 3
    shard_size: int = 108

    @torch.no_grad()
    def _make(self, shard: int, file: Path) -> None:
        made = [self.clips.training(shard * self.shard_size + i) for i in range(self.shard_size)]
        latents = torch.stack([encode(self.vae, clip.frames()) for clip in made]).half()
        save_shard(file, {"latents": latents}, (clip.caption for clip in made))

    def batch(self, step: int, size: int) -> tuple[list[str], torch.Tensor]:
        """Captions and latents (size, SEEN, 4, 16, 16) from anywhere in the clips; shuffled anew on every pass."""
        visit, position = divmod(step, self.shard_size // size)
        file = self.folder / f"{visit % self.shards:03d}.safetensors"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make(visit % self.shards, file)
        chosen = np.random.default_rng((visit, 5)).permutation(self.shard_size)[position * size : (position + 1) * size]
        starts = np.random.default_rng((step, 6)).integers(0, self.clips.frames - SEEN + 1, size)
        with safe_open(file, "pt") as stored:
            captions = stored.metadata()["captions"].split("\n")
            latents = stored.get_slice("latents")
            taken = [latents[int(i) : int(i) + 1, int(s) : int(s) + SEEN] for i, s in zip(chosen, starts, strict=True)]
        return [captions[i] for i in chosen], torch.cat(taken).float()


def partition(rng: np.random.Generator) -> torch.Tensor:
    """Chunk numbers of the frames of a pass, (SEEN,): mostly chunks of four frames, sometimes of one, two or three."""
    size = rng.choice([s for s, _ in PARTITIONS], p=[p for _, p in PARTITIONS])
    return torch.arange(SEEN) // int(size)


def draw_timesteps(
    chunks: torch.Tensor, videos: int, rng: np.random.Generator, restart: int | None = RESTART
) -> torch.Tensor:
    """A timestep per chunk and video, as (videos, frames), stratified.

    Of the first chunk over the whole schedule, one in eight below 200; of later ones up to `restart`, half near to it.
    """
    count = int(chunks[-1]) + 1
    u = (rng.permutation(videos * count) + rng.random(videos * count)) / (videos * count)
    u = torch.from_numpy(u.reshape(videos, count))[:, chunks]
    first = torch.where(u < 0.125, u / 0.125 * 200, 200 + (u - 0.125) / 0.875 * 800)
    if restart is None:
        return first.long()
    near = restart - 124
    later = torch.where(u < 0.5, u / 0.5 * near, near + (u - 0.5) / 0.5 * 140)
    return torch.where(chunks == 0, first, later).long()


def behind(latents: torch.Tensor, chunks: torch.Tensor) -> torch.Tensor:
    """By how much the frame before a frame's chunk differs from it, 0 in the first chunk; as `latents`."""
    starts = torch.searchsorted(chunks, chunks)
    before = latents[:, (starts - 1).clamp(min=0)]
    return (before - latents) * (starts > 0)[:, None, None, None]


@torch.no_grad()
def redrawn(
    model: VideoModel, context: torch.Tensor, latents: torch.Tensor, alphas: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """The frames as the model sees them through noise, each alone: blurred and altered as frames of its own are.

    Shown in place of the drawn frames, they teach it to go on from what it made.
    """
    videos, frames = latents.shape[:2]
    times = torch.from_numpy(rng.integers(REDRAWN, size=(videos, 1))).expand(videos, frames)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    noise = torch.randn(latents.shape, generator=generator)
    a, b = alphas[times].sqrt()[..., None, None, None], (1 - alphas[times]).sqrt()[..., None, None, None]
    noisy = a * latents + b * noise
    alone = torch.eye(frames, dtype=torch.bool)
    return a * noisy - b * model.video(noisy, times, context, torch.arange(frames), alone).float()


def video_loss(
    model: VideoModel,
    context: torch.Tensor,
    latents: torch.Tensor,
    alphas: torch.Tensor,
    rng: np.random.Generator,
    clean: torch.Tensor | None = None,
    restart: int | None = RESTART,
    slowed: float = 0.0,
    continued: float = 0.8,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean square error of v over the chunks of the clips; mostly over those with frames before them.

    Args:
        model: the networks.
        context: the text encoder's output, (videos, tokens, 128).
        latents: what to denoise, (videos, SEEN, 4, 16, 16).
        alphas: cumulative alphas of the schedule, (1000,).
        rng: chunks, timesteps, noise, positions.
        clean: what the frames see of earlier chunks, as `latents`; these themselves by default.
        restart: the timestep from which later chunks go on from the frame before them.
        slowed: share of the passes with one later chunk in which the frames before it move more slowly than due, down
            to not at all, so that the pace is the words' and does not die away from chunk to chunk.
        continued: share of the passes that denoise later chunks only.

    Returns:
        The loss, and that of chunks with frames before them.
    """
    videos, chunks = len(latents), partition(rng)
    rows, mask = teacher_forcing(chunks)
    past = len(rows) - SEEN
    later = rng.random() < continued
    used = (torch.arange(len(rows)) < past) | (chunks[rows] > 0) if later else torch.ones(len(rows)).bool()
    times = draw_timesteps(chunks, videos, rng, restart)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    noise = torch.randn(latents.shape, generator=generator)
    if restart is not None:
        # a later chunk starts from sqrt(a) times the frame before it and noise: seen from its own frame, other noise
        noise = noise + (alphas[restart] / (1 - alphas[restart])).sqrt() * behind(latents, chunks)
    a, b = alphas[times].sqrt()[..., None, None, None], (1 - alphas[times]).sqrt()[..., None, None, None]
    shown = (latents if clean is None else clean)[:, :past]
    if int(chunks[-1]) == 1 and rng.random() < slowed:
        pace = torch.from_numpy(rng.random((videos, 1)))
        back = ((past - 1 - torch.arange(past)) * pace).round().long()  # frames before the last, (videos, past)
        shown = shown[torch.arange(videos)[:, None], past - 1 - back]
    level = CONTEXT_NOISE * torch.from_numpy(rng.random((videos, 1, 1, 1, 1)).astype(np.float32))
    shown = (1 - level**2).sqrt() * shown + level * torch.randn(shown.shape, generator=generator)
    out = model.video(
        torch.cat([shown, a * latents + b * noise], 1)[:, used],
        torch.cat([torch.zeros(videos, past, dtype=torch.long), times], 1)[:, used],
        context,
        rows[used] + int(rng.integers(CYCLE)),
        mask[used][:, used],
    )[:, past:]
    velocity = (a * noise - b * latents)[:, used[past:]]
    error = F.mse_loss(out.float(), velocity, reduction="none").mean((0, 2, 3, 4))
    first = chunks[used[past:]] == 0
    return error.mean(), {"later": error[~first].mean().item()}


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--image-model", default="emoji-sd", help="the frozen image model")
    parser.add_argument("--latents", type=Path, default=Path("runs/clips"), help="where encoded clips are kept")
    parser.add_argument("--run", type=Path, default=Path("runs/video"))
    parser.add_argument("--output", type=Path, default=Path("runs/video/model"))
    parser.add_argument("--init", type=Path, metavar="MODEL", help="start from the adapter and text encoder there")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--text-share", type=float, default=0.1, help="of the learning rate, for the text encoder")
    parser.add_argument("--from-noise", action="store_true", help="start later chunks from noise, not the last frame")
    parser.add_argument("--shards", type=int, default=3, help="of 108 clips each")
    parser.add_argument("--redrawn", type=float, default=0.0, help="share of the steps that show redrawn frames")
    parser.add_argument(
        "--slowed", type=float, default=0.0, help="share of the steps that show frames at too slow a pace"
    )
    parser.add_argument(
        "--continued", type=float, default=0.8, help="share of the steps that train chunks with frames before them only"
    )
    parser.add_argument("--rank", type=int, default=0, help="of a LoRA on the image network; none by default")
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Parse the arguments and train."""
    args = parse()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    pipe = diffaccel.models.load(args.image_model)
    frozen = pipe.text_encoder.requires_grad_(False)
    model = VideoModel.load(pipe, args.init, args.rank)
    model.text.requires_grad_(True)
    bf16 = has_fast_bf16(torch.device("cpu"))
    if bf16:
        model.video.halve_frozen()
    pool = ClipPool(args.latents, Clips(args.data, seed=args.seed), pipe.vae, args.shards)
    plain = [Emojis(args.data, seed=9).describe(i)[0] for i in range(2048)]
    alphas = DPMSolverMultistepScheduler(**SCHEDULE).alphas_cumprod

    restart = None if args.from_noise else RESTART

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng((args.seed, step, 8))
        captions, latents = pool.batch(step, args.batch)
        dropped = ["" if drop else c for c, drop in zip(captions, rng.random(args.batch) < 0.1, strict=True)]
        kept = [plain[i] for i in rng.integers(len(plain), size=8)] + [""]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), sdpa_kernel(SDPBackend.MATH):
            context = words(model.text, pipe.tokenizer, dropped + kept)
            with torch.no_grad():
                target = words(frozen, pipe.tokenizer, kept)
            # pictures without motion must stay as they are
            drift = F.mse_loss(context[args.batch :].float(), target.float())
            told, own = context[: args.batch], rng.random() < args.redrawn
            clean = redrawn(model, told, latents, alphas, rng) if own else None
            error, parts = video_loss(model, told, latents, alphas, rng, clean, restart, args.slowed, args.continued)
        return error + drift, {**parts, "drift": drift.item()}

    def every(_: int) -> None:
        run.ema.save(args.output)
        strips(run.ema, pipe, pool.clips, args.run / "strips.png")

    steppers = optimisers(model.video, args.lr, 0.01, muon=True)
    steppers.append(ScaledAdamW(model.text.parameters(), args.text_share, lr=args.lr, betas=(0.9, 0.99)))
    run = Run(
        args.run, model, loss, steppers, args.lr, args.steps, every=every, every_steps=args.every, ema_decay=0.998
    )
    with sdpa_kernel(SDPBackend.MATH):
        run.train()


if __name__ == "__main__":
    main()
