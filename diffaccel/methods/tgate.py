"""T-GATE (arXiv 2404.02747): cross-attention settles early, so from a gate step on it is replayed, without guidance."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from diffaccel.config.checks import check, whole
from diffaccel.config.words import A_CACHE
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout
from diffaccel.reuse.branch import Branch
from diffaccel.reuse.ends import Ends
from diffaccel.reuse.schedule import CallInfo, Schedule
from diffaccel.runtime.act import Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.host import Host
from diffaccel.runtime.lanes import gather
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.replay_act import Replay
from diffaccel.runtime.run import Run
from diffaccel.runtime.wrapper import Inner, Wrapper


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
        warmup: the first calls of a run compute everything, also where the gate comes before their end.
    """

    gate: int = 10
    self_interval: int = 5
    fidelity_interval: int = 1
    warmup: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("gate", self.gate, 1)
        whole("self_interval", self.self_interval, 1)
        whole("fidelity_interval", self.fidelity_interval, 1)

    def parts(self, layout: Layout) -> list[Part]:
        """Two parts: cross-attention and self-attention."""
        layout.require("TGate", "cross_attention")
        own = _SelfAttention(self.gate, self.self_interval, self.fidelity_interval)
        cross = Part(Replay(Branch(layout.cross_attention)), _BeforeGate(self.gate), merge=mean_of_pair)
        return [cross, Part(Replay(Branch(layout.self_attention)), own)] if layout.self_attention else [cross]

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """Drops the negative rows from the gate on."""
        return _Gate(self.gate, self.ends, layout.conditioning_path)


@dataclass(frozen=True)
class _BeforeGate(Schedule):
    """Cross-attention computes before the gate."""

    gate: int

    def should_compute(self, call: CallInfo) -> bool:
        """True before the gate."""
        return call.index < self.gate


@dataclass(frozen=True)
class _SelfAttention(Schedule):
    """Self-attention computes at intervals."""

    gate: int
    interval: int
    fidelity_interval: int

    def should_compute(self, call: CallInfo) -> bool:
        """True at the interval of the phase."""
        interval = self.interval if call.index < self.gate else self.fidelity_interval
        return call.index % interval == 0


class _Gate(Wrapper):
    """From the gate on, runs the positive rows alone and answers with them for the negative ones, too.

    So guidance has no effect then. Where guidance makes two calls, the negative one returns what the positive one of
    the same step did, whose cross-attention replays the mean of both, as in one call.
    """

    order = 1
    reads_roles: ClassVar[bool] = True

    def __init__(self, gate: int, ends: Ends, path: tuple[str, ...]) -> None:
        self.gate, self.ends, self.relies_from, self.path = gate, ends, gate, path

    def start_run(self, run: Run, total: int | None) -> None:  # noqa: ARG002
        """Refuse a gate beyond the end of the run."""
        fits = total is None or self.gate <= total
        check(fits, f"gate must be <= {total}, the network calls of the run; got {self.gate}")

    def around(self, call: Call, memory: Memory, network: Inner) -> Any:
        """One network call."""
        check(
            call.inputs.gives_prompt(self.path),
            "TGate keeps what attention to a prompt gave, and this network is given none (encoder_hidden_states is "
            f"None), as AudioLDM's is: use a method that does not need one, such as {A_CACHE}",
        )
        if call.run is not None and not call.roles and call.step == 0 and call.inputs.rows > 1:
            check(not call.run.host.hides_guidance, call.run.host.not_told)
        positive, negative = call.rows_of("positive"), call.rows_of("negative")
        after = call.step is not None and call.step >= self.gate
        after = after and not self.ends.computes(call.step, call.total)
        if positive and negative:
            if not after:
                return network(call)
            rows = range(len(positive))
            return gather(network(call.positive()), [*rows, *rows], len(rows))  # whichever half comes first
        if negative and not after:
            memory.notes[self, "negative", call.view] = call.lanes["run"]
        if not after or not call.roles:
            return network(call)
        if negative:
            step, output = memory.notes.get((self, "positive", call.view), (None, None))
            check(
                step == call.step,
                "TGate answers a call with the negative prompt by that with the positive one, and this pipeline makes "
                f"the negative one first: use a method that does not drop guidance, such as {A_CACHE}",
            )
            return output
        output = network(replace(call, partners=memory.notes.get((self, "negative", call.view), ())))
        memory.notes[self, "positive", call.view] = call.step, output
        return output


def mean_of_pair(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """The mean of what the two prompts gave."""
    return (negative + positive) / 2
