"""Video networks whose frames can see earlier ones: which attentions join frames, and how frames learn their positions.

Everything else in such a network treats a frame by itself, so that a chunk of frames and the keys and values of the
frames before it are all that a call needs (Ca2-VDM, arXiv 2411.16375; ViD-GPT, arXiv 2406.10981).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from diffaccel.networks import layout_of
from diffaccel.networks.compiled import compiled_around
from diffaccel.networks.layout import UnsupportedModelError
from diffaccel.networks.tokens import joins_pictures

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values, each ``(rows * places, heads, frames, tokens, head_dim)``."""
Entry = Literal["output", "input", "rotary", "none"]
"""How a frame learns its position: a module returns its input with the position added, it is added to the input of a
module, queries and keys are turned by it, or it does not."""


class FrameAttention(ABC):
    """How a kind of attention makes queries, keys and values of frames, and an output of what they give.

    Attributes:
        processors: names of the processors whose arithmetic this is.
    """

    processors: tuple[str, ...]

    @abstractmethod
    def project(self, attn: Any, hidden_states: torch.Tensor, rows: int, frames: int) -> Heads:
        """Queries, keys and values before any rotation."""

    @abstractmethod
    def attend(
        self, attn: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """What queries get, ``(rows * places, heads, tokens of all frames, head_dim)``."""

    @abstractmethod
    def output(self, attn: Any, joined: torch.Tensor, rows: int, frames: int) -> torch.Tensor:
        """The module's output, in the shape of its input."""


class TemporalAttention(FrameAttention):
    """Attention over frames at every place, in networks that are called with one frame a row.

    Hidden states are ``(rows * frames * places, 1, channels)``.
    """

    processors = ("AttnProcessor", "AttnProcessor2_0")

    def project(self, attn: Any, hidden_states: torch.Tensor, rows: int, frames: int) -> Heads:
        """With one token a frame."""
        q, k, v = (
            # -> (rows * places, heads, frames, 1, head_dim)
            projected.reshape(rows, frames, -1, attn.heads, projected.shape[-1] // attn.heads)
            .permute(0, 2, 3, 1, 4)
            .flatten(0, 1)[..., None, :]
            for projected in (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        )
        return q, k, v

    def attend(
        self, attn: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Scaled dot products."""
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=attn.scale)

    def output(self, attn: Any, joined: torch.Tensor, rows: int, frames: int) -> torch.Tensor:
        """Through the module's last layers."""
        places, heads, _, size = joined.shape
        hidden = joined.reshape(rows, places // rows, heads, frames, size).permute(0, 3, 1, 2, 4)
        for layer in attn.to_out:
            hidden = layer(hidden.reshape(rows * frames * (places // rows), 1, -1))
        return hidden


class PictureAttention(FrameAttention):
    """Self-attention of a network for single pictures, whose tokens attend to those of other frames as to their own.

    Hidden states are ``(rows * frames, tokens, channels)``.
    """

    processors = ("AttnProcessor", "AttnProcessor2_0")

    def project(self, attn: Any, hidden_states: torch.Tensor, rows: int, frames: int) -> Heads:
        """As the stock processors do."""
        q, k, v = (
            # -> (rows, heads, frames, tokens, head_dim)
            x.reshape(rows, frames, x.shape[1], attn.heads, -1).permute(0, 3, 1, 2, 4)
            for x in (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        )
        return q, k, v

    def attend(
        self,
        attn: Any,  # noqa: ARG002
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Scaled dot products, to the bit those of the stock processor where no other frame is seen."""
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)

    def output(self, attn: Any, joined: torch.Tensor, rows: int, frames: int) -> torch.Tensor:
        """Through the module's last layers."""
        hidden = joined.transpose(1, 2).reshape(rows * frames, -1, attn.heads * joined.shape[-1])
        for layer in attn.to_out:
            hidden = layer(hidden)
        return hidden


class RotaryAttention(FrameAttention):
    """Attention over all tokens of all frames, with queries and keys turned by their positions, as Wan has it.

    Hidden states are ``(rows, frames * tokens, channels)``.
    """

    processors = ("WanAttnProcessor", "SkyReelsV2AttnProcessor")

    def project(self, attn: Any, hidden_states: torch.Tensor, rows: int, frames: int) -> Heads:
        """Normalised, not yet turned."""
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(hidden_states).chunk(3, -1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q, k, v = (
            # -> (rows, heads, frames, tokens, head_dim)
            x.reshape(rows, frames, -1, attn.heads, x.shape[-1] // attn.heads).permute(0, 3, 1, 2, 4)
            for x in (attn.norm_q(q), attn.norm_k(k), v)
        )
        return q, k, v

    def attend(
        self, attn: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """By the attention backend that the network is set to."""
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        backend = attn.processor._attention_backend
        joined: torch.Tensor = dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend)
        return joined.transpose(1, 2)

    def output(self, attn: Any, joined: torch.Tensor, rows: int, frames: int) -> torch.Tensor:  # noqa: ARG002
        """Through the module's last layers."""
        hidden = joined.transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            hidden = layer(hidden)
        return hidden


def rotated(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Heads ``(rows, heads, tokens, head_dim)`` turned by ``(cos, sin)`` of ``(1 or rows, tokens, 1, head_dim)``."""
    cos, sin = (part.transpose(1, 2) for part in rotary)  # -> (1 or rows, 1, tokens, head_dim)
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


@dataclass(frozen=True)
class CausalLayout:
    """Where frames meet in a network.

    Attributes:
        model: class name of the network, for messages.
        attention: names of the attentions that join frames.
        heads: the arithmetic of each.
        positions: names of the modules where frames learn their positions.
        entry: how they do.
        length: how many positions there are.
        tokens: how many tokens of a frame an attention joins with those of others, from its name and the height and
            width of latents.
        table: for positions that are added, those of a module as ``(length, channels)``.
    """

    model: str
    attention: tuple[str, ...]
    heads: tuple[FrameAttention, ...]
    positions: tuple[str, ...]
    entry: Entry
    length: int
    tokens: Callable[[str, int, int], int]
    table: Callable[[Any], torch.Tensor] | None = None

    @property
    def baked(self) -> bool:
        """Whether positions are part of keys and values once these are made."""
        return self.entry != "rotary"


def _motion(model: Any) -> CausalLayout:
    """UNetMotionModel: two attentions over frames in every block of a motion module, each with a table before it.

    Where its configuration says `joint_self_attention`, pixels of a picture attend to those of other frames as well.
    """
    names = [name for name, _ in model.named_modules()]
    motion = [name for name in names if "motion_modules" in name]
    tables = tuple(name for name in motion if name.endswith("pos_embed"))
    attention = tuple(name for name in motion if name.rpartition(".")[2] in ("attn1", "attn2"))
    joint = [name for name in names if name.endswith("attn1")] if joins_pictures(model) else []
    pictures = tuple(name for name in joint if name not in attention)
    if not tables:
        raise UnsupportedModelError("this UNetMotionModel has no motion modules with positions")
    if any(type(module).__name__ == "FreeNoiseTransformerBlock" for module in model.modules()):
        raise UnsupportedModelError("FreeNoise joins frames in windows of its own: call pipe.disable_free_noise()")
    length = min(int(model.get_submodule(name).pe.shape[1]) for name in tables)
    deepest = len(model.down_blocks) - 1

    def tokens(name: str, height: int, width: int) -> int:
        kind, _, rest = name.partition(".")
        number = int(rest.partition(".")[0]) if kind != "mid_block" else deepest
        level = deepest - number if kind == "up_blocks" else number
        side: int = 2**level
        return -(-height // side) * -(-width // side)

    return CausalLayout(
        type(model).__name__,
        attention + pictures,
        (TemporalAttention(),) * len(attention) + (PictureAttention(),) * len(pictures),
        tables,
        "output",
        length,
        tokens,
        lambda module: module.pe[0],
    )


def _latte(model: Any) -> CausalLayout:
    """LatteTransformer3DModel: temporal blocks, and positions in the hidden states that the first of them gets."""
    blocks = [f"temporal_transformer_blocks.{i}" for i in range(len(model.temporal_transformer_blocks))]
    table: torch.Tensor = model.temp_pos_embed[0]
    attention = tuple(f"{name}.attn1" for name in blocks)
    return CausalLayout(
        type(model).__name__,
        attention,
        (TemporalAttention(),) * len(blocks),
        tuple(blocks[:1]),
        "input",
        len(table),
        _patches(model.config.patch_size),
        lambda _: table,
    )


def _wan(model: Any) -> CausalLayout:
    """WanTransformer3DModel and SkyReelsV2Transformer3DModel: full attention over frames in every block."""
    joined = model.config.patch_size[0]
    if joined != 1:
        raise UnsupportedModelError(
            f"this {type(model).__name__} joins {joined} frames to one token (patch_size[0]): only networks that keep "
            "frames apart can keep their keys and values"
        )
    attention = tuple(f"blocks.{i}.attn1" for i in range(len(model.blocks)))
    length = int(model.rope.max_seq_len)
    tokens = _patches(model.config.patch_size[1])
    heads = (RotaryAttention(),) * len(attention)
    return CausalLayout(type(model).__name__, attention, heads, ("rope",), "rotary", length, tokens)


def _patches(side: int) -> Callable[[str, int, int], int]:
    """Tokens of a frame of latents in square patches, in every block."""
    return lambda _, height, width: (height // side) * (width // side)


_CAUSAL: dict[str, Callable[[Any], CausalLayout]] = {
    "LatteTransformer3DModel": _latte,
    "SkyReelsV2Transformer3DModel": _wan,
    "UNetMotionModel": _motion,
    "WanTransformer3DModel": _wan,
}


def causal_layout_of(model: Any) -> CausalLayout:
    """Where frames meet in a network.

    Raises:
        UnsupportedModelError: for networks of other families, and attentions with other processors than the stock ones.
    """
    find = next((_CAUSAL[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in _CAUSAL), None)
    if find is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot keep the keys and values of earlier frames: networks that can are "
            f"{', '.join(_CAUSAL)}"
        )
    return _stock(find(model), model)


def picture_layout_of(model: Any, blocks: Sequence[str]) -> CausalLayout:
    """Where tokens of a picture meet in a network, so that they can meet those of other pictures as well.

    Args:
        model: a network for single pictures.
        blocks: beginnings of the names of the attentions, such as "up_blocks"; none for all.

    Raises:
        UnsupportedModelError: for networks without such attentions, and attentions with other processors than the stock
            ones.
        ValueError: where a name begins no attention's.
    """
    kind = type(model).__name__
    found = [n for n in layout_of(model).picture_attention if type(model.get_submodule(n)).__name__ == "Attention"]
    if not found:
        raise UnsupportedModelError(f"{kind} has no self-attention over pictures whose keys and values could be kept")
    for block in blocks:
        known = dict.fromkeys(".".join(name.split(".")[:2]) for name in found)
        if not any(_within(name, block) for name in found):
            raise ValueError(f"no self-attention of {kind} lies in {block!r}: choose from {', '.join(known)}")
    chosen = tuple(name for name in found if not blocks or any(_within(name, block) for block in blocks))
    layout = CausalLayout(kind, chosen, (PictureAttention(),) * len(chosen), (), "none", 0, lambda *_: 0)
    return _stock(layout, model)


def _within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _stock(layout: CausalLayout, model: Any) -> CausalLayout:
    """A layout whose attentions have the processors that are known, and can be reached.

    Raises:
        UnsupportedModelError: for other processors, and where what they are part of was compiled.
    """
    for name, heads in zip(layout.attention, layout.heads, strict=True):
        if (inside := compiled_around(model, name)) is not None:
            raise UnsupportedModelError(
                f"{inside!r} was compiled, and would be again whenever {name!r} within it sees other frames: leave it "
                "uncompiled"
            )
        processor = type(model.get_submodule(name).processor).__name__
        if processor not in heads.processors:
            raise UnsupportedModelError(
                f"{name} has a {processor}, which keeping keys and values would pass by: set it back with "
                "set_default_attn_processor() or set_attn_processor(...)"
            )
    return layout
