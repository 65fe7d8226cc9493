"""ControlNets: networks that run before the denoiser, and whose residuals are added within it.

Residuals come in the order in which their layers run, each from what the layers before it made: to leave out the last
ones saves their layers, to leave out another saves its projection alone. A denoiser that replays some of its modules
does not read the residuals that are added within them.
"""

from collections.abc import Sequence

import torch

from diffaccel.networks.attention import attentions, key_values
from diffaccel.networks.layout import Layout, Reader, fingerprint_of, joined_branches
from diffaccel.networks.unet import UNetBlock, blocks_of
from diffaccel.reuse.branch import Branch

CLASSES = ("ControlNetModel",)
TRANSFORMERS = (
    "FluxControlNetModel",
    "HunyuanDiT2DControlNetModel",
    "QwenImageControlNetModel",
    "SD3ControlNetModel",
    "SanaControlNetModel",
)
# Lists of blocks, and of the projections of what each made to a residual.
LISTS = (("blocks", "controlnet_blocks"), ("transformer_blocks", "controlnet_blocks"))
SINGLE = ("single_transformer_blocks", "controlnet_single_blocks")


def layout(model: torch.nn.Module) -> Layout:
    """The parts of a UNet's ControlNet; its depths correspond to those of the denoiser that it was copied from."""
    down = blocks_of(model, "down_blocks", "downsamplers")
    residuals = _residuals(down, len(list(model.get_submodule("controlnet_down_blocks").children())))
    inner = ("conv_in", "controlnet_cond_embedding", *(block.name for block in down), "mid_block")
    return Layout(
        model=type(model).__name__,
        depths=_depths(residuals),
        encoder=Branch(replayed=tuple(name for r in residuals for name in r.replayed), skipped=inner),
        conditioning_only=key_values(model, attentions(model)[1]),
        control=("controlnet_cond_embedding",),
        residuals=residuals,
        fingerprint=fingerprint_of(model),
    )


def _residuals(down: list[UNetBlock], outputs: int) -> tuple[Branch, ...]:
    """One after the first convolution, one after each layer and each downsampler, and one after the middle block."""
    layers: list[tuple[str, ...]] = [("conv_in",)]
    for block in down:
        layers += [*block.layers, *((name,) for name in block.samplers)]
    projections = [f"controlnet_down_blocks.{i}" for i in range(outputs)]
    pairs = [*zip(layers, projections, strict=True), (("mid_block",), "controlnet_mid_block")]
    return tuple(Branch(replayed=(output,), skipped=inner) for inner, output in pairs)


def _depths(residuals: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """For each branch of the denoiser what is not read. It keeps one layer more than the branch before it, and reads
    one residual more; at the deepest branch the boundary is the middle block, after which the last one is added."""
    branches = [joined_branches(residuals[read:]) for read in range(1, len(residuals) - 1)]
    unread = [Branch(replayed=(), skipped=branch.modules) for branch in branches]
    return (*unread, Branch(replayed=(), skipped=()))


def transformer_layout(model: torch.nn.Module) -> Layout:
    """The parts of a transformer's ControlNet."""
    lists = [pair for pair in (*LISTS, SINGLE) if all(hasattr(model, name) for name in pair)]
    counts = [len(list(model.get_submodule(blocks).children())) for blocks, _ in lists]
    residuals = tuple(
        Branch(replayed=(f"{outputs}.{i}",), skipped=(f"{blocks}.{i}",))
        for (blocks, outputs), count in zip(lists, counts, strict=True)
        for i in range(count)
    )
    repeats = getattr(model, "input_hint_block", None) is not None
    return Layout(
        model=type(model).__name__,
        residuals=residuals,
        readers=lambda denoiser: _readers(type(model).__name__, denoiser.blocks, counts, repeats=repeats),
        fingerprint=fingerprint_of(model),
    )


def _readers(model: str, blocks: Sequence[str], counts: Sequence[int], *, repeats: bool) -> tuple[Reader, ...]:
    """For each residual the denoiser's blocks behind which it is added, as diffusers' forwards spread them."""
    if model == "HunyuanDiT2DControlNetModel":  # added to what the rear half is given over long skip connections
        return tuple(Reader(tuple(blocks[::-1][i : i + 1]), before=True) for i in range(counts[0]))
    if model == "SanaControlNetModel":  # behind the second block, the third, ...
        return tuple(Reader(tuple(blocks[i + 1 : i + 2])) for i in range(counts[0]))
    lists = dict.fromkeys(name.rpartition(".")[0] for name in blocks)
    own = [[name for name in blocks if name.rpartition(".")[0] == one] for one in lists]
    if model == "SD3ControlNetModel":  # nothing is added behind the last block
        return _spread(own[0][:-1], counts[0], len(own[0]) / counts[0])
    readers: tuple[Reader, ...] = ()
    for names, count in zip(own, counts, strict=False):
        every = -(-len(names) // count) if count else 1
        found = _spread(names, count, every)
        if repeats and names is own[0]:  # XLabs': in turns, where the pipeline says so
            found = tuple(Reader((*r.blocks, *names[i::count])) for i, r in enumerate(found))
        readers += found
    return readers


def _spread(names: Sequence[str], count: int, every: float) -> tuple[Reader, ...]:
    """Residual i behind the blocks whose index divided by `every` is i."""
    return tuple(Reader(tuple(n for k, n in enumerate(names) if int(k / every) == i)) for i in range(count))
