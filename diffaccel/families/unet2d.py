"""UNets made of down blocks, a middle block and up blocks, joined by skip connections.

Blocks count from the output end: block 0 is the one at full resolution, and layer 0 of an up block is the last to run.
The branch at (block, layer) keeps everything shallower and skips the rest, down to the bottom and up again to the layer
before (arXiv 2312.00858, figure 3): its boundary is the last module to run among those skipped.
"""

from dataclasses import dataclass

import torch

from diffaccel.branch import Branch
from diffaccel.families.layout import Layout, UnsupportedModelError
from diffaccel.signature import Inputs

LAYER_LISTS = ("resnets", "attentions", "motion_modules")  # in the order in which a layer runs them


@dataclass(frozen=True)
class _Block:
    """One down or up block: its name, the modules of each layer in order, and its down- or upsamplers."""

    name: str
    layers: tuple[tuple[str, ...], ...]
    samplers: tuple[str, ...]


def layout(model: torch.nn.Module) -> Layout:
    """The parts of a UNet."""
    down = _blocks(model, "down_blocks", "downsamplers")
    up = _blocks(model, "up_blocks", "upsamplers")
    middle = ("mid_block",) if getattr(model, "mid_block", None) is not None else ()
    return Layout(
        model=type(model).__name__,
        depths=_depths(down, middle, up[::-1]),
        writes=lambda inputs: _writes(model, inputs),
    )


def _depths(down: list[_Block], middle: tuple[str, ...], up: list[_Block]) -> tuple[Branch, ...]:
    """All branches, shallowest first; `up` is ordered like `down`, from the output end."""
    branches = []
    for number, block in enumerate(up):
        for layer in range(len(block.layers)):
            modules = _below(down[number], layer)
            modules += [deeper.name for deeper in down[number + 1 :]]
            modules += middle
            modules += [deeper.name for deeper in reversed(up[number + 1 :])]
            modules += [name for names in block.layers[: len(block.layers) - 1 - layer] for name in names]
            if modules:
                branches.append(Branch(replayed=(modules[-1],), skipped=tuple(modules[:-1])))
    return tuple(branches)


def _below(block: _Block, layer: int) -> list[str]:
    """Modules of a down block from `layer` on: the block as a whole if that is all of it."""
    if layer == 0:
        return [block.name]
    return [*(name for names in block.layers[layer:] for name in names), *block.samplers]


def _blocks(model: torch.nn.Module, list_name: str, samplers: str) -> list[_Block]:
    """The blocks in the module list called `list_name`."""
    blocks = model.get_submodule(list_name).children()
    return [_block(f"{list_name}.{i}", block, samplers) for i, block in enumerate(blocks)]


def _block(name: str, block: torch.nn.Module, samplers: str) -> _Block:
    """The layers of one block."""
    count = len(_items(block, "resnets"))
    lists = [kind for kind in LAYER_LISTS if _items(block, kind)]
    for kind in lists:
        if len(_items(block, kind)) != count:
            raise UnsupportedModelError(
                f"{name} ({type(block).__name__}) has {count} resnets but {len(_items(block, kind))} {kind}: "
                "its layers cannot be told apart"
            )
    layers = tuple(tuple(f"{name}.{kind}.{i}" for kind in lists) for i in range(count))
    return _Block(name, layers, tuple(f"{name}.{samplers}.{i}" for i in range(len(_items(block, samplers)))))


def _items(block: torch.nn.Module, kind: str) -> list[torch.nn.Module | None]:
    """The modules of a list that a block may have."""
    found = getattr(block, kind, None)
    return [] if found is None else list(found)


def _writes(model: torch.nn.Module, inputs: Inputs) -> bool:
    """FreeU scales hidden states in place, and so are the residuals of a T2I-Adapter added."""
    if inputs.values.get("down_intrablock_additional_residuals") is not None:
        return True
    return any(getattr(block, "b1", None) is not None for block in model.get_submodule("up_blocks").children())
