"""Observe: show what enters and leaves the blocks of a network, and change nothing; calibrations are made so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffaccel.networks.block_io import Streams
from diffaccel.runtime.act import Act, PartState, Place

ENTERING, MODULATED, LEAVING = "entering", "modulated", "leaving"


@dataclass(frozen=True)
class Observe(Act):
    """Tell a function the hidden states in front of the first block and behind the last, and an attention's input.

    Attributes:
        first, last: the blocks.
        unit: the attention of the first block; empty for none.
        tell: is given the state of the call, which of the three it is, and a tensor ``(rows * anything, ...)``.
    """

    exclusive: ClassVar[bool] = False

    first: str
    last: str
    unit: str
    tell: Callable[[PartState, str, torch.Tensor], None]

    @property
    def modules(self) -> tuple[str, ...]:
        """The blocks, and the attention."""
        return tuple(dict.fromkeys(name for name in (self.first, self.last, self.unit) if name))

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """Three."""
        yield self.first, _Seen(state, self.tell, Streams(model.get_submodule(self.first)), ENTERING)
        if self.unit:
            yield self.unit, _Seen(state, self.tell, None, MODULATED)
        yield self.last, _Seen(state, self.tell, Streams(model.get_submodule(self.last)), LEAVING)


class _Seen(Place):
    """Tells one of the three."""

    def __init__(
        self,
        state: PartState,
        tell: Callable[[PartState, str, torch.Tensor], None],
        streams: Streams | None,
        what: str,
    ) -> None:
        self.state, self.tell, self.streams, self.what = state, tell, streams, what

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Tell what enters."""
        if self.what == ENTERING and self.streams is not None:
            self._show(self.streams.entering(args, kwargs))
        elif self.what == MODULATED:
            self._show(first_tensor(args, kwargs))
        return args, kwargs

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Tell what leaves."""
        if self.what == LEAVING and self.streams is not None:
            self._show(self.streams.leaving(output))
        return output

    def _show(self, value: torch.Tensor) -> None:
        self.tell(self.state, self.what, value.detach().clone())


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that an attention is given: by position, by their usual names, or the first tensor there is."""
    named = [kwargs[name] for name in ("hidden_states", "x", "img") if name in kwargs]
    found: torch.Tensor = next(v for v in [*args, *named, *kwargs.values()] if isinstance(v, torch.Tensor))
    return found
