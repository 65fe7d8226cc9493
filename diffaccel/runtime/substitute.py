"""Two networks in one run: a substitute takes some of a network's calls, in turns that are known before the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from diffaccel.config.checks import check
from diffaccel.networks.inputs import Inputs, Signature
from diffaccel.reuse.ends import NO_ENDS, Ends

if TYPE_CHECKING:
    from diffaccel.runtime.run import Run


@dataclass(frozen=True)
class Turns:
    """Which calls of a run the substitute takes.

    Args:
        until: share of the calls that it takes, the first ones, in [0, 1], rounded to whole calls.
        calls: the calls that it takes instead, ascending.
        ends: calls that it never takes.
    """

    until: float
    calls: tuple[int, ...] | None = None
    ends: Ends = NO_ENDS

    def validate(self, total: int | None) -> None:
        """Raise ValueError where a run of `total` calls (None: unknown) has no such turns."""
        self.ends.validate(total)
        if self.calls is not None:
            last = self.calls[-1]
            check(total is None or last < total, f"calls lists call {last}, but the run has {total}")
            return
        known = total is not None or self.until in (0, 1)
        check(known, f"until={self.until:g} is a share of a run whose length is not known: list calls=(0, 1, ...)")

    def takes(self, step: int, total: int | None) -> bool:
        """Whether the substitute takes a call."""
        if self.ends.computes(step, total):
            return False
        if self.calls is not None:
            return step in self.calls
        return self.until == 1 or (total is not None and step < math.floor(self.until * total + 0.5))

    def changes(self, total: int | None) -> list[int]:
        """Calls that another network takes than the one before them."""
        if total is None:
            total = max(self.calls[-1] if self.calls else 0, self.ends.warmup) + 2
        return [call for call in range(1, total) if self.takes(call, total) != self.takes(call - 1, total)]


@dataclass(frozen=True)
class Stretch:
    """A stretch of a run's calls.

    Args:
        start: its first call: a share of the run's calls, rounded to whole ones, or the call itself.
        end: the first call behind it, in the same way; None for none, so that it lasts to the end.
    """

    start: float
    end: float | None = None

    def validate(self, total: int | None) -> None:
        """Raise ValueError where a run of `total` calls (None: unknown) has no such stretch."""
        for place in (self.start, self.end):
            known = total is not None or not isinstance(place, float)
            check(known, f"{place} is a share of a run whose length is not known: say at which call the stage begins")
        first, stop = self.first(total), self._stop(total)
        fits = (total is None or first < total) and (stop is None or first < stop)
        check(fits, f"a stage from call {first} on has none of the run's {total} calls: let it begin elsewhere")

    def first(self, total: int | None) -> int:
        """Its first call."""
        return _at(self.start, total)

    def _stop(self, total: int | None) -> int | None:
        """The first call behind it."""
        return None if self.end is None else _at(self.end, total)

    def takes(self, step: int, total: int | None) -> bool:
        """Whether a call lies in it."""
        stop = self._stop(total)
        return self.first(total) <= step and (stop is None or step < stop)


def _at(place: float, total: int | None) -> int:
    """The call at a share of a run of `total` calls, or the one that is given."""
    return math.floor(place * (total or 0) + 0.5) if isinstance(place, float) else place


@dataclass(frozen=True, eq=False)
class Substitute:
    """A network that takes some calls of another one.

    Attributes:
        load: gives the network.
        turns: when it takes the other's place.
        require_fit: raises ValueError where it cannot take calls of a run.
    """

    load: Callable[[], torch.nn.Module]
    turns: Turns
    require_fit: Callable[[Run], None]


def translated(inputs: Inputs, signature: Signature, network: str) -> Inputs:
    """The inputs of a call for another network: sample, timestep and conditioning under its names for them.

    Args:
        inputs: of the call.
        signature: of the other network.
        network: its name, for messages.

    Raises:
        ValueError: for an input that the other network does not take, or that was made for the blocks of this one.
    """
    names = {own: other for own, other in zip(inputs.names, signature.names, strict=True) if own is not None}
    values = {}
    for name, value in inputs.values.items():
        other = names.get(name, name)
        if other in signature.parameters and name not in inputs.of_blocks:
            values[other] = value
        elif value is not None:
            raise ValueError(f"{network} cannot take the input {name!r} that this pipeline gives its network")
    return Inputs(values, signature.names)
