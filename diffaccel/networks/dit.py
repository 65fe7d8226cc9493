"""Diffusion transformers: one or more lists of blocks that hand their hidden states on, from first to last.

The lists are found by their names and by what their blocks return, so that a transformer of diffusers that is not
named here works, too. What cannot be read off is said here: which lists take turns, and which networks keep rows apart.
"""

import re
from typing import Any

import torch

from diffaccel.networks.block_io import Streams, inputs_of
from diffaccel.networks.dit_units import conditioning_only, units_of
from diffaccel.networks.layout import Layout, Unit, UnsupportedModelError, fingerprint_of, is_one_of
from diffaccel.networks.tokens import PACKED

# Networks whose rows stay apart in all blocks, so that some rows can run without the others. Those that are not here
# may pad prompts to the longest of a batch, or take lists of pictures: all their rows compute, or none.
ROWS_APART = (
    "AllegroTransformer3DModel",
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "CogView3PlusTransformer2DModel",
    "CogView4Transformer2DModel",
    "DiTTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "HunyuanDiT2DModel",
    "LTXVideoTransformer3DModel",
    "LatteTransformer3DModel",
    "LuminaNextDiT2DModel",
    "MochiTransformer3DModel",
    "PTDiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "SkyReelsV2Transformer3DModel",
    "WanTransformer3DModel",
)
CLASSES = (
    *ROWS_APART,
    "HunyuanVideoTransformer3DModel",
    "Lumina2Transformer2DModel",
    "ZImageTransformer2DModel",
)
OTHERS = "and other diffusers transformers made of lists of blocks"

# Lists that take turns: one block of the first, one of the second, and so on.
IN_TURNS = {"LatteTransformer3DModel": ("transformer_blocks", "temporal_transformer_blocks")}
LONG_SKIPS = ("HunyuanDiT2DModel",)
# Networks whose self-attentions read the tokens of one picture; a prompt's may come before.
PICTURE_TOKENS = (
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
)
ROTARY = ("FluxTransformer2DModel",)  # and whose queries and keys are turned by position
CHANNELS_LAST = ("Kandinsky5Transformer3DModel",)
LISTS = re.compile(r"(joint_|single_|visual_)?transformer_blocks|(double|single)(_stream)?_blocks|blocks|layers")
TIMESTEPS = ("timestep", "timesteps", "t")
# What the prompt goes through before the blocks.
CONDITIONING_PATH = (
    "caption_norm",
    "caption_projection",
    "condition_embedder.text_embedder",
    "context_embedder",
    "text_embedder",
)


def layout(model: torch.nn.Module) -> Layout:
    """The parts of a diffusion transformer."""
    names = blocks_of(model)
    if not names:
        raise UnsupportedModelError(f"{type(model).__name__} has no list of transformer blocks")
    units = tuple(unit for name in names for unit in units_of(model, name))
    known = all(Streams(model.get_submodule(name)).known for name in names)
    own, cross = (_of_kind(units, kind) for kind in ("self_attention", "cross_attention"))
    pictures, rotary = is_one_of(model, PICTURE_TOKENS), is_one_of(model, ROTARY)
    return Layout(
        model=type(model).__name__,
        self_attention=own,
        picture_attention=_picture_attention(names, own) if pictures or rotary else (),
        rotary=rotary,
        patch=PACKED if rotary else _patch_of(model) if pictures else None,
        cross_attention=cross,
        conditioning_only=conditioning_only(model, cross),
        conditioning_path=tuple(name for name in CONDITIONING_PATH if _has(model, name)),
        blocks=names if known else (),
        rows_apart=is_one_of(model, ROWS_APART),
        long_skips=is_one_of(model, LONG_SKIPS),
        channels_last=is_one_of(model, CHANNELS_LAST),
        units=units,
        fingerprint=fingerprint_of(model),
    )


def discovers(model: object) -> bool:
    """Whether a network is a diffusion transformer: lists of blocks, called with a timestep."""
    if not isinstance(model, torch.nn.Module) or "ControlNet" in type(model).__name__ or not hasattr(model, "config"):
        return False
    timed = any(name in inputs_of(type(model).forward) for name in TIMESTEPS)
    return timed and bool(blocks_of(model))


def blocks_of(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the transformer blocks, in the order in which they run."""
    lists = {
        name: [f"{name}.{i}" for i, _ in enumerate(children.children())]
        for name, children in model.named_children()
        if isinstance(children, torch.nn.ModuleList) and LISTS.fullmatch(name)
    }
    for cls, turns in IN_TURNS.items():
        if is_one_of(model, (cls,)):
            lists = {turns[0]: _in_turns(model, turns)}
    return tuple(name for names in lists.values() for name in names)


def _in_turns(model: torch.nn.Module, lists: tuple[str, ...]) -> list[str]:
    """Names of blocks of several lists, one of each in turn."""
    count = min(len(list(model.get_submodule(name).children())) for name in lists)
    return [f"{name}.{i}" for i in range(count) for name in lists]


def _of_kind(units: tuple[Unit, ...], kind: str) -> tuple[str, ...]:
    """Names of the modules that the units of one kind end with."""
    return tuple(name for unit in units if unit.kind == kind for name in unit.branch.replayed)


def _has(model: torch.nn.Module, name: str) -> bool:
    """Whether a network has a module of this name."""
    return name in dict(model.named_modules())


def _picture_attention(blocks: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    """The self-attentions, those beside a feed-forward network in one projection, too."""
    if own and all(any(name.startswith(f"{block}.") for name in own) for block in blocks):
        return own
    return tuple(f"{block}.attn" for block in blocks)


def _patch_of(model: Any) -> int:
    """Side of a token in the sample."""
    return int(model.config.patch_size)
