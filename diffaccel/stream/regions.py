"""Prompts for parts of a picture: each has rows of its own, whose predictions are composed under masks.

As in MultiDiffusion (arXiv 2302.08113, Eq. 5), whose mean of predictions each mask weighs, with one noise for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from diffaccel.config.checks import check
from diffaccel.networks.conditioning import Conditioning
from diffaccel.stream.images import Picture, picture_size
from diffaccel.stream.masks import unit_masks


@dataclass(frozen=True, eq=False)
class Region:
    """A prompt for a part of the picture. Compared by identity.

    Args:
        prompt: as a stream's.
        mask: white where it counts, of the size of the stream's pictures; forms as those of a frame's mask. Where masks
            overlap, prompts count alike, and where there is none, the stream's own prompt counts.
    """

    prompt: str | Mapping[str, float] | Sequence[tuple[str, float]]
    mask: Picture = field(repr=False)

    def small_mask(self, height: int, width: int, latent_size: tuple[int, int]) -> torch.Tensor:
        """The mask in the size of latents, ``(1, 1, h, w)``.

        Raises:
            TypeError, ValueError: for what is no mask, one of another size than height and width, and one whose white
                is too small for latents.
        """
        mask = unit_masks(self.mask)
        found = picture_size(mask)
        if found != (height, width) or len(mask) != 1:
            raise ValueError(
                f"the mask of the region {self.prompt!r} is {found[1]} x {found[0]} pixels, and the stream's pictures "
                f"are {width} x {height}: give one mask of that size"
            )
        white = (mask.mean(1, keepdim=True) >= 0.5).float()
        small = F.interpolate(white, latent_size)
        check(
            bool(small.any()) or not bool(white.any()),
            f"the mask of the region {self.prompt!r} has too little white for latents of {latent_size[1]} x "
            f"{latent_size[0]}, which show none of it: make it larger",
        )
        return small


@dataclass(frozen=True, eq=False)
class RegionPrompt:
    """What the network is told of a region, and where it counts, ``(1, 1, h, w)``."""

    positive: Conditioning
    mask: torch.Tensor


def composed(own: torch.Tensor, others: Sequence[torch.Tensor], regions: Sequence[RegionPrompt]) -> torch.Tensor:
    """A prediction ``(frames, C, h, w)`` out of that under the stream's own prompt and those of its regions."""
    masks = [region.mask.to(own) for region in regions]
    total: Any = sum(masks)
    summed: Any = sum(mask * other for mask, other in zip(masks, others, strict=True))
    result: torch.Tensor = torch.where(total > 0, summed / total.clamp_min(1), own)
    return result
