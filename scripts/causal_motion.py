"""A UNetMotionModel whose frames see only what came before: emoji-sd with a causal MotionAdapter, and its reference.

Frames are rows of the batch (the network is called with one frame a row), so every frame has its own timestep and its
own words, and normalisation is per frame. Only self-attention joins frames: that over time at every place, whose
positions come from a table of period `CYCLE`, kept in the adapter's weights (frame i stands at i mod CYCLE); and, where
the image network has a LoRA, that over the picture, whose pixels then see those of the other frames, so that what moves
finds itself where it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import Attention
from peft import LoraConfig
from torch import nn

CYCLE = 16
# the layers of the image network that a LoRA changes
LORA = r"(?!.*motion_modules).*(attn[12]\.to_(q|k|v|out\.0)|attentions\.\d+\.proj_(in|out))"
CHUNK = 4
ADAPTER: dict[str, Any] = {
    "block_out_channels": (64, 128, 128),
    "motion_layers_per_block": 2,
    "motion_mid_block_layers_per_block": 1,
    "motion_num_attention_heads": (2, 4, 4),
    "motion_norm_num_groups": 16,
    "motion_max_seq_length": CYCLE,
    "use_motion_mid_block": True,
}


def cyclic_table(cycle: int, channels: int) -> torch.Tensor:
    """Sinusoids of all harmonics of one turn in `cycle` frames, repeated to fill the channels, (1, cycle, channels).

    Shifting all frames turns the pairs alike, so attention can depend on distances alone, across the seam as well.
    """
    harmonics = torch.arange(channels // 2) % (cycle // 2) + 1
    angles = 2 * math.pi / cycle * torch.arange(cycle)[:, None] * harmonics
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(1, cycle, channels)


@dataclass
class Layout:
    """How the rows of a call are frames: videos, the frames' positions, and which frame sees which."""

    videos: int = 1
    positions: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    mask: torch.Tensor = field(default_factory=lambda: torch.ones(1, 1, dtype=torch.bool))  # (query, key)
    keep: int | None = None  # frames whose keys and values this call leaves for the next; None leaves them as they are

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        """(videos frames pixels, 1, channels) as (videos, frames, pixels, channels)."""
        return rows.reshape(self.videos, len(self.positions), -1, rows.shape[-1])


@dataclass
class Positions:
    """Forward hook of `pos_embed`: adds the frames' own rows of the table."""

    layout: Layout

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...], _: torch.Tensor) -> torch.Tensor:
        """The hidden states with the positions."""
        table = module.pe[0, self.layout.positions % module.pe.shape[1]].to(args[0].dtype)
        return (self.layout.split(args[0]) + table[:, None]).reshape(args[0].shape)


@dataclass
class TemporalAttention:
    """Attention processor of the motion modules: every pixel attends over the frames that the mask allows.

    The columns of the mask are the kept frames, if there are any, then those of the call.
    """

    layout: Layout
    past: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """(videos frames pixels, 1, channels) in and out."""
        videos, frames = self.layout.videos, len(self.layout.positions)
        q, k, v = (
            # -> (videos pixels heads, frames, head_dim)
            projected.reshape(videos, frames, -1, attn.heads, projected.shape[-1] // attn.heads)
            .permute(0, 2, 3, 1, 4)
            .flatten(0, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        )
        if self.past is not None:
            k, v = torch.cat([self.past[0], k], 1), torch.cat([self.past[1], v], 1)
        if self.layout.keep is not None:
            self.past = (k[:, -self.layout.keep :], v[:, -self.layout.keep :])
        scores = torch.bmm(q * attn.scale, k.transpose(1, 2))
        bias = torch.zeros(self.layout.mask.shape, dtype=scores.dtype).masked_fill(~self.layout.mask, -1e4)
        joined = torch.bmm((scores + bias).softmax(-1).to(v.dtype), v)
        joined = joined.reshape(videos, -1, attn.heads, frames, joined.shape[-1]).permute(0, 3, 1, 2, 4)
        return attn.to_out[0](joined.reshape(hidden_states.shape))


@dataclass
class JointAttention:
    """Attention processor of the image network's self-attention: every pixel attends to those of all frames it sees."""

    layout: Layout
    past: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """(videos frames, pixels, channels) in and out."""
        videos, frames = self.layout.videos, len(self.layout.positions)
        pixels = hidden_states.shape[1]
        q, k, v = (
            # -> (videos, heads, frames pixels, head_dim)
            projected.reshape(videos, frames * pixels, attn.heads, -1).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        )
        if self.past is not None:
            k, v = torch.cat([self.past[0], k], 2), torch.cat([self.past[1], v], 2)
        if self.layout.keep is not None:
            kept = self.layout.keep * pixels
            self.past = (k[:, :, -kept:], v[:, :, -kept:])
        mask = self.layout.mask.repeat_interleave(pixels, 0).repeat_interleave(pixels, 1)
        joined = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(hidden_states.shape)
        return attn.to_out[0](joined)


class CausalVideo(nn.Module):
    """The denoiser of videos with its layout; the image weights are frozen."""

    def __init__(self, unet: UNetMotionModel, joint: bool = False) -> None:
        super().__init__()
        self.unet, self.layout, self.joint = unet, Layout(), joint
        for name, module in unet.named_modules():
            if "motion_modules" not in name:
                continue
            if name.endswith("pos_embed"):
                module.register_forward_hook(Positions(self.layout))
            elif isinstance(module, Attention):
                module.set_processor(TemporalAttention(self.layout))
        for name, module in unet.named_modules() if joint else ():
            if "motion_modules" not in name and name.endswith("attn1"):
                module.set_processor(JointAttention(self.layout))

    @classmethod
    def build(cls, image: UNet2DConditionModel, adapter: MotionAdapter, rank: int = 0) -> CausalVideo:
        """From the image network and an adapter, whose weights are trained.

        With a rank, a LoRA of it on the image network is trained, too, whose self-attention then joins frames.
        """
        unet = UNetMotionModel.from_unet2d(image, adapter)
        if rank:
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=LORA))
        for name, weight in unet.named_parameters():
            weight.requires_grad_("motion_modules" in name or "lora_" in name)
        return cls(unet, rank > 0)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        keep: int | None = None,
    ) -> torch.Tensor:
        """The velocity of every frame.

        Args:
            latents: (videos, frames, 4, 16, 16).
            timesteps: (videos, frames).
            context: the text encoder's output, (videos, tokens, 128).
            positions: (frames,), counted from the start of the video; taken modulo the table's length.
            mask: (frames, frames), True where the frame of the row sees that of the column.
            keep: how many frames to keep for the next call, with those kept already; None keeps nothing new.
        """
        videos, frames = timesteps.shape
        self.layout.videos, self.layout.positions, self.layout.mask, self.layout.keep = videos, positions, mask, keep
        rows = latents.flatten(0, 1)[:, :, None]  # (videos frames, 4, 1, 16, 16)
        words = context.repeat_interleave(frames, 0)
        return self.unet(rows, timesteps.flatten(), words).sample[:, :, 0].unflatten(0, (videos, frames))

    def halve_frozen(self) -> None:
        """Hold the frozen convolutions and matrices in bfloat16, for training under autocast."""
        for module in self.unet.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and not any(w.requires_grad for w in module.parameters()):
                module.to(torch.bfloat16)

    def forget(self) -> None:
        """Drop the kept frames: another video begins."""
        for module in self.unet.modules():
            if isinstance(module, Attention) and isinstance(module.processor, TemporalAttention | JointAttention):
                module.processor.past = None


def new_adapter() -> MotionAdapter:
    """An adapter that changes nothing yet, with the cyclic table."""
    adapter = MotionAdapter(**ADAPTER)
    for name, module in adapter.named_modules():
        if name.endswith("pos_embed"):
            module.pe.copy_(cyclic_table(CYCLE, module.pe.shape[-1]))
        elif name.endswith("proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return adapter


def block_causal(chunks: torch.Tensor) -> torch.Tensor:
    """Which frame sees which, (frames, frames), for the frames' chunk numbers (frames,): its chunk and all earlier."""
    return chunks[:, None] >= chunks[None]


def teacher_forcing(chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames and mask of one pass that denoises every chunk given the clean chunks before it.

    Args:
        chunks: the frames' chunk numbers, ascending, (frames,).

    Returns:
        The frame shown by each row, (rows,): clean frames without the last chunk, then all frames, noisy. The mask
        (rows, rows): clean rows see clean ones up to their chunk, noisy rows the clean ones before their chunk and
        the noisy ones of it.
    """
    clean = torch.arange(int((chunks < chunks[-1]).sum()))
    rows = torch.cat([clean, torch.arange(len(chunks))])
    noisy = torch.arange(len(rows)) >= len(clean)
    number = chunks[rows]
    earlier, same = number[None] < number[:, None], number[None] == number[:, None]
    return rows, (earlier & ~noisy[None]) | (same & (noisy[:, None] == noisy[None]))


def reference(
    network: CausalVideo,
    prefix: torch.Tensor,
    chunk: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    chunks: torch.Tensor,
    first: int = 0,
    window: int | None = None,
) -> torch.Tensor:
    """One pass over [clean prefix at t = 0, noisy chunk at t] with a block-causal mask: what a cache must equal.

    Args:
        network: the video network.
        prefix: clean latents of all earlier frames, (videos, past, 4, 16, 16); past may be 0.
        chunk: noisy latents, (videos, frames, 4, 16, 16).
        timestep: of the chunk, 0-d.
        context: the text encoder's output, (videos, tokens, 128).
        chunks: chunk numbers of all frames, ascending, (past + frames,).
        first: position of the first frame of the prefix.
        window: how many frames before its chunk a frame sees; all by default.

    Returns:
        The velocity of the chunk, (videos, frames, 4, 16, 16).
    """
    past, frames = prefix.shape[1], chunk.shape[1]
    mask = block_causal(chunks)
    if window is not None:
        starts = torch.searchsorted(chunks, chunks)  # where each frame's chunk begins
        mask = mask & (torch.arange(past + frames)[None] >= starts[:, None] - window)
    times = torch.cat([torch.zeros(past, dtype=torch.long), timestep.long().expand(frames)])
    latents = torch.cat([prefix, chunk], 1)
    positions = first + torch.arange(past + frames)
    return network(latents, times.expand(len(chunk), -1), context, positions, mask)[:, past:]
