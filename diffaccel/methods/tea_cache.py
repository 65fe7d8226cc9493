"""TeaCache (arXiv 2411.19108), SeaCache (2602.18993): skip all blocks while changes of the input add up to little."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from diffaccel.config import kind, stored
from diffaccel.config.checks import check, flag, number, whole
from diffaccel.methods.base import Method
from diffaccel.methods.curves import TeaCurve, curve_for, read_curve
from diffaccel.networks.layout import Layout, UnsupportedModelError
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.measure import Measure, RunPlace
from diffaccel.reuse.residual import Ranges
from diffaccel.reuse.row_schedule import RowSchedule
from diffaccel.runtime.act import Part
from diffaccel.runtime.guarded_act import GuardedResidual


@dataclass(frozen=True)
class TeaCache(Method):
    """Skip all blocks while the change of their input, call by call and rescaled, adds up to less than a threshold.

    The input is what the first block's norm makes of hidden states and timestep; a row skips while the sum of
    p(|m_t - m_(t-1)| / |m_(t-1)|) since its last computed call is below the threshold, with a polynomial p that was
    fitted to the output's changes (section 3.3 of the paper), and then adds the residual of that call. With
    `measure=SeaFilter()`, a forecast of order 1 and no polynomial it is SeaCache. Each row decides for itself where the
    network keeps rows apart. The decision waits for the device once per call. Stores a residual and a measured input.

    Args:
        curve: the path of coefficients that `diffaccel.calibrate` wrote, the name of published ones, or a `TeaCurve`;
            None adds up the changes themselves.
        threshold: what may add up; 0.1 to 0.6 is usual, 0 reuses nothing.
        measure: compares the network's own input, such as `SeaFilter()`, in place of the modulated one.
        max_consecutive: at most this many skipped calls of a row in a row; None sets no limit.
        forecast: carries the stored residual forward, such as `Taylor(1)`; None adds it unchanged.
        per_row: whether each row decides for itself where the network keeps rows apart.
    """

    curve: str | TeaCurve | None = None
    threshold: float = 0.15
    measure: Measure | None = None
    max_consecutive: int | None = None
    forecast: Forecast | None = None
    per_row: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        words = "None, a path, the name of published coefficients, or a TeaCurve"
        stored(self, "curve", TeaCurve, words, optional=True)
        number("threshold", self.threshold, 0.0)
        kind("measure", self.measure, Measure)
        check(
            self.measure is None or self.curve is None,
            "curve is fitted to the modulated input, which measure replaces: give one of the two",
        )
        whole("max_consecutive", self.max_consecutive, 0, optional=True)
        kind("forecast", self.forecast, Forecast)
        flag("per_row", self.per_row)

    def written_out(self) -> Self:
        """The same with the curve itself in place of its file."""
        return self if self.curve is None else replace(self, curve=read_curve(self.curve, TeaCurve))

    def parts(self, layout: Layout) -> list[Part]:
        """One part: all blocks, guarded by what enters the first one."""
        layout.require("TeaCache", "blocks")
        coefficients = () if self.curve is None else curve_for(self.curve, TeaCurve, layout).coefficients
        act = GuardedResidual(
            Ranges((layout.blocks,), each=layout.long_skips),
            rows_apart=self.per_row and layout.rows_apart,
            unit="" if self.measure is not None else first_attention(layout),
            measure=self.measure,
        )
        return [Part(act, _AddedUp(self.threshold, coefficients, self.max_consecutive), self.forecast)]


@dataclass(frozen=True)
class _AddedUp(RowSchedule):
    """A row computes where the rescaled changes since it computed last add up, or after enough reused calls."""

    quantity: ClassVar[str] = "change of the input, added up"

    threshold: float
    coefficients: tuple[float, ...]
    max_consecutive: int | None

    def rescaled(self, change: float) -> float:
        """The polynomial's value."""
        if not self.coefficients or change == float("inf"):
            return change
        value = 0.0
        for coefficient in self.coefficients:
            value = value * change + coefficient
        return value

    def is_small(self, change: float, place: RunPlace) -> bool:  # noqa: ARG002
        """Whether the sum is below the threshold; nothing is below 0."""
        return self.threshold > 0.0 and change < self.threshold


def first_attention(layout: Layout) -> str:
    """The attention of the first block, whose input is what its norm makes of hidden states and timestep."""
    inside = f"{layout.blocks[0]}."
    for unit in layout.units:
        if unit.kind == "self_attention" and unit.branch.replayed[0].startswith(inside):
            return unit.branch.replayed[0]
    raise UnsupportedModelError(
        f"TeaCache measures what enters the attention of the first block, and that of {layout.model} is not known by "
        "name: use measure=SeaFilter(), or BlockCache"
    )
