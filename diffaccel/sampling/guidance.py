"""Guidance as objects: how the conditional prediction and a negative one become the prediction that is used.

Residual classifier-free guidance (RCFG, StreamDiffusion, arXiv 2312.12491, section 3.2) replaces the negative half of
the batch by a *virtual* negative prediction, Eq. 5: ``eps_neg = (x_t - alpha_t z) / sigma_t``, the noise that would
have made ``x_t`` from a clean latent ``z``. Written for clean estimates instead of noises it says that the negative
clean estimate *is* ``z``, so all four guidances are one formula on clean estimates (`combine`), which also holds
where ``alpha_t`` is 0.
"""

# ruff: noqa: ARG002 - subclasses share one signature and need different parts of it

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch

from diffaccel.config import Config
from diffaccel.config.checks import INFINITE, number

NegativeSource = Literal["none", "predicted", "first", "input"]


def combine(
    clean: torch.Tensor,
    negative: torch.Tensor,
    latents: torch.Tensor,
    alpha: torch.Tensor,
    *,
    scale: float,
    delta: float = 1.0,
) -> torch.Tensor:
    """Guided clean estimate; the same as ``eps = delta eps_neg + scale (eps_cond - delta eps_neg)`` in noise space.

    Substituting ``eps = (x_t - alpha_t clean) / sigma_t`` into the noise form (Eq. 6 of the paper) gives
    ``scale clean + delta (1 - scale) negative + (1 - scale) (1 - delta) x_t / alpha_t``.

    Args:
        clean: conditional clean estimate, ``(rows, C, h, w)``.
        negative: clean estimate of the (virtual) negative prediction, same shape.
        latents: noisy latents ``x_t``, same shape.
        alpha: signal level of each row, ``(rows, 1, 1, 1)``; not 0 where ``delta != 1``.
        scale: guidance scale, dimensionless.
        delta: magnitude of the virtual negative prediction, dimensionless.
    """
    guided = scale * clean + delta * (1 - scale) * negative
    remainder = (1 - scale) * (1 - delta)
    return guided if remainder == 0 else guided + remainder * latents / alpha


def virtual_negative(
    latents: torch.Tensor, clean: torch.Tensor, alpha: torch.Tensor | float, sigma: torch.Tensor | float
) -> torch.Tensor:
    """Eq. 5 of StreamDiffusion: the noise that leads from ``clean`` to ``latents`` at level ``(alpha, sigma)``."""
    return (latents - alpha * clean) / sigma


@dataclass(frozen=True)
class Guidance(Config, ABC):
    """Base of the guidance objects; as text, `selfnegative:scale=1.4`.

    ``negative_source`` says where the negative clean estimate comes from: nowhere, the network at every stage
    ("predicted"), the network at a frame's first stage only ("first"), or the frame's own input latent ("input").
    """

    @property
    @abstractmethod
    def negative_source(self) -> NegativeSource:
        """Where the negative clean estimate comes from."""

    @property
    def reads_negative_prompt(self) -> bool:
        """Whether a negative prompt changes anything."""
        return self.negative_source in ("predicted", "first")

    @abstractmethod
    def combine(
        self, clean: torch.Tensor, negative: torch.Tensor | None, latents: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """Guided clean estimate of rows that share this guidance; shapes as in `combine`."""

    def check(self, alphas: tuple[float, ...]) -> None:
        """Raise ValueError where this guidance is undefined at one of the signal levels ``alphas``."""
        delta = getattr(self, "delta", 1.0)
        if delta != 1.0 and min(alphas) == 0.0:
            raise ValueError(
                f"delta={delta} is undefined at a stage of pure noise (alpha = 0): use delta=1, or start later"
            )


@dataclass(frozen=True)
class NoGuidance(Guidance):
    """The conditional prediction as it is: one network row per stage."""

    @property
    def negative_source(self) -> NegativeSource:
        """No negative prediction."""
        return "none"

    def combine(
        self,
        clean: torch.Tensor,
        negative: torch.Tensor | None,
        latents: torch.Tensor,
        alpha: torch.Tensor,
    ) -> torch.Tensor:
        """Return ``clean``."""
        return clean


@dataclass(frozen=True)
class FullGuidance(Guidance):
    """Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): two network rows per stage.

    Args:
        scale: guidance scale; 1 is the conditional prediction alone.

    Raises:
        ValueError: where ``scale`` is not finite.
    """

    scale: float = 1.5

    def __post_init__(self) -> None:
        number("scale", self.scale, -INFINITE)

    @property
    def negative_source(self) -> NegativeSource:
        """The network, except at scale 1 where the negative prediction cancels."""
        return "none" if self.scale == 1 else "predicted"

    def combine(
        self, clean: torch.Tensor, negative: torch.Tensor | None, latents: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """``negative + scale (clean - negative)``."""
        return clean if negative is None else combine(clean, negative, latents, alpha, scale=self.scale)


@dataclass(frozen=True)
class _Residual(Guidance):
    """Residual classifier-free guidance.

    Args:
        scale: guidance scale; 1 is the conditional prediction alone.
        delta: magnitude of the virtual negative prediction; other than 1 only where no stage is pure noise.
    """

    scale: float = 1.2
    delta: float = 1.0

    def __post_init__(self) -> None:
        number("scale", self.scale, -INFINITE)
        number("delta", self.delta, -INFINITE)

    def combine(
        self, clean: torch.Tensor, negative: torch.Tensor | None, latents: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """Eq. 6 of the paper, on clean estimates.

        Raises:
            ValueError: where there is no negative estimate.
        """
        if negative is None:
            raise ValueError(f"{type(self).__name__} needs a negative clean estimate")
        return combine(clean, negative, latents, alpha, scale=self.scale, delta=self.delta)


@dataclass(frozen=True)
class SelfNegative(_Residual):
    """Self-negative RCFG: pushes away from the input picture; one network row per stage.

    The clean latent of Eq. 5 is the frame's own input, so it needs image-to-image.
    """

    @property
    def negative_source(self) -> NegativeSource:
        """The frame's input latent."""
        return "input"


@dataclass(frozen=True)
class OneTimeNegative(_Residual):
    """One-time-negative RCFG: the negative prompt is seen once per frame; ``N + 1`` network rows for ``N`` stages.

    The clean latent of Eq. 5 is the clean estimate under the negative prompt at the frame's first stage.
    """

    @property
    def negative_source(self) -> NegativeSource:
        """The network, at a frame's first stage."""
        return "first"
