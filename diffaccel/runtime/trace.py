"""What happened at each network call, in order: which kinds of calls the network made, and what was measured there."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diffaccel.runtime.call import Call, Measured

KEPT = 4096  # calls of a network that are remembered; those before them only count
Shapes = tuple[Any, ...]


@dataclass(frozen=True)
class CallKind:
    """Calls that cost the same.

    Attributes:
        shapes: of sample and conditioning.
        computes: the decision for every part.
        variants: for every part that reuses, which way of its act is in force; 0 for the others.
        missing: for every part the slots of modules that ran although it reuses.
    """

    shapes: Shapes
    computes: tuple[bool, ...]
    variants: tuple[int, ...]
    missing: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CallTrace:
    """One call that the pipeline made of a network.

    Attributes:
        run: which run it belongs to, counted from 0; None for calls outside of any.
        step: index of the call within its run; None outside of one.
        shapes: of sample and conditioning.
        kinds: what the network ran for it: nothing, one call, or one for the rows of each decision.
        measured: what methods measured to decide about it.
    """

    run: int | None
    step: int | None
    shapes: Shapes
    kinds: tuple[CallKind, ...]
    measured: tuple[Measured, ...]


@dataclass
class Tracer:
    """Remembers the last calls of one network.

    Attributes:
        calls: the oldest first.
    """

    calls: deque[CallTrace] = field(default_factory=lambda: deque(maxlen=KEPT))

    def copy(self) -> "Tracer":
        """A tracer that later calls do not change."""
        return Tracer(self.calls.copy())

    def note(self, call: Call, shapes: Shapes, kinds: Sequence[CallKind]) -> None:
        """Remember a call that is done."""
        number = None if call.run is None else call.run.number  # networks that take turns count the same runs
        self.calls.append(CallTrace(number, call.step, shapes, tuple(kinds), _merged(call.measured)))


def _merged(measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """Values of one name together, in the order in which they were measured."""
    found: dict[tuple[str, float | None], tuple[float, ...]] = {}
    for item in measured:
        found[item.name, item.limit] = found.get((item.name, item.limit), ()) + item.values
    return tuple(Measured(name, values, limit) for (name, limit), values in found.items())
