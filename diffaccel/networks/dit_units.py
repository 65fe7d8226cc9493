"""Attentions and feed-forward networks within transformer blocks, told by the names that diffusers gives them."""

from collections.abc import Iterator

import torch

from diffaccel.networks.attention import key_values
from diffaccel.networks.block_io import called_twice
from diffaccel.networks.layout import Unit, is_one_of
from diffaccel.reuse.branch import Branch

SELF_ATTENTION = ("attn", "attn1", "audio_attn1", "attention", "self_attn", "self_attention")
CROSS_ATTENTION = (
    "attn2",
    "audio_attn2",
    "audio_to_video_attn",
    "cross_attention",
    "cross_attn",
    "video_to_audio_attn",
)
FEED_FORWARD = (
    "audio_ff",
    "feed_forward",
    "ff",
    "ff_context",
    "ff_i",
    "ff_t",
    "ffn",
    "img_mlp",
    "mlp",
    "txt_ff",
    "txt_mlp",
)
# The module whose output leaves a feed-forward network written out in the block, and the modules before it.
WRITTEN_OUT = {"down_proj": ("gate_proj", "up_proj"), "ff_out": ("ff_in",)}
# Networks whose blocks attend to prompts that do not depend on the timestep.
CONSTANT_PROMPTS = (
    "AllegroTransformer3DModel",
    "HunyuanDiT2DModel",
    "LTXVideoTransformer3DModel",
    "LatteTransformer3DModel",
    "PTDiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SanaTransformer2DModel",
    "SkyReelsV2Transformer3DModel",
    "WanTransformer3DModel",
)


def units_of(model: torch.nn.Module, block: str) -> Iterator[Unit]:
    """The units of one block, in no particular order.

    A module that the block calls twice, once for the picture and once for the prompt, is left out and always runs.
    """
    children = dict(model.get_submodule(block).named_children())
    if "proj_mlp" in children and "proj_out" in children:
        attention = [name for name in children if name in SELF_ATTENTION]
        skipped = tuple(f"{block}.{name}" for name in (*attention, "proj_mlp"))
        yield Unit("parallel", Branch((f"{block}.proj_out",), skipped))
        return
    shared = called_twice(type(model.get_submodule(block)).forward)
    for name in children:
        if (kind := _kind(name, children)) is not None and name not in shared:
            before = tuple(f"{block}.{other}" for other in WRITTEN_OUT.get(name, ()))
            yield Unit(kind, Branch((f"{block}.{name}",), before))


def conditioning_only(model: torch.nn.Module, cross_attention: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the projections of the prompt to keys and values, where these do not depend on the timestep."""
    return key_values(model, cross_attention) if is_one_of(model, CONSTANT_PROMPTS) else ()


def _kind(name: str, children: dict[str, torch.nn.Module]) -> str | None:
    """What a child of a block is."""
    second = name == "attn2" and "attn" in children  # some blocks of Stable Diffusion 3.5 have two self-attentions
    if name in SELF_ATTENTION or second:
        return "self_attention"
    if name in CROSS_ATTENTION:
        return "cross_attention"
    return "feed_forward" if name in FEED_FORWARD or name in WRITTEN_OUT else None
