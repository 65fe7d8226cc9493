"""What of a network's input is compared between calls: all of it, or what is signal in it (SeaCache, 2602.18993)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffaccel.config import Config
from diffaccel.config.checks import number

RunPlace = tuple[int | None, int | None]
"""A row's place in its run: index of the call, and how many there are; None where it is not known."""
Levels = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Tells how much signal and how much noise is in a sample, shaped to multiply it."""
NO_BOUND = 1e-6  # how near to no noise, or nothing but noise, the levels are taken to be


class Measure(Config):
    """Base of the ways to look at an input before it is compared."""

    def of(self, sample: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What is compared, in the shape of `sample`.

        Args:
            sample: the network's input, ``(rows, C, ...)``.
            alpha: how much signal is in it, of each row or of all, ``(rows or 1, 1, ...)``.
            sigma: how much noise.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SeaFilter(Measure):
    """The Wiener filter of natural pictures at the call's noise level, so that noise does not count as change.

    On each axis of space and time a frequency f is multiplied by alpha S / (alpha^2 S + sigma^2) with S = |f|^-power,
    and the product of the axes is divided by its mean (SeaCache, arXiv 2602.18993, equations 5 to 7; for flow matching
    alpha = 1 - sigma). Needs latents that are laid out in space, and the noise level, which a pipeline's scheduler
    tells.

    Args:
        power: how fast the power of pictures falls with the frequency, > 0; the paper has 3.
    """

    power: float = 3.0

    def __post_init__(self) -> None:
        number("power", self.power, 0.1, 10.0)

    def of(self, sample: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The filtered sample, ``(rows, C, H, W)`` or ``(rows, C, T, H, W)``."""
        if sample.dim() not in (4, 5):
            raise ValueError(
                f"SeaFilter needs latents laid out in space, (rows, C, H, W) or (rows, C, T, H, W); this network takes "
                f"{tuple(sample.shape)}: leave the measure out"
            )
        axes = tuple(range(2, sample.dim()))
        gain = self._gain(sample, alpha.float(), sigma.float(), axes)
        spectrum = torch.fft.fftn(sample.float(), dim=axes)
        filtered: torch.Tensor = torch.fft.ifftn(spectrum * gain, dim=axes).real.to(sample.dtype)
        return filtered

    def _gain(
        self, sample: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, axes: tuple[int, ...]
    ) -> torch.Tensor:
        """The gain of each frequency, ``(rows or 1, 1, [T,] H, W)``, of mean one."""
        alpha, sigma = (x.clamp(NO_BOUND, 1 - NO_BOUND) for x in (alpha, sigma))
        gain = torch.ones_like(alpha)
        for axis in axes:
            frequency = torch.fft.fftfreq(sample.shape[axis], device=sample.device).abs()
            power = 1 / (frequency**self.power + 1e-16)
            power = power.reshape([-1 if other == axis else 1 for other in range(sample.dim())])
            gain = gain * (alpha * power / (alpha**2 * power + sigma**2))
        return gain / gain.mean(dim=axes, keepdim=True)
