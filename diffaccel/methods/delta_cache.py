"""Delta-DiT (arXiv 2406.01125): rear blocks add detail and front blocks outlines; skip those that are not at work."""

from dataclasses import dataclass
from typing import ClassVar

from diffaccel.config import kind
from diffaccel.config.checks import whole
from diffaccel.methods.base import Method, Unread
from diffaccel.methods.companions import hidden_in
from diffaccel.networks.layout import Layout
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.residual import Ranges, gate_of
from diffaccel.reuse.schedule import CallInfo, Schedule
from diffaccel.runtime.act import Part
from diffaccel.runtime.residual_act import AddResidual


@dataclass(frozen=True)
class DeltaCache(Method):
    """Skip a range of blocks, and add what it added in the last computed call: rear blocks early, front blocks late.

    Outlines form early in a run and details late, so the rear blocks are skipped before the gate and the front blocks
    from it on (section 4 of the paper). The offset h_out - h_in over the range is stored, not h_out, so that the input
    of the call still reaches the output. Stores one offset of the hidden states;
    in networks with long skip connections, such as HunyuanDiT, one for each block of the range.

    Args:
        interval: every `interval`-th call computes, and the one at the gate; 1 reuses nothing.
        blocks: blocks in the range; None is half of them.
        gate: first call in which front blocks are skipped, >= 1; None is the middle of the run.
        forecast: carries the stored offset forward, such as `Taylor(1)`; None adds it unchanged.
    """

    interval: int = 2
    blocks: int | None = None
    gate: int | None = None
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("interval", self.interval, 1)
        for name, value in (("blocks", self.blocks), ("gate", self.gate)):
            whole(name, value, 1, optional=True)
        kind("forecast", self.forecast, Forecast)

    def parts(self, layout: Layout) -> list[Part]:
        """One part: the two ranges."""
        ranges = self._ranges(layout)
        return [Part(AddResidual(ranges), _AtIntervalsAndGate(self.interval, self.gate), self.forecast)]

    def _ranges(self, layout: Layout) -> Ranges:
        """The rear blocks, and from the gate on the front ones."""
        layout.require("DeltaCache", "blocks")
        names = layout.blocks
        count = max(1, len(names) // 2) if self.blocks is None else self.blocks
        whole(f"blocks of {layout.model}", count, 1, len(names))
        return Ranges((names[-count:], names[:count]), self.gate, layout.long_skips)

    def unread(self, companion: Layout, denoiser: Layout) -> list[Unread]:
        """What is added behind skipped blocks other than the last of a range: it is in the offset, as it was."""
        ranges = self._ranges(denoiser)
        return [Unread(hidden_in(ranges, i, companion, denoiser), 0, i) for i, _ in enumerate(ranges.ranges)]


@dataclass(frozen=True)
class _AtIntervalsAndGate(Schedule):
    """Compute every `interval`-th call, and the one from which another range is skipped."""

    counts_run: ClassVar[bool] = True

    interval: int
    gate: int | None

    def should_compute(self, call: CallInfo) -> bool:
        """True at the intervals and at the gate."""
        return call.index % self.interval == 0 or call.index == gate_of(self.gate, call.total)

    def validate(self, total: int | None) -> None:
        """Raise ValueError if the gate is unknown, or beyond the run."""
        gate_of(self.gate, total)
