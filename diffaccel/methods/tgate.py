"""T-GATE (arXiv 2404.02747): cross-attention settles early, so from a gate step on it is replayed, without guidance."""

from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.config.checks import check, whole
from diffaccel.methods.base import Method
from diffaccel.networks.inputs import Inputs
from diffaccel.networks.layout import Layout, UnsupportedModelError
from diffaccel.reuse.branch import Branch, Part, mean_of_halves
from diffaccel.reuse.schedule import CallInfo, Schedule
from diffaccel.runtime.host import Host
from diffaccel.runtime.run_clock import RunClock
from diffaccel.runtime.state import Context
from diffaccel.runtime.wrapper import Network, Wrapper, map_output, positive_rows


@dataclass(frozen=True)
class TGate(Method):
    """Plan semantics first, then improve fidelity: two phases, with attention reused differently in each.

    Before the gate the prompt is attended to in every call, and self-attention is computed in every `self_interval`-th
    one. At the gate, the mean of negative and positive cross-attention outputs is kept and replayed to the end;
    guidance stops, so that half the rows remain, and self-attention is computed in every `fidelity_interval`-th call.

    Args:
        gate: network call from which cross-attention is replayed, >= 1; at the end of the run it never is.
        self_interval: self-attention before the gate computes where the call is a multiple of this.
        fidelity_interval: the same from the gate on.
        warmup: the first calls of a run compute all self-attention.
    """

    gate: int = 10
    self_interval: int = 5
    fidelity_interval: int = 1
    warmup: int = 2

    def __post_init__(self) -> None:
        whole("gate", self.gate, 1)
        whole("self_interval", self.self_interval, 1)
        whole("fidelity_interval", self.fidelity_interval, 1)
        whole("warmup", self.warmup, 0)

    def parts(self, layout: Layout) -> list[Part]:
        """Two parts: cross-attention and self-attention."""
        if not layout.cross_attention:
            raise UnsupportedModelError(f"TGate needs cross-attention to a prompt; {layout.model} has none")
        own = _SelfAttention(self.gate, self.self_interval, self.fidelity_interval, self.warmup)
        cross = Part(Branch(layout.cross_attention), _BeforeGate(self.gate), halve=mean_of_halves)
        return [cross, Part(Branch(layout.self_attention), own)] if layout.self_attention else [cross]

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """Drops the negative rows from the gate on."""
        return _Gate(self.gate)


@dataclass(frozen=True)
class _BeforeGate(Schedule):
    """Cross-attention computes before the gate."""

    gate: int

    def should_compute(self, call: CallInfo) -> bool:
        """True before the gate."""
        return call.index < self.gate


@dataclass(frozen=True)
class _SelfAttention(Schedule):
    """Self-attention computes at intervals, after a warm-up."""

    gate: int
    interval: int
    fidelity_interval: int
    warmup: int

    def should_compute(self, call: CallInfo) -> bool:
        """True in the warm-up, and at the interval of the phase."""
        interval = self.interval if call.index < self.gate else self.fidelity_interval
        return call.index < self.warmup or call.index % interval == 0


class _Gate(Wrapper):
    """Runs the positive rows alone from the gate on, and returns them for both halves: guidance has no effect then."""

    order = 1

    def __init__(self, gate: int) -> None:
        self.gate = gate

    def start_run(self, clock: RunClock) -> None:
        """Refuse a gate beyond the end of the run."""
        total = clock.total
        fits = total is None or self.gate <= total
        check(fits, f"gate must be <= {total}, the network calls of the run; got {self.gate}")

    def around(self, context: Context, network: Network, inputs: Inputs) -> Any:
        """One network call."""
        if context.step < self.gate or not inputs.guided:
            return network(inputs)
        return map_output(lambda x: torch.cat([x, x]), network(positive_rows(context, inputs)))
