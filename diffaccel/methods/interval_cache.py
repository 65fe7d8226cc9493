"""FORA (arXiv 2407.01425): attentions and feed-forward networks of a transformer change slowly; reuse their outputs."""

from dataclasses import dataclass
from typing import ClassVar

from diffaccel.config import kind
from diffaccel.config.checks import whole
from diffaccel.config.words import NOT_TOLD
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout, joined
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.schedule import CallInfo, Schedule, length_of
from diffaccel.runtime.act import Part
from diffaccel.runtime.replay_act import Replay


@dataclass(frozen=True)
class IntervalCache(Method):
    """Compute the attention and the feed-forward network of every layer now and then, and replay them otherwise.

    Norms, modulations and gates run in every call, so the timestep acts on replayed features, too. Computes call i iff
    i mod interval = 0, or it is the last one (section 3.2 of the paper). Stores the output of each attention and each
    feed-forward network.

    Args:
        interval: compute in every `interval`-th call, unless `schedule` says otherwise; 1 reuses nothing.
        total: network calls of a run, to know the last one; None takes it from the pipeline.
        schedule: when to compute, instead of every `interval`-th call and the last one.
        forecast: carries the stored outputs forward, such as `Taylor(1)`; None replays them unchanged.
    """

    interval: int = 3
    total: int | None = None
    schedule: Schedule | None = None
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("interval", self.interval, 1)
        whole("total", self.total, 1, optional=True)
        kind("schedule", self.schedule, Schedule)
        kind("forecast", self.forecast, Forecast)

    def parts(self, layout: Layout) -> list[Part]:
        """One part: all attentions and feed-forward networks."""
        layout.require("IntervalCache", "units")
        when = self.schedule or _AtIntervalsAndLast(self.interval, self.total)
        return [Part(Replay(joined(layout.units)), when, self.forecast)]


@dataclass(frozen=True)
class _AtIntervalsAndLast(Schedule):
    """Compute every `interval`-th call, and the last one."""

    counts_run: ClassVar[bool] = True

    interval: int
    total: int | None

    def should_compute(self, call: CallInfo) -> bool:
        """True for calls 0, interval, 2 * interval, ..., and the last."""
        total = self.total if self.total is not None else call.total
        return call.index % self.interval == 0 or (total is not None and call.index == total - 1)

    def validate(self, total: int | None) -> None:
        """Raise ValueError if the last call is not known, or another one than was given."""
        if length_of(self.total, total, "IntervalCache") is None:
            raise ValueError(
                f"IntervalCache computes the last of the network calls of a run, the number of {NOT_TOLD}: give "
                "IntervalCache(..., total=50), or schedule=Uniform(3) to do without, or pass the pipeline to "
                "accelerate()"
            )
