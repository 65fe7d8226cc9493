"""Distil `emoji-sd` into an LCM-LoRA: good pictures in one to four steps without classifier-free guidance.

The student, the same network with low-rank adapters, learns the consistency function of latent consistency models
(Luo et al., arXiv 2310.04378, 2311.05556): from any noisy latent of a trajectory to the clean latent at its end. With a
small teacher the trajectories can be solved in full, so the targets are the guided teacher's own solutions (Luhman &
Luhman, arXiv 2101.02388) rather than the student's estimate one step on, which takes many more updates to settle. Run
again to resume.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusion import CENTRED, LOOK_AT, SCHEDULE, TextEncoder, arguments
from emoji_data import Emojis, contact_sheet
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from training import Run, has_fast_bf16, optimisers, save_shard

RANK = 4
SOLVER_STEPS = 12
FOUR_STEPS = (0, 3, 6, 9)  # calls of the solver nearest to the timesteps of four LCM steps
TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2)$"


@dataclass
class Trajectories:
    """The teacher's guided solutions in shards on disk, each made when first asked for; equal for an equal seed."""

    folder: Path
    teacher: UNet2DConditionModel
    text: TextEncoder
    emojis: Emojis
    guidance: float
    shards: int
    shard_size: int = 128

    @torch.no_grad()
    def solve(self, captions: list[str], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents before every call and after the last, (captions, SOLVER_STEPS + 1, 4, 16, 16), and the timesteps."""
        device = self.text.model.device
        scheduler = DPMSolverMultistepScheduler(**SCHEDULE)
        scheduler.set_timesteps(SOLVER_STEPS, device=device)
        context, _ = self.text([""] * len(captions) + captions)
        x = torch.randn((len(captions), 4, 16, 16), generator=torch.Generator().manual_seed(seed)).to(device)
        path = [x]
        for t in scheduler.timesteps:
            rows = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
                v = self.teacher(rows, t.expand(len(rows)), context).sample.float()
            without, with_text = v.chunk(2)
            x = scheduler.step(without + self.guidance * (with_text - without), t, x).prev_sample
            path.append(x)
        return torch.stack(path, 1), scheduler.timesteps

    def _make(self, shard: int, file: Path) -> None:
        names = [self.emojis.describe(shard * self.shard_size + i)[0] for i in range(self.shard_size)]
        paths = []
        for start in range(0, self.shard_size, 16):
            path, timesteps = self.solve(names[start : start + 16], shard * self.shard_size + start)
            paths.append(path.half().cpu())
        save_shard(file, {"paths": torch.cat(paths), "timesteps": timesteps.cpu().contiguous()}, names)

    def load(self) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """All captions, all latents (captions, SOLVER_STEPS + 1, 4, 16, 16), timesteps (SOLVER_STEPS,)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        captions, paths = [], []
        for shard in range(self.shards):
            file = self.folder / f"{shard:03d}.safetensors"
            if not file.exists():
                self._make(shard, file)
                print(f"solved {file.name}", flush=True)
            with safe_open(file, "pt") as stored:
                captions += stored.metadata()["captions"].split("\n")
                paths.append(stored.get_tensor("paths"))
                timesteps = stored.get_tensor("timesteps")
        return captions, torch.cat(paths), timesteps


def boundary(timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip and c_out of LCMScheduler (sigma_data 0.5, timestep_scaling 10), (batch, 1, 1, 1)."""
    scaled = timesteps.float()[:, None, None, None] * 10
    return 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()


def consistency(
    unet: nn.Module, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, alphas: torch.Tensor
) -> torch.Tensor:
    """The clean latent that a network of velocities gives for x (batch, 4, 16, 16) at t (batch,), as LCMScheduler."""
    c_skip, c_out = boundary(t)
    alpha_bar = alphas[t][:, None, None, None]
    velocity = unet(x, t, context).sample.float()
    return c_skip * x + c_out * (alpha_bar.sqrt() * x - (1 - alpha_bar).sqrt() * velocity)


def student_lora(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Freeze the network and add the adapters."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights=True))
    return unet


def main() -> None:
    """Parse the arguments and train."""
    args: argparse.Namespace = arguments(
        __doc__,
        "lcm",
        lr=1e-3,
        teacher=Path("runs/sd/model"),
        trajectories=Path("runs/trajectories"),
        guidance=2.0,
        shards=20,
    )
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    text = TextEncoder.load(args.clip, device)
    emojis = Emojis(args.data, seed=args.seed + 4, **CENTRED)
    load = UNet2DConditionModel.from_pretrained
    teacher = load(args.teacher, subfolder="unet").to(device, memory_format=torch.channels_last).requires_grad_(False)
    captions, paths, timesteps = Trajectories(
        args.trajectories, teacher, text, emojis, args.guidance, args.shards
    ).load()
    student = student_lora(load(args.teacher, subfolder="unet")).to(device, memory_format=torch.channels_last)
    pipe = StableDiffusionPipeline.from_pretrained(args.teacher, unet=student, safety_checker=None)
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    alphas, timesteps = scheduler.alphas_cumprod.to(device), timesteps.to(device)
    bf16 = has_fast_bf16(device)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng((args.seed, step))
        chosen = rng.choice(len(captions), args.batch, replace=False)
        often = rng.random(args.batch) < 0.6
        calls = np.where(often, rng.choice(FOUR_STEPS, args.batch), rng.integers(0, SOLVER_STEPS, args.batch))
        x = paths[chosen, calls].float().to(device, memory_format=torch.channels_last)
        target = paths[chosen, -1].float().to(device)
        context, _ = text([captions[i] for i in chosen])
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = consistency(student, x, timesteps[torch.from_numpy(calls).to(device)], context, alphas)
        return F.huber_loss(output, target, delta=0.1), {}

    def every(_: int) -> None:
        # peft's own names: diffusers would rename only the layers of attentions, and then not find them again
        layers = {name: weight.contiguous() for name, weight in get_peft_model_state_dict(run.ema).items()}
        StableDiffusionPipeline.save_lora_weights(args.output, layers)
        pipe.unet, pipe.scheduler = run.ema, LCMScheduler.from_config(scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        sheets = []
        for steps in (1, 2, 4):
            generator = torch.Generator().manual_seed(0)
            out = pipe(
                list(LOOK_AT), num_inference_steps=steps, guidance_scale=1.0, generator=generator, output_type="pt"
            )
            sheets.append(out.images.cpu() * 2 - 1)
        contact_sheet(torch.cat(sheets), 12).save(args.run / "look.png")

    run = Run(
        args.run,
        student,
        loss,
        optimisers(student, args.lr, 0.0, muon=False),
        args.lr,
        args.steps,
        every=every,
        every_steps=250,
        ema_decay=0.99,
    )
    run.train()


if __name__ == "__main__":
    main()
