"""The count of network calls by kind, from which the report is made."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.signature import Inputs
from diffaccel.state import map_tensors


@dataclass(frozen=True)
class CallKind:
    """Calls that cost the same: equal shapes of sample and conditioning, equal decisions for every part."""

    shapes: tuple[Any, ...]
    computes: tuple[bool, ...]


class Tally:
    """Counts calls by kind, and keeps one set of inputs per shape, on the meta device, to measure costs with."""

    def __init__(self) -> None:
        self.calls: Counter[CallKind] = Counter()
        self.examples: dict[tuple[Any, ...], Mapping[str, Any]] = {}

    def copy(self) -> "Tally":
        """A tally that later calls do not change."""
        copy = Tally()
        copy.calls, copy.examples = self.calls.copy(), dict(self.examples)
        return copy

    def add(self, inputs: Inputs, computes: tuple[bool, ...]) -> None:
        """Count one call."""
        shapes = _shape(inputs.sample), _shape(inputs.conditioning)
        self.calls[CallKind(shapes, computes)] += 1
        if shapes not in self.examples:
            self.examples[shapes] = map_tensors(_weightless, dict(inputs.values))


def _weightless(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape without storage, in single precision as `macs.skeleton`."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, device="meta", dtype=dtype)


def _shape(value: Any) -> Any:
    """The shapes of the tensors in `value`."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return tuple(_shape(item) for item in value) if isinstance(value, list | tuple) else None
