"""UNets made of down blocks, a middle block and up blocks, joined by skip connections; for pictures and for video.

Blocks count from the output end: block 0 is the one at full resolution, and layer 0 of an up block is the last to run.
The branch at (block, layer) keeps everything shallower and skips the rest, down to the bottom and up again to the layer
before (arXiv 2312.00858, figure 3): its boundary is the last module to run among those skipped.
"""

from dataclasses import dataclass

import torch

from diffaccel.config.words import with_article
from diffaccel.networks.attention import attentions, key_values
from diffaccel.networks.inputs import Inputs
from diffaccel.networks.layout import Layout, Level, UnsupportedModelError, fingerprint_of
from diffaccel.networks.tokens import joins_pictures, within_pictures
from diffaccel.reuse.branch import Branch

CLASSES = (
    "I2VGenXLUNet",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNet3DConditionModel",
    "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
)
LAYER_LISTS = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")  # as a layer runs them
UNITS = ("attn1", "attn2", "ff")


@dataclass(frozen=True)
class UNetBlock:
    """One down or up block: its name, the modules of each layer in order, and its down- or upsamplers."""

    name: str
    layers: tuple[tuple[str, ...], ...]
    samplers: tuple[str, ...]


def layout(model: torch.nn.Module) -> Layout:
    """The parts of a UNet."""
    down = blocks_of(model, "down_blocks", "downsamplers")
    up = blocks_of(model, "up_blocks", "upsamplers")[::-1]
    middle = ("mid_block",) if getattr(model, "mid_block", None) is not None else ()
    entry = tuple(name for name in ("conv_in", "transformer_in") if hasattr(model, name))
    own, cross = attentions(model)
    return Layout(
        model=type(model).__name__,
        depths=_depths(down, middle, up),
        levels=_levels(model, down, middle, up),
        encoder=Branch((*entry, *(block.name for block in down), *middle)),
        self_attention=own,
        picture_attention=() if joins_pictures(model) else within_pictures(own),
        cross_attention=cross,
        conditioning_only=key_values(model, cross),
        conditioning_path=("encoder_hid_proj",) if getattr(model, "encoder_hid_proj", None) is not None else (),
        fingerprint=fingerprint_of(model),
        writes=lambda inputs: _writes(model, inputs),
    )


def _depths(down: list[UNetBlock], middle: tuple[str, ...], up: list[UNetBlock]) -> tuple[Branch, ...]:
    """All branches, shallowest first; `up` is ordered like `down`, from the output end."""
    branches = []
    for number, block in enumerate(up):
        for layer in range(len(block.layers)):
            modules = below(down, number, _read(down[number], block, layer))
            modules += middle
            modules += [deeper.name for deeper in reversed(up[number + 1 :])]
            modules += [name for names in block.layers[: len(block.layers) - 1 - layer] for name in names]
            if modules:
                branches.append(Branch(replayed=(modules[-1],), skipped=tuple(modules[:-1])))
    return tuple(branches)


def _read(down: UNetBlock, up: UNetBlock, layer: int) -> int:
    """How many layers of a down block the last layers of its up block read, from (layer) to the output end.

    Each reads one, the last the network's entry; or all of them are one short of it, and the first reads the last one.
    """
    if len(up.layers) > len(down.layers):
        return layer
    return len(down.layers) if layer == len(up.layers) - 1 else 0


def below(down: list[UNetBlock], number: int, layer: int) -> list[str]:
    """Modules of the down blocks from (number, layer) on; a block that is skipped whole is named as one."""
    deeper = [block.name for block in down[number + 1 :]]
    if layer == 0:
        return [down[number].name, *deeper]
    rest = [name for names in down[number].layers[layer:] for name in names]
    return [*rest, *down[number].samplers, *deeper]


def _levels(
    model: torch.nn.Module, down: list[UNetBlock], middle: tuple[str, ...], up: list[UNetBlock]
) -> tuple[Level, ...]:
    """Parts at each resolution, and the middle as the deepest level."""
    levels = []
    for one, other in zip(down, up, strict=True):
        layers = [name for block in (one, other) for names in block.layers for name in names]
        levels.append(Level((one.name, other.name), tuple(layers), _units(model, (one.name, other.name))))
    if middle:
        children = dict(model.get_submodule(middle[0]).named_children())
        lists = [kind for kind in LAYER_LISTS if kind in children]
        layers = [
            f"{middle[0]}.{kind}.{i}"
            for kind in lists
            for i in range(len(_items(model.get_submodule(middle[0]), kind)))
        ]
        levels.append(Level(middle, tuple(layers), _units(model, middle)))
    return tuple(levels)


def _units(model: torch.nn.Module, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Attentions and feed-forward networks within some blocks."""
    names = [f"{block}.{name}" for block in blocks for name, _ in model.get_submodule(block).named_modules()]
    return tuple(name for name in names if name.rpartition(".")[2] in UNITS)


def blocks_of(model: torch.nn.Module, list_name: str, samplers: str) -> list[UNetBlock]:
    """The blocks in the module list called `list_name`."""
    blocks = model.get_submodule(list_name).children()
    return [_block(f"{list_name}.{i}", block, samplers) for i, block in enumerate(blocks)]


def _block(name: str, block: torch.nn.Module, samplers: str) -> UNetBlock:
    """The layers of one block."""
    count = len(_items(block, "resnets"))
    lists = [kind for kind in LAYER_LISTS if _items(block, kind)]
    uneven = [kind for kind in lists if len(_items(block, kind)) != count]
    if uneven or hasattr(block, "skip_conv"):
        raise UnsupportedModelError(
            f"{name} is {with_article(type(block).__name__)}, whose layers are not one after the other: networks with "
            "such blocks are not supported"
        )
    layers = tuple(tuple(f"{name}.{kind}.{i}" for kind in lists) for i in range(count))
    return UNetBlock(name, layers, tuple(f"{name}.{samplers}.{i}" for i in range(len(_items(block, samplers)))))


def _items(block: torch.nn.Module, kind: str) -> list[torch.nn.Module | None]:
    """The modules of a list that a block may have."""
    found = getattr(block, kind, None)
    return [] if found is None else [item for item in found if item is not None]


def _writes(model: torch.nn.Module, inputs: Inputs) -> bool:
    """FreeU scales hidden states in place, and so are the residuals of a T2I-Adapter added."""
    if inputs.values.get("down_intrablock_additional_residuals") is not None:
        return True
    return any(getattr(block, "b1", None) is not None for block in model.get_submodule("up_blocks").children())
