"""The count of network calls by kind, from which the report is made."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from diffaccel.networks.inputs import Inputs
from diffaccel.runtime.act import PartState
from diffaccel.runtime.call import Call
from diffaccel.runtime.trace import CallKind, Shapes, Tracer
from diffaccel.runtime.trees import map_tensors


class Tally:
    """Counts of network calls.

    Attributes:
        asked: calls that the pipeline made, by shapes and by whether all was computed.
        calls: calls that the network made.
        examples: one set of inputs per shape, without storage, to measure costs with: those of the first call, or of
            the first since others were given, as where an image prompt came to the words.
        full: calls that computed in full though they were to reuse, by the reason.
        tracer: the last calls, one by one.
        switched: calls that the pipeline made and another network took, by shapes.
    """

    def __init__(self) -> None:
        self.asked: Counter[tuple[Shapes, bool]] = Counter()
        self.calls: Counter[CallKind] = Counter()
        self.examples: dict[Shapes, Mapping[str, Any]] = {}
        self.full: Counter[str] = Counter()
        self.tracer = Tracer()
        self.switched: Counter[Shapes] = Counter()
        self._given: dict[Shapes, tuple[Any, ...]] = {}
        self._current: list[CallKind] | None = None

    def copy(self) -> "Tally":
        """A tally that later calls do not change."""
        copy = Tally()
        copy.asked, copy.calls, copy.examples = self.asked.copy(), self.calls.copy(), dict(self.examples)
        copy.full, copy.tracer = self.full.copy(), self.tracer.copy()
        copy.switched = self.switched.copy()
        return copy

    @contextmanager
    def outer(self, call: Call) -> Iterator[None]:
        """Count a call that the pipeline makes; calls of the network within belong to it."""
        shapes = self._shapes(call.inputs)
        within = self._current = []
        try:
            yield
            computed = bool(within) and all(kind.shapes == shapes and all(kind.computes) for kind in within)
            self.asked[shapes, computed] += 1
            self.tracer.note(call, shapes, within)
        finally:
            self._current = None

    def pass_on(self, inputs: Inputs) -> None:
        """Count a call that another network took."""
        self.switched[self._shapes(inputs)] += 1

    def inner(self, inputs: Inputs, states: Sequence[PartState]) -> None:
        """Count a call of the network, which `states` says what it computed."""
        computes = tuple(state.compute for state in states)
        variants = tuple(0 if state.compute else state.variant for state in states)
        missing = tuple(() if state.compute else state.part.act.missing(state) for state in states)
        kind = CallKind(self._shapes(inputs), computes, variants, missing)
        if self._current is not None:  # streams and videos, which have no end, make no such calls
            self._current.append(kind)
        self.calls[kind] += 1
        self.full.update(reason for state in states if (reason := state.why_full()))

    def _shapes(self, inputs: Inputs) -> Shapes:
        """The shapes of some inputs, of which an example is kept."""
        shapes = _shape(inputs.sample), _shape(inputs.conditioning)
        given = _given(inputs.values)
        if self._given.get(shapes) != given:
            self._given[shapes] = given
            self.examples[shapes] = map_tensors(weightless, dict(inputs.values))
        return shapes


def _given(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Names of what is given, and of what it holds by name."""
    return tuple(
        (name, *value) if isinstance(value, dict) else name for name, value in values.items() if value is not None
    )


def weightless(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape without storage, in single precision if it holds real numbers."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, device="meta", dtype=dtype)


def _shape(value: Any) -> Any:
    """The shapes of the tensors in `value`."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return tuple(_shape(item) for item in value) if isinstance(value, list | tuple) else None
