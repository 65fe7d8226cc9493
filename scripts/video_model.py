"""`emoji-video` as it is trained and judged: its networks, and a plain sampler of videos chunk by chunk."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from causal_motion import CHUNK, CausalVideo, new_adapter
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
)
from diffusion import SCHEDULE
from emoji_data import contact_sheet
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from train_clip import tokenize
from training import has_fast_bf16
from transformers import CLIPTextModel, CLIPTokenizer
from video_data import Clips

LORA_FILE = "pytorch_lora_weights.safetensors"
SEEN = 8  # frames of a training pass
WINDOW = SEEN - CHUNK  # frames before a chunk that it learns to use


class VideoModel(nn.Module):
    """The denoiser and the text encoder, trained together."""

    def __init__(self, video: CausalVideo, text: CLIPTextModel) -> None:
        super().__init__()
        self.video, self.text = video, text

    @classmethod
    def load(cls, pipe: StableDiffusionPipeline, folder: Path | None = None, rank: int = 0) -> VideoModel:
        """On the parts of emoji-sd; new, or with the adapter, text encoder and LoRA of `folder`."""
        adapter = MotionAdapter.from_pretrained(folder) if folder else new_adapter()
        text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder") if folder else pipe.text_encoder
        file = folder / LORA_FILE if folder else None
        weights = load_file(file) if file and file.exists() else {}
        rank = max((w.shape[0] for name, w in weights.items() if ".lora_A." in name), default=rank)
        video = CausalVideo.build(pipe.unet, adapter, rank)
        if weights:
            set_peft_model_state_dict(video.unet, {name.removeprefix("unet."): w for name, w in weights.items()})
        return cls(video, copy.deepcopy(text).requires_grad_(folder is None))

    def save(self, folder: Path) -> None:
        """The adapter and the LoRA in `folder`, the text encoder in a folder of its own there."""
        adapter = new_adapter()
        weights = {n: w for n, w in self.video.unet.state_dict().items() if "motion_modules" in n}
        adapter.load_state_dict(weights)
        adapter.save_pretrained(folder)
        if self.video.joint:
            lora = get_peft_model_state_dict(self.video.unet)
            AnimateDiffPipeline.save_lora_weights(folder, lora, weight_name=LORA_FILE)
        self.text.save_pretrained(folder / "text_encoder")


@torch.no_grad()
def encode(vae: AutoencoderTiny, frames: torch.Tensor) -> torch.Tensor:
    """Latents of unit variance, (frames, 4, 16, 16), of frames in [-1, 1]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(frames.device)):
        latents = torch.cat([vae.encode(few).latents for few in frames.split(4)])
    return latents.float() * vae.config.scaling_factor


def words(text: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """The text encoder's output, (captions, tokens, 128)."""
    return text(tokenize(tokenizer, captions)).last_hidden_state


@torch.no_grad()
def generate(
    model: VideoModel,
    tokenizer: CLIPTokenizer,
    captions: list[str],
    frames: int,
    given: torch.Tensor | None = None,
    steps: int = 8,
    guidance: float = 1.0,
    seed: int = 0,
    chunk: int = CHUNK,
    guided_frames: int | None = None,
    strength: float = 1.0,
) -> torch.Tensor:
    """Latents of videos, chunk by chunk, with the keys and values of the clean frames kept.

    Args:
        model: the networks.
        tokenizer: of the text encoder.
        captions: one a video.
        frames: how many frames in all.
        given: latents of the first frames, (videos, given, 4, 16, 16).
        steps: of DPM-Solver++ a chunk.
        guidance: classifier-free guidance scale; 1 is without.
        seed: of the noise.
        chunk: frames denoised together.
        guided_frames: how many of the first frames are made with guidance; all by default.
        strength: where there is a frame before the chunk, start from it with noise, as image-to-image of that strength
            does; 1 starts from noise alone.

    Returns:
        (videos, frames, 4, 16, 16).
    """
    guided, net = guidance != 1, model.video
    both = words(model.text, tokenizer, [""] * len(captions) + captions)
    rng = torch.Generator().manual_seed(seed)
    net.forget()
    done = torch.empty(len(captions), 0, 4, 16, 16) if given is None else given
    written = 0

    def call(x: torch.Tensor, t: int, keep: int | None) -> torch.Tensor:
        rows = x.repeat(1 + guided, 1, 1, 1, 1)
        n, seen = x.shape[1], min(written, WINDOW)
        mask = torch.ones(n, seen + n, dtype=torch.bool)
        times = torch.full(rows.shape[:2], t)
        context = both[-len(rows) :]
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16(x.device)):
            return net(rows, times, context, written + torch.arange(n), mask, keep=keep).float()

    while done.shape[1] < frames:
        if guided and guided_frames is not None and done.shape[1] >= guided_frames:
            guided, written = False, 0  # written anew below, under the words alone
            net.forget()
        while written < done.shape[1]:  # chunk by chunk, as they came
            n = min(chunk, done.shape[1] - written)
            call(done[:, written : written + n], 0, WINDOW)
            written += n
        scheduler = DPMSolverMultistepScheduler(**SCHEDULE)
        scheduler.set_timesteps(steps)
        x = torch.randn((len(captions), min(chunk, frames - written), 4, 16, 16), generator=rng)
        skipped = round(steps * (1 - strength)) if written else 0
        if skipped:
            scheduler.set_begin_index(skipped)
            x = scheduler.add_noise(done[:, -1:].expand(x.shape), x, scheduler.timesteps[skipped].expand(len(x)))
        for t in scheduler.timesteps[skipped:]:
            v = call(x, int(t), None)
            if guided:
                without, with_text = v.chunk(2)
                v = without + guidance * (with_text - without)
            x = scheduler.step(v, t, x).prev_sample
        done = torch.cat([done, x], 1)
    net.forget()
    return done


@torch.no_grad()
def decode(vae: AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Frames in [-1, 1], (videos, frames, 3, 128, 128)."""
    flat = latents.flatten(0, 1) / vae.config.scaling_factor
    return torch.cat([vae.decode(few).sample for few in flat.split(8)]).clamp(-1, 1).unflatten(0, latents.shape[:2])


def strips(model: VideoModel, pipe: StableDiffusionPipeline, clips: Clips, file: Path, count: int = 4) -> None:
    """Film strips of held-out pairs, every second of 16 frames: drawn, with four given, from the text alone (8)."""
    chosen = [clips.test(8 * i) for i in range(count)]
    drawn = torch.stack([clip.frames()[:16] for clip in chosen])
    given = torch.stack([encode(pipe.vae, frames[:4]) for frames in drawn])
    captions = [clip.caption for clip in chosen]
    made = [
        generate(model, pipe.tokenizer, captions, 16, given, guidance=3.0),
        generate(model, pipe.tokenizer, captions, 8, guidance=2.0),
    ]
    rows = torch.cat([drawn, *(decode(pipe.vae, latents) for latents in made)], 1)  # (clips, 40, 3, 128, 128)
    contact_sheet(F.avg_pool2d(rows[:, ::2].flatten(0, 1), 2), 20).save(file)
