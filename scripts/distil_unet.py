"""Assemble a light UNet from the layers of `emoji-sd` and distil it: `emoji-sd-small`, for the calls that are easy.

Fewer layers per block keep whole layers of the teacher (BK-SDM, Kim et al., arXiv 2305.15798); half width keeps half
the channels of every one, in runs of 16, so that a group of a normalisation is kept or dropped as a whole. Where only
the width is halved, `--fit ROWS` fits its layers to the teacher's one by one (`fit_layers`), in one
pass over as many samples. What is left learns the teacher's output and the output of each of its blocks, in the
channels that were kept; more often at high noise, where a small network is to take the teacher's place. With
`--experts 4` each convolution of its layers has four weights, mixed by the timestep (A-SDM, arXiv 2406.00210): as
quick a network, in three times the memory. Run again to resume.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusion import (
    SCHEDULE,
    Denoiser,
    LatentPool,
    TextEncoder,
    add_noise,
    arguments,
    load_vae,
    train_denoiser,
)
from fit_layers import fit_layers
from torch import nn
from train_sd import denoise, pipeline

from diffaccel import ExpertUNet2DConditionModel

RUN = 16  # channels that are kept or dropped together
HEAD_OUTPUTS = re.compile(r"to_[qkv]\.weight$")
HEAD_INPUTS = re.compile(r"to_out\.0\.weight$")


def every_other(size: int, run: int) -> torch.Tensor:
    """Indices of every other run of channels; of two stacked tensors they are those of each, where runs divide both."""
    index = torch.arange(size)
    return index[index // run % 2 == 0]


def kept_channels(name: str, dimension: int, size: int, head: int) -> torch.Tensor:
    """Which indices of a dimension of a teacher's weight a network of half the width keeps.

    Args:
        name: of the weight.
        dimension: of the weight, 0 for outputs.
        size: of the dimension at the teacher.
        head: channels of an attention head: heads are kept whole.
    """
    if name == "time_embedding.linear_1.weight" and dimension == 1:
        return torch.arange(0, size, 2)  # every other frequency is what half as many frequencies are
    heads = HEAD_OUTPUTS.search(name) if dimension == 0 else HEAD_INPUTS.search(name)
    return every_other(size, head if heads else RUN)


def light_config(config: dict[str, Any], layers: int, half: bool) -> dict[str, Any]:
    """The teacher's configuration with fewer layers per block, and half the channels, groups and heads."""
    light = {**config, "layers_per_block": layers}
    if half:
        light["block_out_channels"] = tuple(channels // 2 for channels in config["block_out_channels"])
        light["norm_num_groups"] = config["norm_num_groups"] // 2
        light["attention_head_dim"] = config["attention_head_dim"] // 2  # the number of heads, whatever its name
    return light


def source_name(name: str, layers: int, teacher_layers: int) -> str:
    """The teacher's name of a light network's weight: a block keeps its first layers, and on the way up its last."""

    def number(found: re.Match[str]) -> str:
        layer = int(found[2])
        return f"{found[1]}{teacher_layers if layer == layers else layer}"

    return re.sub(r"(up_blocks\.\d+\.(?:resnets|attentions)\.)(\d+)", number, name)


@torch.no_grad()
def assemble(teacher: UNet2DConditionModel, layers: int, half: bool) -> UNet2DConditionModel:
    """A light UNet whose every weight is the teacher's, or the part of it that is kept."""
    config = teacher.config
    if not 1 <= layers <= config.layers_per_block:
        raise ValueError(f"the teacher has {config.layers_per_block} layers per block: give --layers of 1 to that")
    light = UNet2DConditionModel.from_config(light_config(dict(config), layers, half))
    weights = teacher.state_dict()
    head = config.block_out_channels[-1] // config.attention_head_dim
    for name, parameter in light.state_dict().items():
        source = weights[source_name(name, layers, config.layers_per_block)]
        for dimension, (size, kept) in enumerate(zip(source.shape, parameter.shape, strict=True)):
            if size != kept:
                source = source.index_select(dimension, kept_channels(name, dimension, size, head))
        parameter.copy_(source)
    return light


class BlockOutputs:
    """The output of each block of a UNet at its last call, kept by hooks."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.outputs: dict[int, torch.Tensor] = {}
        for number, block in enumerate([*unet.down_blocks, unet.mid_block, *unet.up_blocks]):
            block.register_forward_hook(self._keeper(number))

    def _keeper(self, number: int) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self.outputs[number] = output[0] if isinstance(output, tuple) else output

        return keep


def feature_loss(student: BlockOutputs, teacher: BlockOutputs) -> torch.Tensor:
    """Mean over blocks of the square error in the kept channels, in units of the teacher's variance there."""
    losses = []
    for number, output in student.outputs.items():
        target = teacher.outputs[number].float()
        if target.shape[1] != output.shape[1]:
            target = target[:, every_other(target.shape[1], RUN)]
        losses.append(F.mse_loss(output.float(), target) / target.var())
    return torch.stack(losses).mean()


def fit(args: argparse.Namespace, light: UNet2DConditionModel, teacher: UNet2DConditionModel) -> None:
    """Fit the layers of a network of half the width to the teacher's, on as many noisy latents as `args.fit` says."""
    device, scheduler = torch.device("cpu"), DPMSolverMultistepScheduler(**SCHEDULE)
    text, vae = TextEncoder.load(args.clip, device), load_vae(args.vae, device)
    captions, latents = LatentPool(args.latents, args.data, vae, args.seed, centred=args.centred).batch(0, args.fit)
    rng = torch.Generator().manual_seed(args.seed)
    share = torch.rand(args.fit, generator=rng) ** (1 / (1 + args.noisier))
    timesteps = (share * len(scheduler.alphas_cumprod)).long()
    noise = torch.randn(latents.shape, generator=rng)
    noisy, _ = add_noise(latents, noise, scheduler.alphas_cumprod[timesteps])
    head = teacher.config.block_out_channels[-1] // teacher.config.attention_head_dim

    def kept(name: str, x: torch.Tensor) -> torch.Tensor:
        dimension, weight = 1 if x.dim() == 4 else x.dim() - 1, getattr(light.get_submodule(name), "weight", None)
        if weight is not None and len(weight) == x.shape[dimension]:
            return x
        return x.index_select(dimension, kept_channels(f"{name}.weight", 0, x.shape[dimension], head))

    fit_layers(light, teacher, kept, noisy, timesteps, text([c if i % 10 else "" for i, c in enumerate(captions)])[0])


def main() -> None:
    """Parse the arguments, assemble and train."""
    args: argparse.Namespace = arguments(
        __doc__,
        "sd-small",
        lr=1.5e-3,
        teacher=Path("runs/sd/model"),
        layers=2,
        width="half",
        features=0.05,
        noisier=1.0,
        fit=0,
        experts=0,
    )
    torch.manual_seed(args.seed)
    teacher = UNet2DConditionModel.from_pretrained(args.teacher, subfolder="unet")
    student = assemble(teacher, args.layers, args.width == "half")
    if args.fit and not (args.run / "checkpoint.pt").exists():
        fit(args, student, teacher)
    if args.experts:
        student = ExpertUNet2DConditionModel.from_unet(student, args.experts)
    teacher.to(args.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    outputs, targets = BlockOutputs(student), BlockOutputs(teacher)
    call: Denoiser = denoise(teacher)

    def also() -> torch.Tensor:
        return args.features * feature_loss(outputs, targets)

    train_denoiser(args, student, denoise, pipeline, torch.channels_last, teacher=call, also=also, noisier=args.noisier)


if __name__ == "__main__":
    main()
