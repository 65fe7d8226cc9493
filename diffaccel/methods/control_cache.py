"""ControlCache: a ControlNet runs as deep and as often as its control is worth.

Its residuals change slowly from step to step, as DeepCache (arXiv 2312.00858) finds of the network that they are added
to, and are not equally relevant (RelaCtrl, arXiv 2502.14377, section 3.1). They are made one after the other: leaving
out the last ones saves their layers, computing in every k-th call saves (k - 1) / k of all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from diffaccel.config import kind, stored
from diffaccel.config.checks import check, whole
from diffaccel.methods.base import Method, RefreshPlan
from diffaccel.methods.companions import embedding
from diffaccel.methods.control_relevance import Relevance
from diffaccel.networks.layout import Layout
from diffaccel.reuse.forecast import Forecast
from diffaccel.runtime.act import Part


@dataclass(frozen=True)
class ControlCache(Method):
    """Compute a ControlNet's residuals in every few calls, the deep ones more rarely if told, and the last ones never.

    A residual is computed at the first call that reads it after `interval` calls. Residuals that the denoiser does not
    read, as in DeepCache's calls between, wait until it does. A new control image, prompt or run computes; scales act
    on what is stored, too. Stores each residual that is kept, before its scale. Embeds a control image once, as long
    as it stays the same.

    Args:
        interval: calls from one that computes to the next, >= 1, where 1 reuses nothing; or two, for shallow and for
            deep residuals, the second a multiple of the first.
        keep: how many residuals are kept, from the shallowest; the layers behind them never run. None keeps those that
            `relevance` finds worth it, or all.
        split: the first deep residual, where `interval` has two values; None has as many shallow as deep ones.
        forecast: carries stored residuals forward, such as `Taylor(1)`; None replays them unchanged.
        relevance: what `diffaccel relevance` measured on this ControlNet, or the path of its file.
        net: index of the ControlNet that this is for among several; None for each.
    """

    needs_controlnet: ClassVar[bool] = True

    interval: int | tuple[int, int] = 2
    keep: int | None = None
    split: int | None = None
    forecast: Forecast | None = None
    relevance: str | Relevance | None = None
    net: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_interval()
        for name, value, least in (("keep", self.keep, 1), ("split", self.split, 1), ("net", self.net, 0)):
            whole(name, value, least, optional=True)
        check(self.split is None or len(self.intervals) == 2, "split needs two intervals, as interval=(2, 4)")
        kind("forecast", self.forecast, Forecast)
        stored(self, "relevance", Relevance, "the path of a file that diffaccel relevance wrote", optional=True)

    def _check_interval(self) -> None:
        if isinstance(self.interval, list | tuple):
            object.__setattr__(self, "interval", tuple(self.interval))
            check(len(self.intervals) == 2, f"interval must be one number, or two; got {self.interval!r}")
        for value in self.intervals:
            whole("interval", value, 1)
        check(
            self.intervals[-1] % self.intervals[0] == 0,
            f"the second interval must be a multiple of the first, as deep residuals are made from shallow ones; got "
            f"{self.interval!r}",
        )

    @property
    def intervals(self) -> tuple[int, ...]:
        """One or two intervals."""
        return self.interval if isinstance(self.interval, tuple) else (self.interval,)

    def parts(self, layout: Layout) -> list[Part]:  # noqa: ARG002
        """None: the denoiser computes as it does without."""
        return []

    def written_out(self) -> Self:
        """The same with what was measured itself in place of its file."""
        return self if self.relevance is None else replace(self, relevance=Relevance.read(self.relevance))

    def require_nets(self, count: int) -> None:
        """Raise ValueError where there is no ControlNet of the index `net`."""
        whole(f"net of a pipeline with {count} different ControlNets", self.net, 0, count - 1, optional=True)

    def companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:
        """The embedding of a control image that stays the same."""
        return [(embedding(layout), None)]

    def refresh(self, companion: Layout, index: int) -> RefreshPlan | None:
        """An interval for each residual that is kept."""
        if self.net not in (None, index):
            return None
        count = len(companion.residuals)
        kept = self._kept(companion)
        whole(f"keep of {companion.model}, which has {count} residuals", kept, 1, count)
        if len(self.intervals) == 1 or kept == 1:
            return RefreshPlan(self.intervals[:1] * kept, self.forecast)
        split = kept // 2 if self.split is None else self.split
        whole("split with keep=" + str(kept), split, 1, kept - 1)
        shallow, deep = self.intervals
        return RefreshPlan((shallow,) * split + (deep,) * (kept - split), self.forecast)

    def _kept(self, companion: Layout) -> int:
        if self.relevance is None:
            return len(companion.residuals) if self.keep is None else self.keep
        measured = Relevance.read(self.relevance)
        measured.require_of(companion)
        return measured.worth() if self.keep is None else self.keep
