"""Tokens on the grid of a picture: which self-attentions read them, and how the grid follows from the sample."""

import re
from collections.abc import Sequence
from math import isqrt

import torch

from diffaccel.networks.inputs import Inputs
from diffaccel.reuse.tokens import TokenGrid

# Attentions between frames, whose tokens are moments.
BETWEEN_FRAMES = re.compile(r"temp|motion|transformer_in")
PACKED = 2  # side of the squares of a sample that its owner packs into tokens
DEPTHS = (1, 2, 4, 8, 16)  # by which a U-shaped network makes its sample smaller


def within_pictures(attentions: Sequence[str]) -> tuple[str, ...]:
    """Those of some attentions that do not look from frame to frame."""
    return tuple(name for name in attentions if not BETWEEN_FRAMES.search(name))


def joins_pictures(model: torch.nn.Module) -> bool:
    """Whether a network was trained to let pixels of a frame attend to those of others, as its configuration says."""
    return bool(getattr(getattr(model, "config", None), "joint_self_attention", False))


def picture_size(inputs: Inputs) -> tuple[int, int] | None:
    """Height and width of the sample; None where it is no picture."""
    sample, ids = inputs.sample, inputs.values.get("img_ids")
    if isinstance(sample, torch.Tensor) and sample.dim() > 3:
        return sample.shape[-2], sample.shape[-1]
    return packed_size(ids) if isinstance(ids, torch.Tensor) and ids.dim() == 2 else None


def packed_size(ids: torch.Tensor) -> tuple[int, int] | None:
    """Height and width of a sample that was packed into tokens, by their positions, ``(tokens, 3)``.

    None where these are not of one picture, row by row. Without values, the most nearly square size of as many tokens.
    """
    if ids.device.type == "meta":
        width = next(n for n in range(isqrt(len(ids)), len(ids) + 1) if len(ids) % n == 0)
        return len(ids) // width * PACKED, width * PACKED
    positions = ids[:, 1:].cpu()
    height, width = (int(size) + 1 for size in positions.amax(0).tolist())
    if height * width != len(ids):
        return None
    grid = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    return (height * PACKED, width * PACKED) if torch.equal(positions, grid.to(positions.dtype)) else None


def token_grid(size: tuple[int, int], tokens: int, patch: int | None) -> TokenGrid | None:
    """The grid of the picture's tokens among those of an attention.

    Args:
        size: height and width of the sample.
        tokens: of the attention; those of a prompt may stand before the picture's.
        patch: side of a token in the sample; None for a U-shaped network, where the number of tokens tells the depth.

    Returns:
        None where these tokens are no picture of that size.
    """
    if patch is not None:
        grid = TokenGrid(size[0] // patch, size[1] // patch)
        return grid if grid.tokens <= tokens else None
    grids = (TokenGrid(-(-size[0] // depth), -(-size[1] // depth)) for depth in DEPTHS)
    return next((grid for grid in grids if grid.tokens == tokens), None)
