"""Scaling: what some modules give is multiplied row by row, by an input of the call that the network never sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffaccel.networks.inputs import Inputs
from diffaccel.runtime.act import Act, Part, PartState, Place
from diffaccel.runtime.lanes import LaneMemory, Lanes


@dataclass(frozen=True)
class ScaleRows(Act):
    """Multiply outputs.

    Attributes:
        scaled: names of the modules, and for each the column of the scales that is its own.
        name: of the input that holds the scales, ``(rows, columns)``.
    """

    exclusive: ClassVar[bool] = False

    scaled: tuple[tuple[str, int], ...]
    name: str

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules."""
        return tuple(name for name, _ in self.scaled)

    def state(self, part: Part) -> ScalingState:
        """Of its own kind: it holds the scales."""
        return ScalingState(part, self.name)

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:  # noqa: ARG002
        """One for each module."""
        assert isinstance(state, ScalingState)
        for name, column in self.scaled:
            yield name, _Scaled(state, column)


class ScalingState(PartState):
    """The scales of a call, ``(rows, columns)``."""

    def __init__(self, part: Part, name: str) -> None:
        super().__init__(part)
        self._name = name
        self.scales = torch.ones(1, 1)

    def prepare(self, own: Lanes, kept: LaneMemory, *, inputs: Inputs, **_: Any) -> None:  # noqa: ARG002
        """Prepare for a call."""
        self.scales = inputs.values[self._name]

    def commit(self, kept: LaneMemory) -> None:
        """There is nothing to store."""


class _Scaled(Place):
    """Multiplies what leaves a module, ``(rows, ...)``."""

    def __init__(self, state: ScalingState, column: int) -> None:
        self.state, self.column = state, column

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """The product."""
        scales = self.state.scales[:, self.column].to(output)
        return output * scales.view(-1, *[1] * (output.dim() - 1))
