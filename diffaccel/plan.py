"""A plan: what the methods that were asked for do to one network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffaccel.branch import Part
from diffaccel.clock import RunClock
from diffaccel.config import check
from diffaccel.families import layout_of
from diffaccel.methods.base import Method
from diffaccel.session import Session
from diffaccel.signature import Signature


@dataclass(frozen=True)
class Plan:
    """All parts that methods reuse in one network.

    Attributes:
        parts: what is reused, and when.
        owners: for each part, the name of its method.
    """

    parts: tuple[Part, ...]
    owners: tuple[str, ...]

    def session(self, model: torch.nn.Module, clock: RunClock) -> Session:
        """A new session of this plan on `model`."""
        return Session(Signature(model), self.parts, clock, layout_of(model).writes)


def plan(model: torch.nn.Module, methods: Sequence[Method]) -> Plan:
    """The plan of `methods` on `model`.

    Raises:
        UnsupportedModelError: if a method does not work on this kind of network.
        ValueError: if a setting does not fit it, or two methods claim the same module.
    """
    layout = layout_of(model)
    owned = [(type(method).__name__, part) for method in methods for part in method.parts(layout)]
    claims: dict[str, str] = {}
    for owner, part in owned:
        for name in part.branch.modules:
            check(name not in claims, f"{owner} and {claims.get(name)} cannot work together: both claim {name!r}")
            claims[name] = owner
    return Plan(tuple(part for _, part in owned), tuple(owner for owner, _ in owned))
