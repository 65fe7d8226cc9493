"""What is remembered during one run of a pipeline, or one stream, on one network; and the decisions made from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from diffaccel.reuse.residual import relative_change
from diffaccel.reuse.schedule import CallInfo
from diffaccel.runtime.act import Lifetime, Part
from diffaccel.runtime.call import Call, Measured
from diffaccel.runtime.drift import Drift
from diffaccel.runtime.lanes import Lane, LaneMemory, Lanes, stored_nbytes

Decision = tuple[bool, ...]
"""For each part whether it computes."""
PROMPTS_KEPT = 4
INPUT_CHANGE = "relative change of the input"


@dataclass
class GroupRecord:
    """What a part remembers of a group of lanes.

    Attributes:
        calls: its calls so far.
        step: index of the last one within the run.
        reference: the sample of the last computed one.
    """

    calls: int = 0
    step: int | None = None
    reference: torch.Tensor | None = None


@dataclass
class PartMemory:
    """What one part remembers.

    Attributes:
        lanes: what is stored.
        ages: for each lane how many calls have reused it since it was computed.
        records: by group.
        drift: what rows gathered since they computed.
    """

    lanes: LaneMemory = field(default_factory=LaneMemory)
    ages: dict[Lane, int] = field(default_factory=dict)
    records: dict[Hashable, GroupRecord] = field(default_factory=dict)
    drift: Drift = field(default_factory=Drift)

    def copy(self) -> PartMemory:
        """The same for calls that shall leave no trace here; tensors are shared."""
        records = {group: replace(record) for group, record in self.records.items()}
        return PartMemory(self.lanes.copy(), dict(self.ages), records, self.drift.copy())

    def aged(self, lanes: Lanes, *, computed: bool) -> None:
        """Count a call."""
        for lane in lanes:
            self.ages[lane] = 0 if computed else self.ages.get(lane, 0) + 1
        if computed:
            self.drift.restart(lanes)

    def keep(self, lanes: Sequence[Lane]) -> None:
        """Forget all but some lanes and their groups."""
        self.lanes.keep(lanes)
        self.drift.keep(lanes)
        kept, groups = set(lanes), {lane.group for lane in lanes}
        self.ages = {lane: age for lane, age in self.ages.items() if lane in kept}
        self.records = {group: record for group, record in self.records.items() if group in groups}


class Memory:
    """The memory of one run or stream on one network.

    Args:
        parts: what is reused.

    Attributes:
        parts: one memory per part.
        notes: what methods that wrap whole calls remember, by method and context.
        rows: what they remember of single rows, by method and lane; an object whose tensors are attributes.
        decided: decisions for the coming call of the network, made early because a ControlNet asked.
        unfed: for each ControlNet the step, and for each group parts of the denoiser that it took to reuse there and
            left out what they read.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        self.notes: dict[Hashable, Any] = {}
        self.rows: dict[Hashable, dict[Lane, Any]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.parts = [PartMemory() for _ in self._parts]
        self.notes.clear()
        self.rows.clear()
        self.decided: dict[Hashable, Decision] = {}
        self.unfed: dict[Hashable, tuple[int | None, dict[Hashable, frozenset[int]]]] = {}

    def require_fed(self, step: int | None, group: Hashable, computed: Iterable[int]) -> None:
        """Raise RuntimeError if parts compute for a group where a ControlNet took them to reuse in this step."""
        told = [parts for when, parts in self.unfed.values() if when == step]
        left_out = {part for parts in told for part in parts.get(group, frozenset().union(*parts.values()))}
        if not left_out.isdisjoint(computed):
            self.decided.clear()
            raise RuntimeError(
                "a ControlNet left out what the denoiser was to replay, and then the denoiser was called with other "
                "prompts or shapes: call Handle.reset() between such calls"
            )

    def forget_runs(self) -> None:
        """Forget what a call that raised may have spoilt: all but videos, which are written when it has returned."""
        kept = self.parts
        self.clear()
        pairs = zip(self._parts, kept, self.parts, strict=True)
        self.parts = [old if part.lifetime == "video" else new for part, old, new in pairs]

    def break_off(self) -> None:
        """Forget what belongs to the run so far, as another network has taken calls since."""
        lasting = [part.lifetime != "run" for part in self._parts]
        self.parts = [old if lasts else PartMemory() for old, lasts in zip(self.parts, lasting, strict=True)]
        self.notes.clear()
        self.rows.clear()

    def keep(self, lanes: Mapping[Lifetime, Lanes]) -> None:
        """Forget all but what some rows may read again; of prompts those that were used last stay."""
        for part, memory in zip(self._parts, self.parts, strict=True):
            wanted = lanes[part.lifetime]
            if part.lifetime == "prompt":
                memory.lanes.touch(wanted)
                wanted = (*wanted, *_latest(memory.lanes.lanes))
            memory.keep(wanted)
        for rows in self.rows.values():
            for lane in rows.keys() - set(lanes["run"]):
                del rows[lane]

    def copied_parts(self) -> list[PartMemory]:
        """What the parts remember now, for `at`."""
        return [part.copy() for part in self.parts]

    @contextmanager
    def at(self, parts: Sequence[PartMemory]) -> Iterator[None]:
        """Within, the parts remember what they did when `copied_parts` was called; calls within leave no trace."""
        before, self.parts = self.parts, [part.copy() for part in parts]
        try:
            yield
        finally:
            self.parts = before
            self.decided.clear()

    def drop(self, lanes: Sequence[Lane]) -> None:
        """Forget features of some lanes."""
        for memory in self.parts:
            memory.lanes.drop(lanes)
            memory.drift.drop(lanes)
        for rows in self.rows.values():
            for lane in lanes:
                rows.pop(lane, None)

    def nbytes(self) -> int:
        """Bytes of the storage that features take, and outputs that stand in for later ones."""
        of_calls = [getattr(note, "__dict__", None) or note for note in self.notes.values()]
        of_rows = [list(vars(row).values()) for rows in self.rows.values() for row in rows.values()]
        drifts = [list(memory.drift.latest.values()) for memory in self.parts]
        return sum(memory.lanes.nbytes() for memory in self.parts) + stored_nbytes([of_calls, of_rows, drifts])

    def decide(self, call: Call) -> dict[Hashable, Decision]:
        """For each group of the call what computes; what was decided early for a ControlNet stays so."""
        rows: dict[Hashable, list[int]] = {}
        for row, lane in enumerate(call.lanes["run"]):
            rows.setdefault(lane.group, []).append(row)
        shared = [not part.of_run for part in self._parts]  # decided for the call as a whole, at the call itself
        whole = {index: self._computes(index, None, call) for index, is_shared in enumerate(shared) if is_shared}
        for group, places in rows.items():
            if group not in self.decided:
                alone = call.select(places)
                self.decided[group] = tuple(
                    is_shared or self._computes(index, group, alone) for index, is_shared in enumerate(shared)
                )
        return {
            group: tuple(whole.get(index, computes) for index, computes in enumerate(self.decided[group]))
            for group in rows
        }

    def _computes(self, index: int, group: Hashable, call: Call) -> bool:
        """Whether a part computes for one group; counts the call."""
        part, memory = self._parts[index], self.parts[index]
        lanes = call.lanes[part.lifetime]
        filled = part.act.slots == 0 or (memory.lanes.has(lanes) and (not part.of_run or self._is_even(index, lanes)))
        may_reuse = filled or part.act.from_first
        begun = may_reuse and group in memory.records
        record = memory.records.setdefault(group, GroupRecord())
        record.calls = record.calls + 1 if begun else 0
        computes = not may_reuse or self._wants(index, call, record, memory.ages.get(lanes[0], 0))
        record.step = call.place(0)[0]
        schedule = part.schedule.for_prompt(negative=call.is_negative)
        if computes and schedule.measures:
            record.reference = schedule.seen(call.inputs.sample, call.noise_levels).detach().clone()
        return computes

    def _is_even(self, index: int, lanes: Lanes) -> bool:
        """Whether lanes that decide together were computed together: those left out of a call have grown stale."""
        steps = self.parts[index].lanes.steps
        return self._parts[index].schedule.decides_rows or len({steps[lane] for lane in lanes}) == 1

    def _wants(self, index: int, call: Call, record: GroupRecord, age: int) -> bool:
        """What the schedule says, or who forces it; a group that was not called when it was due is due now."""
        part = self._parts[index]
        if isinstance(call.forced, tuple):
            return call.forced[index]
        if call.forced is not None and part.of_run:
            return call.forced
        ends, schedule = part.ends, part.schedule.for_prompt(negative=call.is_negative)
        step, total = call.place(0)
        step = record.calls if step is None else step

        def change() -> float:
            found = relative_change(schedule.seen(call.inputs.sample, call.noise_levels), record.reference)
            call.measured.append(Measured(INPUT_CHANGE, (found,), schedule.limit))
            return found

        if record.step is not None and not schedule.measures and not call.places:
            missed = range(record.step + 1, step)
            if any(ends.computes(at, total) or schedule.was_due(CallInfo(at, total)) for at in missed):
                return True
        return ends.computes(step, total) or schedule.should_compute(CallInfo(step, total, change, age))

    def steps_of(self, index: int, call: Call) -> list[int]:
        """Index of a call for a part, for each row: that of its run, or the count of its group."""
        return [self._step_of(index, call, row) for row in range(call.count)]

    def _step_of(self, index: int, call: Call, row: int) -> int:
        step, _ = call.place(row)
        if step is not None:
            return step
        record = self.parts[index].records.get(call.lanes["run"][row].group)
        return 0 if record is None else record.calls

    def row_rule(self, index: int, call: Call) -> Callable[[list[float]], list[bool]] | None:
        """How rows of a call decide in the middle of it; None where they do not."""
        schedule, ages = self._parts[index].schedule, self.parts[index].ages
        if not schedule.decides_rows or call.forced is not None:
            return None
        lanes = call.lanes[self._parts[index].lifetime]

        def rule(changes: list[float]) -> list[bool]:
            call.measured.append(Measured(schedule.quantity, tuple(changes), schedule.limit))
            rows = enumerate(zip(changes, lanes, strict=True))
            return [schedule.row_computes(change, ages.get(lane, 0), call.place(row)) for row, (change, lane) in rows]

        return rule


def _latest(lanes: Sequence[Lane]) -> list[Lane]:
    """Lanes of the groups that were stored or touched last."""
    groups = list(dict.fromkeys(lane.group for lane in lanes))[-PROMPTS_KEPT:]
    return [lane for lane in lanes if lane.group in groups]
