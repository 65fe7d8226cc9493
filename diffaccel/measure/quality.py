"""How far pictures are from those of the plain pipeline at the same seeds: PSNR, SSIM and MS-SSIM.

All take pictures as (n, 3, height, width) in [0, 1] and answer for each picture; SSIM and MS-SSIM are torchmetrics'.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from diffaccel.config.checks import check

CEILING = 100.0  # dB; what equal pictures count as in a mean
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of the scales (Wang, Simoncelli and Bovik 2003)
WINDOW = 11
TOGETHER = 16  # pictures that are measured together


@dataclass(frozen=True)
class Quality:
    """Likeness to reference pictures.

    Attributes:
        psnr: mean over pictures of the peak signal-to-noise ratio in dB; equal pictures count as 100 dB.
        worst: the lowest PSNR of any picture.
        ssim: mean structural similarity, at most 1.
        ms_ssim: mean multi-scale structural similarity, at most 1.
    """

    psnr: float
    worst: float
    ssim: float
    ms_ssim: float


def compare(pictures: Any, reference: Any) -> Quality:
    """How like pictures are to reference pictures.

    Args:
        pictures, reference: tensors (n, 3, height, width) in [0, 1], or as many pictures of PIL, in equal order.

    Raises:
        ValueError: if their shapes differ, there is none, or they are smaller than SSIM's window of 11 pixels.
    """
    one, other = _pair(pictures, reference)
    decibels = psnr(one, other)
    return Quality(
        psnr=float(decibels.mean()),
        worst=float(decibels.min()),
        ssim=float(ssim(one, other).mean()),
        ms_ssim=float(ms_ssim(one, other).mean()),
    )


def psnr(pictures: Any, reference: Any) -> torch.Tensor:
    """-10 log10 of the mean squared error of each picture in dB, (n,); at most 100, which equal pictures have."""
    error = _each(lambda one, other: (one - other).square().flatten(1).mean(dim=1), pictures, reference)
    return (-10 * error.clamp_min(10 ** (-CEILING / 10)).log10()).to(torch.float32)


def ssim(pictures: Any, reference: Any, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Structural similarity of each picture, (n,), with a Gaussian window of 11 pixels (Wang et al. 2004).

    In torch.float32 it takes a tenth of the time on a CPU, and may be off by 0.0006 where pictures are flat.
    """

    def similar(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        _require_size(one)
        found = structural_similarity_index_measure(one.to(dtype), other.to(dtype), data_range=1.0, reduction="none")
        assert isinstance(found, torch.Tensor)
        return found.reshape(-1)

    return _each(similar, pictures, reference)


def ms_ssim(pictures: Any, reference: Any) -> torch.Tensor:
    """Multi-scale structural similarity of each picture, (n,).

    Uses as many of the five scales as pictures of this size allow, four at 128 pixels, their weights divided by their
    sum; values of different numbers of scales do not compare.
    """

    def similar(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        _require_size(one)
        found: torch.Tensor = multiscale_structural_similarity_index_measure(
            one, other, data_range=1.0, betas=betas(min(one.shape[-2:])), normalize="relu", reduction="none"
        )
        return found.reshape(-1)

    return _each(similar, pictures, reference)


def betas(pixels: int) -> tuple[float, ...]:
    """Weights of the scales at which pictures of so many pixels are still larger than the window."""
    scales = max(1, sum(pixels > (WINDOW - 1) * 2**scale for scale in range(len(BETAS))))
    total = sum(BETAS[:scales])
    return tuple(beta / total for beta in BETAS[:scales])


def as_tensor(pictures: Any) -> torch.Tensor:
    """Pictures as a tensor (n, 3, height, width) in [0, 1] on the CPU: from a tensor, or a sequence of PIL's."""
    if isinstance(pictures, torch.Tensor):
        return pictures.detach().to("cpu", torch.float32)
    check(isinstance(pictures, Sequence) and len(pictures) > 0, f"expected pictures; got {pictures!r}")
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()  # (n, 3, height, width)


def _pair(pictures: Any, reference: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors of one shape."""
    one, other = as_tensor(pictures), as_tensor(reference)
    check(one.shape == other.shape, f"pictures {tuple(one.shape)} and reference {tuple(other.shape)} differ in shape")
    check(one.dim() == 4 and len(one) > 0, f"pictures must be (n, channels, height, width); got {tuple(one.shape)}")
    return one, other


def _each(measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], pictures: Any, reference: Any) -> torch.Tensor:
    """A measure of each picture in double precision, (n,); of some at a time, as it takes many times their memory."""
    pairs = zip(*(torch.split(part, TOGETHER) for part in _pair(pictures, reference)), strict=True)
    return torch.cat([measure(one.double(), other.double()) for one, other in pairs])


def _require_size(pictures: torch.Tensor) -> None:
    """Refuse pictures smaller than the window."""
    size = min(pictures.shape[-2:])
    check(size >= WINDOW, f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels; got {size}")
