"""The networks that train_control.py trains, each with the way in which the frozen base network is called under it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderTiny, ControlNetModel, PixArtTransformer2DModel, UNet2DConditionModel
from diffusion import Denoiser
from torch import nn
from train_dit import NO_RESOLUTION

from diffaccel import models
from diffaccel.control import RelaCtrlAdapter, attach

ATTENTION = ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D")
EMBEDDING = (8, 16, 48, 96)  # the control image's own layers run on all its pixels, in every call
COPIED = ("block_out_channels", "layers_per_block", "cross_attention_dim", "attention_head_dim", "norm_num_groups")


class Base(Protocol):
    """A frozen denoiser and what its control takes."""

    network: nn.Module

    def lines(self, images: torch.Tensor) -> torch.Tensor:
        """What the control network takes of control images (n, 3, 128, 128) in [0, 1]."""

    def controlled(self, net: nn.Module, lines: torch.Tensor) -> Denoiser:
        """The denoiser under a control network; more rows than lines are groups of the same."""


def small_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for a UNet of three levels, with the UNet's weights where it has the same layers.

    Diffusers asks of a ControlNet that its residuals have the shapes of the UNet's skip connections, so widths and
    layers are the UNet's; what is left out is attention but in the deepest block, the second half of the middle block,
    and channels of the layers that embed the control image.
    """
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


@dataclass
class UNet:
    """A UNet under a ControlNet, which takes control images as they are."""

    network: UNet2DConditionModel

    def lines(self, images: torch.Tensor) -> torch.Tensor:
        """The control images."""
        return images

    def controlled(self, net: nn.Module, lines: torch.Tensor) -> Denoiser:
        """The UNet with the ControlNet's residuals."""

        def denoise(
            latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, _: torch.Tensor
        ) -> torch.Tensor:
            repeated = lines.repeat(len(latents) // len(lines), 1, 1, 1)
            down, middle = net(latents, timesteps, context, repeated, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return self.network(latents, timesteps, context, **residuals).sample

        return denoise


@dataclass
class Transformer:
    """A PixArt-like transformer under control blocks, which take the control image's latents."""

    network: PixArtTransformer2DModel
    vae: AutoencoderTiny

    @torch.no_grad()
    def lines(self, images: torch.Tensor) -> torch.Tensor:
        """Latents of the control images, (n, 4, 16, 16)."""
        # four at a time: what they need stays in a processor's cache
        encoded = [self.vae.encode(few * 2 - 1).latents.float().contiguous() for few in images.split(4)]
        return torch.cat(encoded) * self.vae.config.scaling_factor

    def controlled(self, net: Any, lines: torch.Tensor) -> Denoiser:
        """The transformer with the control blocks on it while it runs."""

        def denoise(
            latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
        ) -> torch.Tensor:
            handle = attach(self.network, net)
            handle.set_control(lines)
            try:
                return self.network(
                    latents,
                    encoder_hidden_states=context,
                    encoder_attention_mask=mask,
                    timestep=timesteps,
                    added_cond_kwargs=NO_RESOLUTION,
                ).sample
            finally:
                handle.detach()

        return denoise


class CopiedBlocks(nn.Module):
    """What RelaCtrl is measured against: copies of the first blocks, as PixArt-delta's ControlNet (arXiv 2401.05252).

    The first copy takes the hidden states and the projected control, the others what the copy before gave; each copy's
    projected output is added to the base network's next input.
    """

    def __init__(self, transformer: PixArtTransformer2DModel, blocks: int) -> None:
        super().__init__()
        self.dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.num_layers, self.positions = len(transformer.transformer_blocks), tuple(range(blocks))
        self.copies = nn.ModuleList(copy.deepcopy(transformer.transformer_blocks[i]) for i in range(blocks))
        self.before = nn.Linear(self.dim, self.dim)
        self.after = nn.ModuleList(nn.Linear(self.dim, self.dim) for _ in range(blocks))
        for layer in (self.before, *self.after):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.requires_grad_(True)

    def run_block(
        self, index: int, hidden_states: torch.Tensor, control: torch.Tensor, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next control and what is added, (rows, tokens, dim) each."""
        start = hidden_states + self.before(control) if index == 0 else control
        control = self.copies[index](start, **inputs)
        return control, self.after[index](control)


def base_folder(name: str) -> Path:
    """The folder of a bundled model or a local one."""
    return Path(name) if Path(name).is_dir() else models.path(name)


def load_base(folder: Path, vae: AutoencoderTiny, device: torch.device) -> Base:
    """The frozen denoiser of a pipeline's folder."""
    if (folder / "unet").is_dir():
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        return UNet(unet.to(device, memory_format=torch.channels_last).eval().requires_grad_(False))
    transformer = PixArtTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    return Transformer(transformer.to(device).eval().requires_grad_(False), vae)


def new_net(base: Base, kind: str, blocks: int, relevance: Sequence[float] | None, seed: int) -> nn.Module:
    """A control network that changes nothing yet: `controlnet` for a UNet, `relactrl` or `copied` for a transformer."""
    torch.manual_seed(seed)
    makers = {
        "controlnet": lambda: small_controlnet(base.network),
        "relactrl": lambda: RelaCtrlAdapter.from_transformer(base.network, relevance, blocks, seed),
        "copied": lambda: CopiedBlocks(base.network, blocks),
    }
    if kind not in makers or (kind == "controlnet") != isinstance(base, UNet):
        raise SystemExit(f"--kind {kind} does not go with a {type(base.network).__name__}; kinds: {', '.join(makers)}")
    return makers[kind]()
