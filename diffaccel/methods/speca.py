"""SpeCa (arXiv 2509.11628): forecast, then check the forecast against one block that really ran."""

from dataclasses import dataclass
from typing import ClassVar

from diffaccel.config import kind
from diffaccel.config.checks import check, flag, number, whole
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout, UnsupportedModelError
from diffaccel.reuse.forecast import Forecast, Taylor
from diffaccel.reuse.measure import RunPlace
from diffaccel.reuse.residual import Ranges
from diffaccel.reuse.row_schedule import RowSchedule
from diffaccel.runtime.act import Part
from diffaccel.runtime.guarded_act import GuardedResidual

ORDER_1 = Taylor(1)


@dataclass(frozen=True)
class SpeCa(Method):
    """Forecast what all blocks but the last add, run the last one, and compute the next call where that one was missed.

    In a call that reuses, the last block runs on forecast hidden states; e = ||r - f|| / ||r|| of what it really adds
    and the forecast of that is an error measure for each row. A row computes its next call where e > threshold
    decay^progress, with progress from 0 at the start of a run to 1 at its end (section 3.3 of the paper, which decides
    about the same call, and then has to run it a second time). Needs no interval and no calibration. Stores what the
    forecast needs of two residuals. The error is read with the next call, when it has long been there.

    Args:
        threshold: relative error of the last block up to which the next call is forecast; 0 computes it in any case.
        decay: how the threshold shrinks through a run, in 0..1; 1 leaves it as it is, and suits runs of unknown length.
        max_consecutive: at most this many forecast calls of a row in a row.
        forecast: how residuals are carried forward; None leaves them unchanged.
        per_row: whether each row decides for itself where the network keeps rows apart.
    """

    threshold: float = 0.3
    decay: float = 1.0
    max_consecutive: int = 4
    forecast: Forecast | None = ORDER_1
    per_row: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        number("threshold", self.threshold, 0.0)
        number("decay", self.decay, 0.0, 1.0)
        whole("max_consecutive", self.max_consecutive, 0)
        kind("forecast", self.forecast, Forecast)
        flag("per_row", self.per_row)

    def parts(self, layout: Layout) -> list[Part]:
        """One part: all blocks but the last, which is checked."""
        if len(layout.blocks) < 2:
            raise UnsupportedModelError(f"SpeCa needs two transformer blocks or more; {layout.model} has none to check")
        act = GuardedResidual(
            Ranges((layout.blocks[:-1],), each=layout.long_skips),
            rows_apart=self.per_row and layout.rows_apart,
            check=layout.blocks[-1],
        )
        return [Part(act, _Checked(self.threshold, self.max_consecutive, self.decay), self.forecast)]


@dataclass(frozen=True)
class _Checked(RowSchedule):
    """A row computes after a call whose forecast was missed by too much, or after enough of them."""

    quantity: ClassVar[str] = "relative error of the last block's forecast"

    threshold: float
    max_consecutive: int
    decay: float

    def is_small(self, change: float, place: RunPlace) -> bool:
        """Whether the error of the call before was within the threshold, as it is by now; nothing is within 0."""
        step, total = place
        shrunk = self.decay ** (step / total) if step is not None and total else 1.0
        return self.threshold > 0.0 and change <= self.threshold * shrunk

    def validate(self, total: int | None) -> None:
        """Raise ValueError if the progress of the run is needed, and not known."""
        check(
            total is not None or self.decay == 1.0,
            f"decay={self.decay} needs the number of network calls of a run, which is not known here: use decay=1, or "
            "pass the pipeline to accelerate()",
        )
