"""Train the bundled `emoji-control`: a small ControlNet (arXiv 2302.05543) for `emoji-sd` on edges and scribbles.

Diffusers asks of a ControlNet that its residuals have the shapes of the UNet's skip connections, so widths and layers
are the UNet's; what is left out is attention but in the deepest block, the second half of the middle block, and
channels of the layers that embed the control image. What is left starts as a copy of the UNet's. The UNet, the
autoencoder and the text encoder are frozen. Run again to resume.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from control_data import ControlPool, HeldOut
from diffusers import ControlNetModel, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusion import SCHEDULE, Denoiser, TextEncoder, add_noise, arguments, load_vae, sample
from emoji_data import contact_sheet
from torch import nn
from training import Run, has_fast_bf16, optimisers

import diffaccel.models

ATTENTION = ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D")
EMBEDDING = (8, 16, 48, 96)  # the control image's own layers run on all its pixels, in every call
P_EMPTY = 0.3  # captions left out, so that lines alone say what is there
COPIED = ("block_out_channels", "layers_per_block", "cross_attention_dim", "attention_head_dim", "norm_num_groups")


def build(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for a UNet of three levels, with the UNet's weights where it has the same layers."""
    net = ControlNetModel(
        **{name: unet.config[name] for name in COPIED},
        in_channels=unet.config.in_channels,
        down_block_types=ATTENTION,
        mid_block_type="UNetMidBlock2D",
        conditioning_embedding_out_channels=EMBEDDING,
    )
    theirs, own = unet.state_dict(), net.state_dict()
    copied = {name: weight for name, weight in theirs.items() if name in own and own[name].shape == weight.shape}
    net.load_state_dict(copied, strict=False)
    return net


def controlled(unet: nn.Module, net: nn.Module, control: torch.Tensor) -> Denoiser:
    """The UNet with control images (n, 3, 128, 128); more rows than n are groups of the same."""

    def denoise(latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        images = control.repeat(len(latents) // len(control), 1, 1, 1)
        down, middle = net(latents, timesteps, context, images, return_dict=False)
        return unet(
            latents,
            timesteps,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample

    return denoise


def main() -> None:
    """Parse the arguments and train."""
    args = arguments(__doc__, "control", lr=1e-3, skew=0.7)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    device = torch.device(args.device)
    base = diffaccel.models.path("emoji-sd")
    text, vae = TextEncoder.load(args.clip, device), load_vae(base / "vae", device)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").to(device, memory_format=torch.channels_last)
    unet.eval().requires_grad_(False)
    net = ControlNetModel.from_pretrained(args.init) if args.init else build(unet)
    net.to(device, memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters", flush=True)
    pool = ControlPool(args.latents, args.data, vae, args.seed)
    alphas = DPMSolverMultistepScheduler(**SCHEDULE).alphas_cumprod
    bf16 = has_fast_bf16(device)
    shown = HeldOut(args.data)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        captions, latents, control = pool.batch(step, args.batch)
        latents = latents.to(device, memory_format=torch.channels_last)
        rng = torch.Generator().manual_seed(step + (args.seed << 32))
        even = (torch.arange(args.batch) + torch.rand(args.batch, generator=rng)) / args.batch
        timesteps = (even**args.skew * len(alphas)).long()  # more of the early calls, in which the shapes are laid out
        noise = torch.randn(latents.shape, generator=rng)
        empty = (torch.rand(args.batch, generator=rng) < P_EMPTY).tolist()
        context, mask = text(["" if drop else name for drop, name in zip(empty, captions, strict=True)])
        noisy, velocity = add_noise(latents, noise.to(device), alphas[timesteps].to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            denoise = controlled(unet, net, control.to(device, memory_format=torch.channels_last))
            prediction = denoise(noisy, timesteps.to(device), context, mask)
        errors = F.mse_loss(prediction.float(), velocity, reduction="none").mean((1, 2, 3))
        early = timesteps > 500
        return errors.mean(), {"early": errors[early].mean().item(), "late": errors[~early].mean().item()}

    def every(_: int) -> None:
        captions, pictures, control = shown.batch(24)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            drawn = sample(controlled(unet, run.ema, control.to(device)), text, vae, captions, steps=12)
        rows = [torch.cat([x[i : i + 12] for x in (pictures, control * 2 - 1, drawn.cpu().float())]) for i in (0, 12)]
        contact_sheet(torch.cat(rows), 12).save(args.run / "look.png")
        run.ema.save_pretrained(args.output)

    steppers = optimisers(net, args.lr, 0.01, muon=True)
    run = Run(args.run, net, loss, steppers, args.lr, args.steps, every=every, every_steps=250)
    run.train()


if __name__ == "__main__":
    main()
