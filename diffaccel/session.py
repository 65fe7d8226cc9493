"""One denoiser at work: finds the context of each network call, lets the schedules decide, and keeps the count."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from diffaccel.branch import Part
from diffaccel.clock import RunClock
from diffaccel.schedule import Call
from diffaccel.signature import Inputs, Signature
from diffaccel.state import ActivePart, CacheState, Context
from diffaccel.tally import Tally

Forced = bool | tuple[bool, ...] | None


class Session:
    """State of one accelerated denoiser.

    Args:
        signature: how the denoiser names its inputs.
        parts: what may be reused, and when.
        clock: tells where runs start.
        writes: whether the network, given these inputs, writes into module outputs in place.
    """

    def __init__(
        self, signature: Signature, parts: Sequence[Part], clock: RunClock, writes: Callable[[Inputs], bool]
    ) -> None:
        self.signature = signature
        self.active = [ActivePart(part) for part in parts]
        self.clock = clock
        self.writes = writes
        self.contexts: dict[Hashable, Context] = {}
        self.tally = Tally()
        self._forced: Forced = None
        self._name: str | None = None

    def reset(self) -> None:
        """Forget all features: the next call starts a run. The tally stays."""
        self.contexts.clear()
        self.clock.reset()
        for active in self.active:
            active.state = CacheState(active.part)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Callable[..., Any], name: str | None) -> Any:
        """Run one network call, computing or reusing each part.

        Args:
            args, kwargs: inputs of the denoiser.
            forward: the denoiser's own forward.
            name: the context the pipeline is in, if it says so.
        """
        inputs = self.signature.bind(args, kwargs)
        context = self._context(inputs, name)
        writable = self.writes(inputs)
        for index, active in enumerate(self.active):
            active.state = context.states[index]
            active.state.writable = writable
            self._decide(active, context.step, inputs.sample, self._forced_at(index))
        self.tally.add(inputs, tuple(active.state.compute for active in self.active))
        output = forward(**inputs.values)
        context.step += 1
        return output

    def nbytes(self) -> int:
        """Bytes of the storage that features take at the moment."""
        return sum(state.nbytes() for context in self.contexts.values() for state in context.states)

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

    def _forced_at(self, index: int) -> bool | None:
        """What was forced on the part at `index`."""
        return self._forced[index] if isinstance(self._forced, tuple) else self._forced

    def _context(self, inputs: Inputs, name: str | None) -> Context:
        """The context of this call, new if a run starts or the shape of the input changed."""
        place: Hashable = self._name or name
        if self._forced is None:
            starts, ordinal = self.clock.tick(inputs.timestep, inputs.conditioning)
            if starts:
                self._start_run()
            place = ordinal if place is None else place
        key = _fingerprint(inputs.sample)
        context = self.contexts.get(place)
        if context is None or context.key != key:
            context = self.contexts[place] = Context(key, [CacheState(active.part) for active in self.active])
        return context

    def _start_run(self) -> None:
        """Forget the run before, and refuse schedules that do not fit this one before anything computes."""
        self.contexts.clear()
        for active in self.active:
            active.part.schedule.validate(self.clock.total)

    def _decide(self, active: ActivePart, step: int, sample: Any, forced: bool | None) -> None:
        """Decide whether a part computes in this call."""
        state, schedule = active.state, active.part.schedule
        if forced is None and step > 0:
            forced = schedule.should_compute(Call(step, self.clock.total, lambda: _change(sample, state), state.age))
        state.step = step
        state.compute = step == 0 or bool(forced)
        state.age = 0 if state.compute else state.age + 1
        if state.compute and schedule.measures:
            state.reference = sample.clone()


def _fingerprint(sample: Any) -> tuple[Any, ...]:
    """What must not change between calls that share features."""
    if isinstance(sample, torch.Tensor):
        return sample.shape, sample.dtype, sample.device
    if isinstance(sample, Sequence):
        return tuple(_fingerprint(item) for item in sample)
    return (type(sample),)


def _change(sample: torch.Tensor, state: CacheState) -> float:
    """mean|x - x_ref| / mean|x_ref|"""
    reference = state.reference
    if reference is None:
        raise RuntimeError("no reference was stored: the schedule must set `measures`")
    return float((sample - reference).abs().mean() / reference.abs().mean())
