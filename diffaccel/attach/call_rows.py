"""What each network call of a run computed, cost and measured: the rows of a report's drawing and page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffaccel.attach.cost import CostModel, UncountableError
from diffaccel.attach.seat import Seat
from diffaccel.runtime.call import Measured
from diffaccel.runtime.tally import Tally
from diffaccel.runtime.trace import CallTrace

COMPUTED, PARTLY, REUSED = "computed", "partly", "reused"


@dataclass(frozen=True)
class CallRow:
    """One network call.

    Attributes:
        network: the denoiser's name in the pipeline, or its class.
        run: which run it belongs to, counted from 0 since `accelerate`; None for calls outside of any.
        step: index of the call within its run.
        state: "computed", "reused" or, where some parts or rows computed and others reused, "partly".
        measured: what was measured to decide about it; empty where the decision was known beforehand.
        macs: multiply-accumulates; None where they cannot be counted.
        macs_plain: those of the same call that computes everything.
    """

    network: str
    run: int | None
    step: int | None
    state: str
    measured: tuple[Measured, ...]
    macs: int | None
    macs_plain: int | None

    @property
    def share(self) -> float:
        """Cost as a fraction of a call that computes everything; where it is not known, 1 or 0 by the state."""
        if self.macs is None or not self.macs_plain:
            return {COMPUTED: 1.0, PARTLY: 0.5, REUSED: 0.0}[self.state]
        return self.macs / self.macs_plain

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        values = {item.name: {"values": list(item.values), "limit": item.limit} for item in self.measured}
        return {**vars(self), "measured": values}


def call_rows(costs: Sequence[CostModel], seats: Sequence[Seat], tallies: Sequence[Tally]) -> list[CallRow]:
    """The last calls of some networks, each given by the cost of its calls, by its seat and by its tally."""
    return [
        _row(seat.label, call, cost)
        for seat, tally, cost in zip(seats, tallies, map(_counted, costs, tallies), strict=True)
        for call in tally.tracer.calls
    ]


def _counted(cost: CostModel, tally: Tally) -> CostModel | None:
    """The cost of a network's calls, counted; None if it cannot be."""
    try:
        cost.macs(tally)
    except UncountableError:
        return None
    return cost


def _row(network: str, call: CallTrace, cost: CostModel | None) -> CallRow:
    """One call."""
    macs, plain = (None, None) if cost is None else cost.of(call)
    return CallRow(network, call.run, call.step, _state(call), call.measured, macs, plain)


def _state(call: CallTrace) -> str:
    """Whether all, some or no part computed for all rows."""
    computes = [computes for kind in call.kinds for computes in kind.computes]
    if call.kinds and all(computes) and all(kind.shapes == call.shapes for kind in call.kinds):
        return COMPUTED
    some = any(computes) or (bool(call.kinds) and not computes)  # of rows, where methods work on whole calls
    return PARTLY if some else REUSED
