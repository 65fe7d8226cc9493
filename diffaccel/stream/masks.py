"""Masks that frames are pushed with: white where they are painted anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from diffaccel.stream.images import PIL_MODES, Fit, Picture, laid_on, picture_size, to_unit_frames


def given_masks(mask: Picture, image: Picture | None, height: int, width: int, fit: Fit) -> torch.Tensor:
    """Masks as they were pushed, ``(frames, 1, height, width)``: 1 from half white on, else 0.

    Args:
        mask: a grey or coloured PIL image; array ``(H, W)`` or as a picture's; tensor ``(H, W)``, ``(1, H, W)`` or
            ``(frames, 1, H, W)``, or as a picture's.
        image: the picture of the same frame; they have the same size.
        height, width, fit: as the picture is fitted.

    Raises:
        TypeError, ValueError: for what is no mask, one without a picture, and one of another size.
    """
    if image is None:
        raise ValueError("a text-to-image frame has no picture to keep outside of a mask: push one, or leave mask out")
    found = unit_masks(mask)
    own, other = tuple(found.shape[-2:]), picture_size(image)
    if own != other:
        raise ValueError(
            f"the mask is {own[1]} x {own[0]} pixels and its picture {other[1]} x {other[0]}: give a mask of the "
            "picture's size"
        )
    fitted = to_unit_frames(found, height, width, fit)
    return (fitted.mean(1, keepdim=True) >= 0.5).float()


def unit_masks(mask: Picture) -> torch.Tensor:
    """Masks in their own size, ``(frames, 3, H, W)`` in [0, 1]. Raises TypeError or ValueError for what is no mask."""
    try:
        coloured = _coloured(mask)
        found = to_unit_frames(coloured, *picture_size(coloured), "stretch")
        if found.device.type == "cpu" and 0 < float(found.max()) < 2 / 255:
            raise ValueError("it has 1 of 255 where it is lightest, so that nothing is white: give it as booleans")
    except (TypeError, ValueError) as error:
        raise type(error)(f"the mask cannot be used: {error}") from error
    return found


def _coloured(mask: Any) -> Any:
    """A mask with the channels of a picture."""
    if isinstance(mask, Image.Image):
        return laid_on(mask, "black") if mask.mode in PIL_MODES else mask  # what is transparent is kept
    if isinstance(mask, np.ndarray):
        array = mask.astype(np.float32) if mask.dtype == bool else mask
        return np.repeat(array[..., None], 3, -1) if array.ndim == 2 else array
    if isinstance(mask, torch.Tensor):
        tensor = mask.float() if mask.dtype == torch.bool else mask
        tensor = tensor[None] if tensor.ndim == 2 else tensor
        if tensor.ndim in (3, 4) and tensor.shape[-3] == 1:
            tensor = tensor.expand(*tensor.shape[:-3], 3, *tensor.shape[-2:])
        return tensor
    return mask
