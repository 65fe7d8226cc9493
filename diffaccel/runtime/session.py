"""The one machine that decides and reuses: a session runs the calls of one network, whoever makes them.

A customer hands over a `Call`, the `Memory` of its run or stream, and a function that runs the network. The session
decides for each group of rows, splits the call where groups decide differently, prepares what the hooks will read, and
commits what was stored once the network has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import record_function

from diffaccel.networks import layout_of
from diffaccel.networks.inputs import Inputs
from diffaccel.runtime.act import Part, PartState, Place
from diffaccel.runtime.call import Call, Disturbed
from diffaccel.runtime.lanes import gather, scatter
from diffaccel.runtime.memory import Decision, Memory
from diffaccel.runtime.tally import Tally

RunNetwork = Callable[[Call], Any]


@dataclass(frozen=True)
class Tie:
    """What a part of a ControlNet does not decide by itself.

    Attributes:
        leaders: parts of the denoiser, each with a way of its act: where one of them reuses in that way, nothing reads
            what this part makes, and it does not compute.
        needs: parts of the same network that compute where this one does, as it works on what they make.
    """

    leaders: tuple[tuple[int, int], ...] = ()
    needs: tuple[int, ...] = ()


class Session:
    """Parts at work on one network.

    Args:
        model: the network.
        parts: what is reused in it, and when.
        leader: the denoiser's session, for a ControlNet that runs before it.
        ties: for each part of a ControlNet what else has a say in its decisions, or None.

    Attributes:
        states: one per part; what its places read.
        tally: calls so far.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parts: Sequence[Part],
        leader: Session | None = None,
        ties: Sequence[Tie | None] = (),
    ) -> None:
        self.parts = tuple(parts)
        self.states = [part.act.state(part) for part in self.parts]
        self.leader = leader
        self.ties = tuple(ties) or (None,) * len(self.parts)
        self.tally = Tally()
        self._writes: Callable[[Inputs], bool] = layout_of(model).writes

    def places(self, model: torch.nn.Module) -> dict[str, list[Place]]:
        """What happens at each module, by its name; where several parts are at one, in their order.

        Those that share a module with others come last, within them: what is replayed there is what left them.
        """
        found: dict[str, list[Place]] = {}
        for state in sorted(self.states, key=lambda state: not state.part.act.exclusive):
            for name, place in state.part.act.places(state, model):
                found.setdefault(name, []).append(place)
        return found

    def run(self, call: Call, memory: Memory, network: RunNetwork, led_by: Memory | None = None) -> Any:
        """One call.

        Args:
            call: what to run.
            memory: of this run or stream.
            network: runs the network on a call.
            led_by: the denoiser's memory of the same run, for a ControlNet.
        """
        decisions = self._decisions(call, memory, led_by)
        vectors: dict[tuple[Decision, tuple[int, ...]], list[int]] = {}
        for row, lane in enumerate(call.lanes["run"]):
            vectors.setdefault((decisions[lane.group], self._variants(call, row)), []).append(row)
        try:
            outputs = [
                (self._together(call.select(rows), memory, network, decision), rows)
                for (decision, _), rows in vectors.items()
            ]
        finally:
            memory.decided.clear()
        return outputs[0][0] if len(outputs) == 1 else scatter(outputs)

    def _variants(self, call: Call, row: int) -> tuple[int, ...]:
        """Which way each act works for a row, where rows are at different places of their runs."""
        if not call.places:
            return ()
        return tuple(part.act.variant(*call.places[row]) for part in self.parts)

    def _decisions(self, call: Call, memory: Memory, led_by: Memory | None) -> dict[Hashable, Decision]:
        """What computes, by group."""
        decided = memory.decide(call)
        for group, decision in decided.items():
            memory.require_fed(call.step, group, (part for part, computes in enumerate(decision) if computes))
        if not any(self.ties):
            return decided
        lead = {} if led_by is None else led_by.decide(call)
        reusing = {group: self._reusing(lead.get(group, ()), call) for group in decided}
        tied = {group: self._tied(decision, reusing[group]) for group, decision in decided.items()}
        if led_by is not None and self.leader is not None:
            unfed = {group: frozenset(self._unfed(tied[group], reusing[group])) for group in tied}
            led_by.unfed[self] = call.step, unfed
        return tied

    def _reusing(self, lead: Decision, call: Call) -> set[tuple[int, int]]:
        """The denoiser's parts that reuse, each with the way of its act."""
        parts = () if self.leader is None else self.leader.parts
        ways = [part.act.variant(*call.place(0)) for part in parts] or [0] * len(lead)  # type: ignore[arg-type]
        return {(index, ways[index]) for index, computes in enumerate(lead) if not computes}

    def _tied(self, decision: Decision, reusing: set[tuple[int, int]]) -> Decision:
        """A decision with what the denoiser will not read left out, and what others need taken in."""
        pairs = list(zip(decision, self.ties, strict=True))
        read = [computes and (tie is None or reusing.isdisjoint(tie.leaders)) for computes, tie in pairs]
        needed = {
            index for computes, (_, tie) in zip(read, pairs, strict=True) if computes and tie for index in tie.needs
        }
        return tuple(computes or index in needed for index, computes in enumerate(read))

    def _unfed(self, decision: Decision, reusing: set[tuple[int, int]]) -> set[int]:
        """The denoiser's parts that would not find what they read, were they to compute."""
        left_out = [tie for computes, tie in zip(decision, self.ties, strict=True) if tie and not computes]
        return {leader[0] for tie in left_out for leader in reusing.intersection(tie.leaders)}

    def _together(self, call: Call, memory: Memory, network: RunNetwork, decision: Decision) -> Any:
        """A call whose groups decided alike, and after it the rows that must compute where others reused."""
        output = self._once(call, memory, network, decision)
        late = sorted({row for state in self.states for row in state.late})
        if not late:
            return output
        early = [row for row in range(call.count) if row not in late]
        computed = tuple(True if state.late else decided for state, decided in zip(self.states, decision, strict=True))
        again = self._once(call.select(late), memory, network, computed)
        return scatter([(gather(output, early, call.count), early), (again, late)])

    def _once(self, call: Call, memory: Memory, network: RunNetwork, decision: Decision) -> Any:
        """One run of the network."""
        output = self._undisturbed(call, memory, network, decision)
        self.tally.inner(call.inputs, self.states)
        for index, state in enumerate(self.states):
            lanes, kept = call.lanes[state.part.lifetime], memory.parts[index]
            state.commit(kept.lanes)
            kept.drift.commit()
            late = set(state.late)
            kept.aged(tuple(lane for row, lane in enumerate(lanes) if row not in late), computed=state.compute)
        return output

    def _undisturbed(self, call: Call, memory: Memory, network: RunNetwork, decision: Decision) -> Any:
        """The network's output; where other rows broke a call that they shared, everything is prepared once more."""
        writable = self._writes(call.inputs)
        profiled = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        while True:
            for index, state in enumerate(self.states):
                self._prepare(index, state, call, memory, compute=decision[index], writable=writable)
                if state.compute and state.measures is None:  # where something was missing, an act computes after all
                    for group in {lane.group for lane in call.lanes["run"]}:
                        memory.require_fed(call.step, group, (index,))
            try:
                with record_function(self._label()) if profiled else nullcontext():
                    return network(call)
            except Disturbed:
                continue

    def _prepare(
        self, index: int, state: PartState, call: Call, memory: Memory, *, compute: bool, writable: bool
    ) -> None:
        """Point a part's state at what its lanes stored."""
        part, kept = state.part, memory.parts[index].lanes
        own, steps = call.lanes[part.lifetime], memory.steps_of(index, call)
        state.call, state.drift = call, memory.parts[index].drift
        state.drift.begin(own)
        if part.merge is not None and call.partners:
            kept.merge(own, call.partners, part.merge)
        told: dict[str, Any] = {"total": call.place(0)[1], "writable": writable, "spans": call.spans}
        state.prepare(own, kept, compute=compute, steps=steps, inputs=call.inputs, **told)
        if not state.compute:
            state.measures = memory.row_rule(index, call)
            state.compute = state.measures is not None  # until the front blocks have been measured

    def _label(self) -> str:
        """What this call does, as a profiler's trace shows it."""
        replayed = [name for state in self.states if not state.compute for name in state.part.act.modules[-1:]]
        return f"diffaccel: replay {', '.join(replayed)}" if replayed else "diffaccel: compute"
