"""Tiny video networks, and what a cache must equal: one pass over clean frames and a noisy chunk, with explicit masks.

Nothing here is of the package: attentions are written out, chunk by chunk, with the frames that each may see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    LatteTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    UNetMotionModel,
    WanTransformer3DModel,
)

TOKENS, TEXT, SIDE = 3, 8, 8


def seeded(build: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build().eval()
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.abs().sum():
                torch.nn.init.normal_(weight, std=0.2)
        for name, weight in model.named_parameters():
            if any(part in name for part in ("to_q.weight", "to_k.weight", "norm_q.weight", "norm_k.weight")):
                weight.data *= 3  # attention that tells frames apart
    return model.requires_grad_(False)


def motion() -> Any:
    return seeded(
        lambda: UNetMotionModel(
            sample_size=SIDE, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), norm_num_groups=4, cross_attention_dim=TEXT,
            num_attention_heads=2, motion_num_attention_heads=2, motion_max_seq_length=16,
        )
    )  # fmt: skip


def joint() -> Any:
    """One whose pixels attend to those of other frames as well."""
    model = motion()
    model.register_to_config(joint_self_attention=True)
    return model


def latte() -> Any:
    return seeded(
        lambda: LatteTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, patch_size=2,
            cross_attention_dim=16, attention_bias=True, sample_size=SIDE, activation_fn="gelu-approximate",
            norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=TEXT,
            num_embeds_ada_norm=1000, video_length=16,
        )
    )  # fmt: skip


_WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": TEXT, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip


def wan() -> Any:
    return seeded(lambda: WanTransformer3DModel(**_WAN))


def skyreels() -> Any:
    return seeded(lambda: SkyReelsV2Transformer3DModel(**_WAN, inject_sample_info=True))


@dataclass(frozen=True)
class Family:
    """A tiny network as a pipeline has it."""

    build: Any
    component: str
    baked: bool
    expand: bool = False

    def pipe(self, model: Any, **parts: Any) -> Any:
        config = SimpleNamespace(expand_timesteps=self.expand)
        vae = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
        return SimpleNamespace(**{self.component: model, "vae": vae, "config": config, "encode_prompt": None, **parts})


def embedded(text: str) -> torch.Tensor:
    """Embeddings of a text, (1, tokens, features)."""
    return torch.randn(1, TOKENS, TEXT, generator=torch.Generator().manual_seed(sum(text.encode())))


def video_pipe(family: Family, scheduler: Any) -> Any:
    """All that an engine reads of a pipeline."""
    vae = seeded(lambda: AutoencoderTiny(encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4))  # fmt: skip
    return family.pipe(
        family.build(), vae=vae, scheduler=scheduler, encode_prompt=lambda text, *_, **__: (embedded(text), None),
        text_encoder=None, _execution_device="cpu",
    )  # fmt: skip


FAMILIES = {
    "motion": Family(motion, "unet", True),
    "joint": Family(joint, "unet", True),
    "latte": Family(latte, "transformer", True),
    "wan": Family(wan, "transformer", False),
    "wan 2.2": Family(wan, "transformer", False, expand=True),
    "skyreels": Family(skyreels, "transformer", False),
}


@dataclass(frozen=True)
class Sight:
    """Frames of a chunk, the earlier ones that they see, and the positions of those and of their own."""

    own: tuple[int, ...]
    seen: tuple[int, ...]
    positions: tuple[int, ...]


def sights(chunks: Sequence[int], window: int | None, sink: int, numbering: str, length: int = 16) -> list[Sight]:
    """For chunks of so many frames each."""
    found, start = [], 0
    for size in chunks:
        own = tuple(range(start, start + size))
        seen = tuple(n for n in range(start) if n < sink or window is None or n >= start - window)
        absolute = (*seen, *own)
        positions = {
            "absolute": absolute,
            "cyclic": tuple(n % length for n in absolute),
            "relative": tuple(range(len(absolute))),
        }[numbering]
        found.append(Sight(own, seen, positions))
        start += size
    return found


def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``(..., queries, d)`` on ``(..., keys, d)``, in double precision."""
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v.double()).to(q.dtype)


class TemporalReference:
    """Attention over frames at every place; rows are frames."""

    def __init__(self, plan: Sequence[Sight], videos: int) -> None:
        self.plan, self.videos, self.frames = plan, videos, plan[-1].own[-1] + 1

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        whole = hidden_states.reshape(self.videos, self.frames, -1, hidden_states.shape[-1])
        q, k, v = (layer(whole).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        out = torch.zeros_like(q)
        for sight in self.plan:
            own, keys = list(sight.own), [*sight.seen, *sight.own]
            out[:, own] = self.mixed(q[:, own], k[:, keys], v[:, keys])
        return attn.to_out[0](out.flatten(-2).reshape(hidden_states.shape))

    def mixed(self, *heads: torch.Tensor) -> torch.Tensor:
        """What queries get of keys and values, each (videos, frames, places, heads, d)."""
        return softmax_attention(*(x.permute(0, 2, 3, 1, 4) for x in heads)).permute(0, 3, 1, 2, 4)


class JointReference(TemporalReference):
    """Attention of every pixel to those of the frames that its own sees."""

    def mixed(self, *heads: torch.Tensor) -> torch.Tensor:
        """Of all places of all frames."""
        met = softmax_attention(*(x.flatten(1, 2).transpose(1, 2) for x in heads))
        return met.transpose(1, 2).unflatten(1, (heads[0].shape[1], -1))


def turned(x: torch.Tensor, frames: Sequence[int], height: int, width: int) -> torch.Tensor:
    """Heads ``(videos, frames, h * w, heads, d)`` turned by their place in time, height and width."""
    d = x.shape[-1]
    side = 2 * (d // 6)
    t, y, z = torch.meshgrid(torch.tensor(frames), torch.arange(height), torch.arange(width), indexing="ij")
    angles = []
    for place, size in ((t, d - 2 * side), (y, side), (z, side)):
        steps = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles.append(place.double()[..., None] * steps)
    turn = torch.polar(torch.ones(()).double(), torch.cat(angles, -1)).flatten(1, 2)  # (frames, h * w, d / 2)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn[None, :, :, None]).flatten(-2).to(x.dtype)


class RotaryReference:
    """Attention over all tokens of the frames that a chunk sees."""

    def __init__(self, plan: Sequence[Sight], height: int, width: int) -> None:
        self.plan, self.height, self.width = plan, height, width

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        def split(x: torch.Tensor) -> torch.Tensor:  # -> (videos, frames, tokens, heads, d)
            return x.unflatten(1, (-1, self.height * self.width)).unflatten(-1, (attn.heads, -1))

        q = split(attn.norm_q(attn.to_q(hidden_states)))
        k = split(attn.norm_k(attn.to_k(hidden_states)))
        v = split(attn.to_v(hidden_states))
        out = torch.zeros_like(q)
        for sight in self.plan:
            own, keys, n = list(sight.own), [*sight.seen, *sight.own], len(sight.seen)
            queries = turned(q[:, own], sight.positions[n:], self.height, self.width)
            met = turned(k[:, keys], sight.positions, self.height, self.width)
            mixed = softmax_attention(*(x.flatten(1, 2).transpose(1, 2) for x in (queries, met, v[:, keys])))
            out[:, own] = mixed.transpose(1, 2).unflatten(1, (len(own), -1))
        return attn.to_out[0](out.flatten(-2).flatten(1, 2))


def _numbered(plan: Sequence[Sight]) -> torch.Tensor:
    """The position of every frame, where it stays."""
    return torch.tensor([p for sight in plan for p in sight.positions[len(sight.seen) :]])


@torch.no_grad()
def one_pass(
    family: Family, latents: torch.Tensor, timesteps: torch.Tensor, words: torch.Tensor, plan: Sequence[Sight]
) -> torch.Tensor:
    """The prediction for all frames in one pass.

    Args:
        latents: (videos, C, frames, h, w).
        timesteps: of each frame, (frames,).
        words: (videos, tokens, features).
        plan: what every chunk sees.
    """
    videos, _, _, height, width = latents.shape
    model = family.build()
    if family.component == "unet" or isinstance(model, LatteTransformer3DModel):
        return _by_frames(model, latents, timesteps, words, plan)
    for block in model.blocks:
        block.attn1.set_processor(RotaryReference(plan, height // 2, width // 2))
    if isinstance(model, SkyReelsV2Transformer3DModel):
        per_frame = timesteps.expand(videos, -1)
        return model(latents, per_frame, words, enable_diffusion_forcing=True, fps=[1], return_dict=False)[0]
    tokens = timesteps.repeat_interleave(height * width // 4).expand(videos, -1)
    return model(latents, tokens, words, return_dict=False)[0]


def _by_frames(
    model: Any, latents: torch.Tensor, timesteps: torch.Tensor, words: torch.Tensor, plan: Sequence[Sight]
) -> torch.Tensor:
    videos, channels, frames = latents.shape[:3]
    numbers, processor = _numbered(plan), TemporalReference(plan, videos)

    def add(table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x.reshape(videos, frames, -1, x.shape[-1]) + table[numbers][None, :, None]).reshape(x.shape)

    for name, module in model.named_modules():
        if name.endswith("pos_embed") and "motion" in name:
            module.register_forward_hook(lambda module, args, _: add(module.pe[0], args[0]))
        if name.rpartition(".")[2] in ("attn1", "attn2") and ("motion" in name or "temporal" in name):
            module.set_processor(processor)
        elif name.endswith("attn1") and getattr(model.config, "joint_self_attention", False):
            module.set_processor(JointReference(plan, videos))
    if isinstance(model, LatteTransformer3DModel):
        model.temporal_transformer_blocks[0].register_forward_pre_hook(
            lambda _, args: (add(model.temp_pos_embed[0], args[0]), *args[1:])
        )
    rows = latents.transpose(1, 2).flatten(0, 1)[:, :, None]
    told = words.repeat_interleave(frames, 0)
    out = model(rows, timestep=timesteps.repeat(videos), encoder_hidden_states=told, return_dict=False)[0]
    return out[:, :channels, 0].unflatten(0, (videos, frames)).transpose(1, 2)
