"""Drop: what hangs on the last modules of a chain is left out for good, and nothing is added in its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.networks.block_io import Streams
from diffaccel.reuse.branch import Branch
from diffaccel.runtime.act import Act, PartState, Place


@dataclass(frozen=True)
class DropAct(Act):
    """Outputs are zero, and modules that only they read pass their input on. Stores nothing, so nothing is missing.

    Attributes:
        branch: the outputs (`replayed`), and what is passed through (`skipped`).
    """

    branch: Branch

    @property
    def modules(self) -> tuple[str, ...]:
        """All of them."""
        return self.branch.modules

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """One for each module."""
        for name in self.branch.skipped:
            module = model.get_submodule(name)
            yield name, _PassedOn(state, Streams(module), halves=type(module).__name__ == "Downsample2D")
        for name in self.branch.replayed:
            yield name, _Zero(state, model.get_submodule(name))


class _PassedOn(Place):
    """Returns what the module was given, in the form in which it returns it, and at half the size where it `halves`."""

    def __init__(self, state: PartState, streams: Streams, *, halves: bool) -> None:
        self.state, self.streams, self.halves = state, streams, halves

    def reuses(self) -> bool:
        """Unless everything is to compute."""
        return not self.state.compute

    def recall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The hidden states."""
        output = self.streams.passed_on(args, kwargs)
        return output[..., ::2, ::2] if self.halves else output


class _Zero(Place):
    """Returns zeros of the shape of a projection's output, which take no storage."""

    def __init__(self, state: PartState, projection: torch.nn.Module) -> None:
        self.state, self.projection = state, projection

    def reuses(self) -> bool:
        """Unless everything is to compute."""
        return not self.state.compute

    def recall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Zeros."""
        given: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
        shape = list(given.shape)
        weight = self.projection.weight
        assert isinstance(weight, torch.Tensor)
        shape[-1 if weight.dim() == 2 else 1] = weight.shape[0]  # linear, or a convolution
        return given.new_zeros(()).expand(shape)
