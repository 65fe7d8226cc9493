"""Distil `emoji-sd` into an LCM-LoRA: good pictures in one to four steps without classifier-free guidance.

Latent consistency distillation (Luo et al., arXiv 2310.04378, 2311.05556): the student, the same network with low-
rank adapters, must map a noisy latent to the same clean latent as it maps the teacher's guided DDIM step from it. Run
again to resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from diffusion import LOOK_AT, LatentPool, TextEncoder, arguments, load_vae
from emoji_data import contact_sheet
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn
from training import Run, has_fast_bf16, optimisers

GRID = 50  # DDIM timesteps of the teacher, as LCMScheduler's original_inference_steps
TARGETS = (
    r".*\.(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2"
    r"|conv1|conv2|conv_shortcut|time_emb_proj|conv)$"
)


def boundary(timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip and c_out of LCMScheduler (sigma_data 0.5, timestep_scaling 10), (batch, 1, 1, 1)."""
    scaled = timesteps.float()[:, None, None, None] * 10
    return 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()


def clean_and_noise(v: torch.Tensor, x: torch.Tensor, alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean latent and the noise that velocity v implies at x."""
    a, b = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    return a * x - b * v, b * x + a * v


def student_lora(unet: UNet2DConditionModel, rank: int) -> UNet2DConditionModel:
    """Freeze the network and add the adapters."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=True))
    return unet


def main() -> None:
    """Parse the arguments and train."""
    args: argparse.Namespace = arguments(__doc__, "lcm", lr=5e-4)
    teacher_folder, guidance, rank = Path("runs/sd/model"), (1.0, 1.5), 4
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    text, vae = TextEncoder.load(args.clip, device), load_vae(args.vae, device)
    pool = LatentPool(args.latents, args.data, vae, args.seed, centred=args.centred)
    load = UNet2DConditionModel.from_pretrained
    teacher = load(teacher_folder, subfolder="unet").to(device, memory_format=torch.channels_last).requires_grad_(False)
    student = student_lora(load(teacher_folder, subfolder="unet"), rank).to(device, memory_format=torch.channels_last)
    pipe = StableDiffusionPipeline.from_pretrained(teacher_folder, unet=student, safety_checker=None)
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    alphas = scheduler.alphas_cumprod.to(device)
    bf16 = has_fast_bf16(device)

    def consistency(unet: nn.Module, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        c_skip, c_out = boundary(t)
        return c_skip * x + c_out * clean_and_noise(unet(x, t, context).sample.float(), x, alphas[t])[0]

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        captions, latents = pool.batch(step, args.batch)
        latents = latents.to(device, memory_format=torch.channels_last)
        rng = torch.Generator().manual_seed(step + (args.seed << 32))
        size, stride = len(latents), 1000 // GRID
        index = torch.randint(0, GRID, (size,), generator=rng).to(device)
        t, t_next = index * stride + stride - 1, (index * stride - 1).clamp(min=0)
        noise = torch.randn(latents.shape, generator=rng).to(device)
        a = alphas[t][:, None, None, None]
        x = a.sqrt() * latents + (1 - a).sqrt() * noise
        scale = (guidance[0] + (guidance[1] - guidance[0]) * torch.rand(size, 1, 1, 1, generator=rng)).to(device)
        context, _ = text([*captions, ""])
        context, empty = context[:-1], context[-1:].expand(size, -1, -1)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                v, v_empty = (
                    teacher(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([context, empty])).sample.float().chunk(2)
                )
                clean, eps = clean_and_noise(v_empty + scale * (v - v_empty), x, alphas[t])
                a_next = alphas[t_next][:, None, None, None]
                target = consistency(student, a_next.sqrt() * clean + (1 - a_next).sqrt() * eps, t_next, context)
                target = torch.where(index[:, None, None, None] == 0, clean, target)
            output = consistency(student, x, t, context)
        return F.huber_loss(output, target, delta=0.1), {}

    def every(_: int) -> None:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(run.ema))
        layers = {name: weight.contiguous() for name, weight in layers.items()}
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
