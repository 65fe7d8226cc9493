"""MagCache (arXiv 2506.09045): how the magnitude of the residual falls through a run says when to reuse it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

from diffaccel.config import kind, stored
from diffaccel.config.checks import number, whole
from diffaccel.methods.base import Method
from diffaccel.methods.curves import MagCurve, curve_for, read_curve
from diffaccel.networks.layout import Layout
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.residual import Ranges
from diffaccel.reuse.schedule import RunSchedule
from diffaccel.runtime.act import Part
from diffaccel.runtime.residual_act import AddResidual


@dataclass(frozen=True)
class MagCache(Method):
    """Skip all blocks while the residual's magnitude, by its calibrated curve, stays near that of the stored one.

    With gamma_t the mean ratio of the residual's norm at call t to that at t - 1, call t adds the stored residual while
    the sum of |1 - prod gamma| over the calls since the last computed one is at most the threshold (section 3.3 of the
    paper). All is known before the run starts, so that nothing waits for the device. Stores one residual of the hidden
    states; in networks with long skip connections one for each block.

    Args:
        curve: the path of a curve that `diffaccel.calibrate` wrote, the name of a published one, or a `MagCurve`. Taken
            to other numbers of calls by the nearest entry, as in the authors' code.
        threshold: error that may add up; 0.06 to 0.24 is usual, 0 reuses only where the curve is flat.
        max_consecutive: at most this many skipped calls in a row.
        retention: share of the run at whose start all calls compute, 0..1.
        total: network calls of a run; None takes it from the pipeline.
        forecast: carries the stored residual forward, such as `Taylor(1)`; None adds it unchanged.
    """

    curve: str | MagCurve
    threshold: float = 0.06
    max_consecutive: int = 3
    retention: float = 0.2
    total: int | None = None
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        stored(self, "curve", MagCurve, "a path, the name of a published curve, or a MagCurve")
        number("threshold", self.threshold, 0.0)
        whole("max_consecutive", self.max_consecutive, 0)
        number("retention", self.retention, 0.0, 1.0)
        whole("total", self.total, 1, optional=True)
        kind("forecast", self.forecast, Forecast)

    def written_out(self) -> Self:
        """The same with the curve itself in place of its file."""
        return replace(self, curve=read_curve(self.curve, MagCurve))

    def parts(self, layout: Layout) -> list[Part]:
        """One part: all blocks."""
        layout.require("MagCache", "blocks")
        curve = curve_for(self.curve, MagCurve, layout)
        when = _AlongCurve(
            curve.ratios,
            self.threshold,
            self.max_consecutive,
            self.retention,
            self.total,
            self.warmup,
            self.cooldown,
        )
        return [Part(AddResidual(Ranges((layout.blocks,), each=layout.long_skips)), when, self.forecast)]


@dataclass(frozen=True)
class _AlongCurve(RunSchedule):
    """Compute where the error along the curve has added up."""

    asker: ClassVar[str] = "MagCache"

    ratios: tuple[float, ...]
    threshold: float
    max_consecutive: int
    retention: float
    total: int | None
    warmup: int
    cooldown: int

    def steps_of(self, total: int) -> Sequence[int]:
        """See `mag_steps`."""
        start = max(self.warmup, int(self.retention * total + 0.5))
        ratios = nearest(self.ratios, total)
        return mag_steps(ratios, self.threshold, self.max_consecutive, start, total - self.cooldown)


@lru_cache(maxsize=64)
def mag_steps(ratios: tuple[float, ...], threshold: float, most: int, start: int, end: int) -> tuple[int, ...]:
    """Calls that compute in a run of as many calls as ratios: all before `start` and from `end` on, and call 0."""
    computed, product, error, skipped = [], 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        if start <= step < end:
            product, skipped = product * ratio, skipped + 1
            error += abs(1 - product)
            if step > 0 and error <= threshold and skipped <= most:
                continue
        computed.append(step)
        product, error, skipped = 1.0, 0.0, 0
    return tuple(computed)


def nearest(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    """`count` values, each the nearest of `values` on an even grid over the run."""
    if count == 1:
        return values[-1:]
    return tuple(values[round(i * (len(values) - 1) / (count - 1))] for i in range(count))
