"""Train control for a frozen pipeline: `emoji-control`, a small ControlNet (arXiv 2302.05543) for `emoji-sd`; and for
`emoji-dit` or any PixArt-like transformer RelaCtrl's blocks (arXiv 2502.14377) or, to compare, copied blocks.

    python scripts/train_control.py
    python scripts/train_control.py --init runs/control/model --run runs/control-lcm --lr 4e-4 --few-steps 0.5
    python scripts/train_control.py --base emoji-dit --kind relactrl --run runs/dit-control
    python scripts/train_control.py --base emoji-dit --kind copied --run runs/dit-copied

Only the control network learns. With --few-steps, a share of the steps is under emoji-sd with its LCM-LoRA, whose clean
latents are compared with the drawing's; the bundled weights were trained without. Run again to resume.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from control_data import ControlPool, HeldOut
from control_nets import UNet, base_folder, load_base, new_net
from diffusers import ControlNetModel, DPMSolverMultistepScheduler
from diffusion import SCHEDULE, TextEncoder, add_noise, load_vae, sample
from emoji_data import contact_sheet
from safetensors.torch import load_model, save_model
from torch import nn
from train_lcm import boundary
from training import Run, has_fast_bf16, optimisers

from diffaccel import models

P_EMPTY = 0.3  # captions left out, so that lines alone say what is there
LCM_STEPS = 50  # of which an LCM takes four
WEIGHTS = "diffusion_pytorch_model.safetensors"


def weighted(net: ControlNetModel, shares: Sequence[float]) -> ControlNetModel:
    """A copy of the network whose residuals are multiplied for ever: by one number, or one for each size, large first.

    The middle block's counts as of the smallest size.
    """
    net = deepcopy(net)
    last = len(net.down_blocks) - 1
    sizes = [0]
    for level, block in enumerate(net.down_blocks):
        sizes += [level] * len(block.resnets) + [level + 1] * len(block.downsamplers or ())
    for size, layer in zip([*sizes, last], (*net.controlnet_down_blocks, net.controlnet_mid_block), strict=True):
        for values in layer.parameters():
            values.data.mul_(shares[size if len(shares) > 1 else 0])
    return net


def save(net: nn.Module, folder: Path) -> None:
    """Save a network in its own format; copied blocks, which have none, as bare weights."""
    if hasattr(net, "save_pretrained"):
        net.save_pretrained(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(net, str(folder / WEIGHTS))


def early_timesteps(size: int, skew: float, rng: torch.Generator) -> torch.Tensor:
    """Stratified timesteps (size,), with a skew below 1 more of the early calls, in which shapes are laid out."""
    even = (torch.arange(size) + torch.rand(size, generator=rng)) / size
    return (even**skew * SCHEDULE["num_train_timesteps"]).long()


def few_timesteps(size: int, _: float, rng: torch.Generator) -> torch.Tensor:
    """Timesteps (size,) of LCM's schedule, half of them those of four steps."""
    every = torch.arange(1, LCM_STEPS + 1) * (SCHEDULE["num_train_timesteps"] // LCM_STEPS) - 1
    four = torch.tensor([every[-1 - i * LCM_STEPS // 4] for i in range(4)])
    often = torch.rand(size, generator=rng) < 0.5
    chosen = four[torch.randint(4, (size,), generator=rng)]
    return torch.where(often, chosen, every[torch.randint(LCM_STEPS, (size,), generator=rng)])


def few_step_base(device: torch.device) -> UNet:
    """emoji-sd's UNet with its LCM-LoRA merged."""
    pipe: Any = models.load("emoji-sd", device=device)
    models.load_lora(pipe, "emoji-lcm-lora")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return UNet(pipe.unet.to(memory_format=torch.channels_last).eval().requires_grad_(False))


def clean(
    noisy: torch.Tensor, velocity: torch.Tensor, timesteps: torch.Tensor, alpha_bar: torch.Tensor
) -> torch.Tensor:
    """The clean latents (n, 4, 16, 16) that an LCM gives for noisy ones and a predicted velocity."""
    c_skip, c_out = boundary(timesteps)
    a = alpha_bar[:, None, None, None]
    return c_skip * noisy + c_out * (a.sqrt() * noisy - (1 - a).sqrt() * velocity)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="emoji-sd", help="bundled pipeline or folder of one")
    parser.add_argument("--kind", choices=("controlnet", "relactrl", "copied"), default="controlnet")
    parser.add_argument("--blocks", type=int, default=5, help="control blocks of a transformer")
    parser.add_argument("--relevance", type=Path, help="JSON: a score for each block but the last")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--clip", type=Path, default=base_folder("emoji-clip"))
    parser.add_argument("--latents", type=Path, default=Path("runs/latents"), help="where encoded samples are kept")
    parser.add_argument("--shards", type=int, default=12, help="of 1024 drawings each")
    parser.add_argument("--run", type=Path, default=Path("runs/control"))
    parser.add_argument(
        "--output", type=Path, help="where the network is saved; `model` in the run's folder by default"
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--skew", type=float, default=0.7, help="below 1: more of the early calls, which lay out shapes"
    )
    parser.add_argument("--init", type=Path, help="start from the weights in this folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--few-steps", type=float, default=0.0, help="share of the steps under emoji-sd's LCM-LoRA")
    parser.add_argument(
        "--share", type=float, nargs="+", default=[1.0], help="of a ControlNet's residuals, in what is saved; by size"
    )
    args = parser.parse_args()
    args.output = args.output or args.run / "model"
    return args


def main() -> None:
    """Parse the arguments and train."""
    args = parse()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    folder = base_folder(args.base)
    text, vae = TextEncoder.load(args.clip, device), load_vae(folder / "vae", device)
    base = load_base(folder, vae, device)
    relevance = json.loads(Path(args.relevance).read_text()) if args.relevance else None
    net = new_net(base, args.kind, args.blocks, relevance, args.seed)
    if args.init:
        load_model(net, str(args.init / WEIGHTS))
    layout = torch.channels_last if args.kind == "controlnet" else torch.contiguous_format
    net.to(device, memory_format=layout)
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters", flush=True)
    pool = ControlPool(
        args.latents, args.data, vae, args.seed, args.shards, None if args.kind == "controlnet" else base.lines
    )
    alphas = DPMSolverMultistepScheduler(**SCHEDULE).alphas_cumprod.to(device)
    bf16 = has_fast_bf16(device)
    shown = HeldOut(args.data)

    few = few_step_base(device) if args.few_steps else None

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        captions, latents, control = pool.batch(step, args.batch)
        latents, control = (x.to(device, memory_format=layout) for x in (latents, control))
        rng = torch.Generator().manual_seed(step + (args.seed << 32))
        lcm = few is not None and torch.rand(1, generator=rng).item() < args.few_steps
        timesteps = (few_timesteps if lcm else early_timesteps)(args.batch, args.skew, rng).to(device)
        noise = torch.randn(latents.shape, generator=rng).to(device)
        empty = (torch.rand(args.batch, generator=rng) < P_EMPTY).tolist()
        context, mask = text(["" if drop else name for drop, name in zip(empty, captions, strict=True)])
        alpha_bar = alphas[timesteps]
        noisy, velocity = add_noise(latents, noise, alpha_bar)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            denoise = (few if lcm else base).controlled(net, control)
            prediction = denoise(noisy, timesteps, context, mask).float()
        if lcm:
            error = F.huber_loss(clean(noisy, prediction, timesteps, alpha_bar), latents, delta=0.1)
            return error, {"few": error.item() / args.few_steps}  # the share makes a mean of the sum
        errors = (prediction - velocity).square().mean((1, 2, 3))
        return errors.mean(), {"early": errors[timesteps > 500].mean().item() / (1 - args.few_steps)}

    def every(_: int) -> None:
        captions, pictures, control = shown.batch(24)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            denoise = base.controlled(run.ema, base.lines(control.to(device)))
            drawn = sample(denoise, text, vae, captions, steps=12)
        rows = [torch.cat([x[i : i + 12] for x in (pictures, control * 2 - 1, drawn.cpu().float())]) for i in (0, 12)]
        contact_sheet(torch.cat(rows), 12).save(args.run / "look.png")
        save(weighted(run.ema, args.share) if args.kind == "controlnet" else run.ema, args.output)

    steppers = optimisers(net, args.lr, 0.01, muon=True)
    run = Run(args.run, net, loss, steppers, args.lr, args.steps, every=every, every_steps=250)
    run.train()


if __name__ == "__main__":
    main()
