"""ControlNets: the down path of a UNet once more, whose outputs are added to the denoiser's skip connections.

On a call in which the denoiser keeps only its layers above a branch, it reads the first residuals alone, and these need
the ControlNet's layers above the same branch alone. At the deepest branch it reads all of them.
"""

import torch

from diffaccel.networks.attention import attentions, key_values
from diffaccel.networks.layout import Layout
from diffaccel.networks.unet import UNetBlock, below, blocks_of
from diffaccel.reuse.branch import Branch

CLASSES = ("ControlNetModel",)


def layout(model: torch.nn.Module) -> Layout:
    """The parts of a ControlNet; its depths correspond to those of the denoiser that it was copied from."""
    down = blocks_of(model, "down_blocks", "downsamplers")
    outputs = [
        f"controlnet_down_blocks.{i}" for i, _ in enumerate(model.get_submodule("controlnet_down_blocks").children())
    ]
    inner = ("conv_in", "controlnet_cond_embedding", *(block.name for block in down), "mid_block")
    return Layout(
        model=type(model).__name__,
        depths=_depths(down, outputs),
        encoder=Branch(replayed=(*outputs, "controlnet_mid_block"), skipped=inner),
        conditioning_only=key_values(model, attentions(model)[1]),
        control=("controlnet_cond_embedding",),
    )


def _depths(down: list[UNetBlock], outputs: list[str]) -> tuple[Branch, ...]:
    """For each branch of the denoiser what is left out; an up block has a layer more than its down block."""
    branches, read = [], 0
    for number, block in enumerate(down):
        for layer in range(len(block.layers) + 1):
            read += 1
            deeper = below(down, number, layer)
            skipped = (*deeper, "mid_block", *outputs[read:], "controlnet_mid_block")
            branches.append(Branch(replayed=(), skipped=skipped))
    branches[-1] = Branch(replayed=(), skipped=())  # the boundary is the middle block, after which a residual is added
    return tuple(branches)
