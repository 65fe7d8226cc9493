"""First-block and dual-block caches: if the first blocks add what they added before, so will the others."""

from dataclasses import dataclass

from diffaccel.config import kind
from diffaccel.config.checks import flag, number, whole
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.residual import Ranges
from diffaccel.reuse.row_schedule import RowSchedule
from diffaccel.runtime.act import Part
from diffaccel.runtime.residual_act import AddResidual


@dataclass(frozen=True)
class BlockCache(Method):
    """Run the first and the last blocks of a transformer always, and the ones between only where something changed.

    With r the residual of the front blocks, r = front(h) - h, a row of the batch reuses the residual of the middle
    blocks iff mean|r - r_prev| <= threshold * mean|r_prev|, where r_prev is from the row's last computed call. `back=0`
    is the first-block cache (ParaAttention), `back > 0` the dual-block cache (cache-dit); both build on TeaCache (arXiv
    2411.19108). In networks whose rows do not stay apart, all rows are measured together, and all compute or none. The
    decision waits for the device once per call. Stores two residuals of hidden states per row, of which one is the
    front's.

    Args:
        front: first blocks, which always run and are measured; at most the length of the first list of blocks.
        back: last blocks, which always run.
        threshold: relative change up to which a row reuses; 0.05 to 0.2 is usual, 0 reuses only what did not change.
        max_consecutive: at most this many reused calls of a row between two computed ones; None sets no limit.
        forecast: carries the stored residual forward, such as `Taylor(1)`, or `Aligned()`, which goes by how far the
            front residual has gone; None adds it unchanged.
        per_row: whether each row decides for itself where the network keeps rows apart. False measures all rows
            together: the blocks then see batches of one size only, where for compiled blocks every number of rows that
            compute alone is one more graph.
    """

    front: int = 1
    back: int = 0
    threshold: float = 0.08
    max_consecutive: int | None = None
    forecast: Forecast | None = None
    per_row: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("front", self.front, 1)
        whole("back", self.back, 0)
        number("threshold", self.threshold, 0.0)
        whole("max_consecutive", self.max_consecutive, 0, optional=True)
        kind("forecast", self.forecast, Forecast)
        flag("per_row", self.per_row)

    def parts(self, layout: Layout) -> list[Part]:
        """One part: the middle blocks, measured by the front ones."""
        layout.require("BlockCache", "blocks")
        blocks = layout.blocks
        first = sum(name.rpartition(".")[0] == blocks[0].rpartition(".")[0] for name in blocks)
        whole(f"front of {layout.model}", self.front, 1, min(first, len(blocks) - 1))
        whole(f"back of {layout.model} with front={self.front}", self.back, 0, len(blocks) - self.front - 1)
        middle = Ranges((blocks[self.front : len(blocks) - self.back],), each=layout.long_skips)
        act = AddResidual(middle, blocks[: self.front], rows_apart=self.per_row and layout.rows_apart)
        return [Part(act, _Change(self.threshold, self.max_consecutive), self.forecast)]


@dataclass(frozen=True)
class _Change(RowSchedule):
    """A row computes where the front residual moved too far, or after enough reused calls."""

    threshold: float
    max_consecutive: int | None
