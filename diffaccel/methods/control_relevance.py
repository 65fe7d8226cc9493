"""What each residual of a ControlNet is worth, as measured: what the picture and the control lose without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from diffaccel.config import Config, StoredConfig
from diffaccel.config.checks import check
from diffaccel.networks.layout import Layout

LOSS = 0.02  # of edge agreement, from 0 to 1, that dropping the last residuals may cost


@dataclass(frozen=True)
class Loss(Config):
    """Pictures that were painted without something, beside those painted with it.

    Args:
        name: of what was left out, or of the first thing from which on all was.
        psnr: mean PSNR to the pictures with it, dB; equal pictures count as 100.
        ssim: mean SSIM to them.
        agreement: mean edge agreement with the control images, from 0 to 1 (`diffaccel.measure.edges`).
    """

    name: str
    psnr: float
    ssim: float
    agreement: float


@dataclass(frozen=True)
class Relevance(StoredConfig):
    """Measured relevance of the residuals of one ControlNet, or of the blocks of an adapter.

    Args:
        model: class of the ControlNet.
        fingerprint: of its configuration.
        agreement: mean edge agreement of pictures with all residuals.
        without: agreement of pictures without any control.
        each: for each residual, in order, pictures without it alone.
        cuts: for each residual but the first, pictures without it and all behind it.
        blocks: for each block of a transformer, pictures without it and what it adds; empty for UNets and adapters.
        settings: of the runs, as name and value.
    """

    _origin: ClassVar[str] = "a file that diffaccel relevance wrote"

    model: str
    fingerprint: str
    agreement: float
    without: float
    each: tuple[Loss, ...]
    cuts: tuple[Loss, ...] = ()
    blocks: tuple[Loss, ...] = ()
    settings: tuple[tuple[str, int | float | str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("each", "cuts", "blocks", "settings"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check(len(self.each) > 0, "each must have at least one residual")
        losses = (*self.each, *self.cuts, *self.blocks)
        check(all(isinstance(one, Loss) for one in losses), "each, cuts and blocks must be losses")

    @property
    def scores(self) -> tuple[float, ...]:
        """Control relevance score of each, from 0 to 1 (RelaCtrl, arXiv 2502.14377, section 3.1).

        The mean of two ranks scaled to 0..1: by what the picture loses (PSNR here, where the paper has FID) and by what
        the control loses (edge agreement here, where the paper has the Hausdorff distance). Equal losses share a rank.
        """
        return scores_of(self.each)

    def worth(self, loss: float = LOSS) -> int:
        """The fewest residuals, from the shallowest, that lose no more than `loss` of the agreement."""
        enough = [i + 1 for i, cut in enumerate(self.cuts) if cut.agreement >= self.agreement - loss]
        return min(enough, default=len(self.each))

    def require_of(self, layout: Layout) -> None:
        """Raise ValueError if it was measured on another network."""
        if (self.model, self.fingerprint, len(self.each)) != (layout.model, layout.fingerprint, len(layout.residuals)):
            raise ValueError(
                f"this relevance was measured on another network: {self.model} {self.fingerprint} with "
                f"{len(self.each)} residuals, and this is {layout.model} {layout.fingerprint} with "
                f"{len(layout.residuals)}: measure it on this one with diffaccel relevance"
            )


def scores_of(losses: Sequence[Loss]) -> tuple[float, ...]:
    """Control relevance scores of some parts, by their losses."""
    picture, control = _ranks([-one.psnr for one in losses]), _ranks([-one.agreement for one in losses])
    return tuple((p + c) / 2 for p, c in zip(picture, control, strict=True))


def _ranks(losses: list[float]) -> list[float]:
    """Ranks of losses, the least first, as 0..1; all 0 where there is no difference."""
    ordered = sorted(set(losses))
    return [ordered.index(value) / max(1, len(ordered) - 1) for value in losses]
