"""One denoiser at work: finds the context of each network call, lets the schedules decide, and keeps the count."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.profiler import record_function

from diffaccel.networks.inputs import Inputs, Signature
from diffaccel.reuse.branch import Part
from diffaccel.reuse.schedule import CallInfo
from diffaccel.runtime.host import Host
from diffaccel.runtime.lanes import new_state, with_late_rows
from diffaccel.runtime.run_clock import RunClock
from diffaccel.runtime.state import ActivePart, Context, relative_change
from diffaccel.runtime.tally import Tally
from diffaccel.runtime.wrapper import Wrapper

Forced = bool | tuple[bool, ...] | None


class Session:
    """State of one accelerated network.

    Args:
        signature: how the network names its inputs.
        parts: what may be reused, and when.
        host: the pipeline around it.
        writes: whether the network, given these inputs, writes into module outputs in place.
        wrappers: what stands between the pipeline and the network, outermost last.
        leader: the denoiser's session, for a ControlNet that runs before it.
        follows: for each part, the leader's part whose decision it shares, or None.
    """

    def __init__(
        self,
        signature: Signature,
        parts: Sequence[Part],
        host: Host,
        writes: Callable[[Inputs], bool],
        wrappers: Sequence[Wrapper] = (),
        leader: "Session | None" = None,
        follows: Sequence[int | None] = (),
    ) -> None:
        self.signature = signature
        self.active = [ActivePart(part, new_state(part)) for part in parts]
        self.host = host
        self.clock = RunClock(host)
        self.writes = writes
        self.wrappers = wrappers
        self.leader = leader
        self.follows = tuple(follows) or (None,) * len(self.active)
        self.contexts: dict[Hashable, Context] = {}
        self.tally = Tally()
        self._forced: Forced = None
        self._name: str | None = None
        self._promised: dict[int, bool] = {}  # for each part that a ControlNet follows, whether all of that ran in full

    def reset(self) -> None:
        """Forget all features, also those of the denoiser that is fed: the next call starts a run. The tally stays."""
        self.contexts.clear()
        self.clock.reset()
        self._promised.clear()
        for active in self.active:
            active.state = new_state(active.part)
        if self.leader is not None:
            self.leader.reset()

    def nbytes(self) -> int:
        """Bytes of the storage that features take at the moment."""
        return sum(state.nbytes() for context in self.contexts.values() for state in context.states)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Callable[..., Any], name: str | None) -> Any:
        """Run one call of the network as the pipeline makes it.

        Args:
            args, kwargs: inputs of the network.
            forward: the network's own forward.
            name: the context the pipeline is in, if it says so.
        """
        inputs = self.signature.bind(args, kwargs)
        context = self._context(inputs, name)
        if self.wrappers:
            inputs = replace(inputs, guided=self.host.guided)
        decisions = None if self.leader is None else self.leader.promise(inputs, name)
        run: Callable[[Inputs], Any] = partial(self._network, context, forward, decisions)
        run = partial(with_late_rows, context, run)
        for wrapper in self.wrappers:
            run = partial(wrapper.around, context, run)
        with self.tally.outer(inputs):
            output = run(inputs)
        context.step += 1
        self._promised.clear()
        return output

    def promise(self, inputs: Inputs, name: str | None) -> tuple[bool, ...]:
        """What each part will do in the denoiser's next call, given inputs of a network that runs before it."""
        tick = self.clock.peek(inputs.timestep, None)
        place: Hashable = self._name or name
        context = self.contexts.get(tick.ordinal if place is None else place)
        if context is None or (tick.starts and self._forced is None):
            return (True,) * len(self.active)
        sample = inputs.sample if _fingerprint(inputs.sample) == context.key else None
        decide = partial(self._computes, context=context, sample=sample, new_prompt=False)
        return tuple(decide(index) for index in range(len(self.active)))

    def rely(self, index: int, ran_in_full: bool) -> None:
        """Take note of what a ControlNet did for a part of the denoiser's next call."""
        self._promised[index] = self._promised.get(index, True) and ran_in_full

    @contextmanager
    def forced(self, compute: Forced, name: str | None = None) -> Iterator[None]:
        """Calls within compute (True) or reuse (False) whatever the schedules say, or each part as a tuple says.

        The caller tells where runs start (`reset`) and which context a call belongs to (`name`); a context's first call
        computes all the same. With None, the schedules decide, in the context `name`.
        """
        before = self._forced, self._name
        self._forced, self._name = compute, name
        try:
            yield
        finally:
            self._forced, self._name = before

    def _context(self, inputs: Inputs, name: str | None) -> Context:
        """The context of this call, new if a run starts or the input's shape changed.

        A pipeline may change the shape in the middle of a run, as when guidance ends: calls are counted on then.
        """
        place: Hashable = self._name or name
        if self._forced is None:
            tick = self.clock.tick(inputs.timestep, inputs.conditioning)
            if tick.starts:
                self._start_run()
            place = tick.ordinal if place is None else place
        key = _fingerprint(inputs.sample)
        context = self.contexts.get(place)
        if context is None or context.key != key:
            step = 0 if context is None or self.host.table is None else context.step
            context = self.contexts[place] = Context(key, [new_state(active.part) for active in self.active], step)
        return context

    def _start_run(self) -> None:
        """Forget the run before, and refuse what does not fit this one before anything computes."""
        self.contexts.clear()
        self._promised.clear()
        for active in self.active:
            active.part.schedule.validate(self.clock.total)
        for wrapper in self.wrappers:
            wrapper.start_run(self.clock)

    def _network(
        self, context: Context, forward: Callable[..., Any], decisions: tuple[bool, ...] | None, inputs: Inputs
    ) -> Any:
        """Run the network itself, computing or reusing each part."""
        if inputs.rows is None:
            self._decide_all(context, decisions, inputs)
        for active in self.active:
            active.state.begin(context.rows, inputs.rows, self._forced is not None, self.clock.total)
        with record_function(self._decision()):
            output = forward(**inputs.values)
        self.tally.inner(inputs, [active.state for active in self.active])
        return output

    def _decision(self) -> str:
        """What this call does, as a profiler's trace shows it."""
        reusing = [active.part.branch for active in self.active if not active.state.compute]
        replayed = [name for branch in reusing for name in branch.modules[-1:]]
        return f"diffaccel: replay {', '.join(replayed)}" if replayed else "diffaccel: compute"

    def _decide_all(self, context: Context, decisions: tuple[bool, ...] | None, inputs: Inputs) -> None:
        """Decide for each part whether it computes in a call with all rows."""
        self._fit_rows(context, inputs)
        new_prompt = self._note_conditioning(context, inputs)
        writable = self.writes(inputs)
        for index, active in enumerate(self.active):
            followed = self.follows[index]
            decided = None if decisions is None or followed is None else decisions[followed]
            self._decide(index, context, inputs.sample, decided, new_prompt)
            active.state.writable = writable
            if self.leader is not None and followed is not None:
                self.leader.rely(followed, active.state.compute)

    def _decide(self, index: int, context: Context, sample: Any, decided: bool | None, new_prompt: bool) -> None:
        """Decide whether a part computes in this call, and prepare its state."""
        active = self.active[index]
        state = active.state = context.states[index]
        computes = self._computes(index, context, sample, new_prompt) if decided is None else decided
        if computes and not self._promised.get(index, True):
            raise RuntimeError(
                "the denoiser must compute, but a ControlNet before it did not run in full: the shapes of their inputs "
                "changed at different times; call Handle.reset() between such calls"
            )
        state.compute = computes or not state.filled
        state.step = context.step
        state.age = 0 if state.compute else state.age + 1
        state.filled = True
        if state.compute:
            state.whole = None
        if state.compute and active.part.schedule.clears:
            state.clear()
        if state.compute and active.part.schedule.measures:
            state.reference = sample.clone()

    def _computes(self, index: int, context: Context, sample: Any, new_prompt: bool) -> bool:
        """Whether a part computes in the next call of a context."""
        state, schedule = context.states[index], self.active[index].part.schedule
        forced = self._forced[index] if isinstance(self._forced, tuple) else self._forced
        if not state.filled:
            return True
        if forced is not None and (isinstance(self._forced, tuple) or not schedule.clears):
            return forced
        change = partial(relative_change, sample, state.reference)
        return schedule.should_compute(CallInfo(context.step, self.clock.total, change, state.age, new_prompt))

    def _fit_rows(self, context: Context, inputs: Inputs) -> None:
        """Make what is stored fit the rows of this call: a wrapper may have dropped the negative half, or kept it."""
        rows = inputs.sample.shape[0] if isinstance(inputs.sample, torch.Tensor) else None
        if rows is not None and context.rows is not None and rows != context.rows:
            if rows * 2 == context.rows:
                for state in context.states:
                    state.halve()
            elif rows != 2 * context.rows or not all(state.join() for state in context.states):
                context.states[:] = [new_state(active.part) for active in self.active]
        context.rows = rows

    def _note_conditioning(self, context: Context, inputs: Inputs) -> bool:
        """Whether the conditioning is new since the last call; asked only if it matters."""
        if not any(active.part.schedule.clears for active in self.active):
            return False
        known = context.constants
        context.constants = [(leaf, _version(leaf)) for leaf in inputs.constants]
        pairs = zip(known, context.constants, strict=False)
        return len(known) != len(context.constants) or not all(_same(old, new) for old, new in pairs)


def _fingerprint(sample: Any) -> tuple[Any, ...]:
    """What must not change between calls that share features."""
    if isinstance(sample, torch.Tensor):
        return sample.shape, sample.dtype, sample.device
    if isinstance(sample, Sequence):
        return tuple(_fingerprint(item) for item in sample)
    return (type(sample),)


def _version(value: Any) -> int:
    """Counts in-place writes to a tensor; those to an inference tensor are not counted."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0


def _same(old: tuple[Any, int], new: tuple[Any, int]) -> bool:
    """Whether two inputs, each with its version, are the same: the same tensor, not written to, or equal otherwise."""
    if isinstance(old[0], torch.Tensor) or isinstance(new[0], torch.Tensor):
        return old[0] is new[0] and old[1] == new[1]
    return bool(old[0] == new[0])
