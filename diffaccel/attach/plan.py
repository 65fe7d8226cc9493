"""A plan: what the methods that were asked for do to one network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from diffaccel.config.checks import check
from diffaccel.methods.base import Method
from diffaccel.networks import layout_of
from diffaccel.networks.inputs import Signature
from diffaccel.reuse.branch import Part
from diffaccel.reuse.residual import Residual
from diffaccel.runtime.host import Host
from diffaccel.runtime.session import Session


@dataclass(frozen=True)
class Plan:
    """All that methods do to one network.

    Attributes:
        methods: the methods.
        parts: what they reuse, and when.
        owners: for each part, the name of its method.
        follows: for each part, the part of the denoiser whose decision it shares; None decides by itself.
    """

    methods: tuple[Method, ...]
    parts: tuple[Part, ...]
    owners: tuple[str, ...]
    follows: tuple[int | None, ...]

    def session(self, model: torch.nn.Module, host: Host, leader: Session | None = None) -> Session:
        """A new session of this plan on `model`; a ControlNet has the denoiser's session for a `leader`."""
        layout = layout_of(model)
        made = [method.wrapper(layout, host) for method in self.methods] if leader is None else []
        wrappers = sorted((wrapper for wrapper in made if wrapper is not None), key=lambda wrapper: wrapper.order)
        return Session(Signature(model), self.parts, host, layout.writes, wrappers, leader, self.follows)

    def bare(self, ranges: Sequence[int]) -> "Plan":
        """The same parts alone, whose calls have the inputs that the network sees.

        Args:
            ranges: for each part that has several ranges of blocks, which of them is always in force.
        """
        parts = [
            replace(part, branch=part.branch.only(index)) if isinstance(part.branch, Residual) else part
            for part, index in zip(self.parts, ranges, strict=True)
        ]
        return Plan((), tuple(parts), self.owners, (None,) * len(parts))


def plan(model: torch.nn.Module, methods: Sequence[Method]) -> Plan:
    """The plan of `methods` on a denoiser.

    Raises:
        UnsupportedModelError: if a method does not work on this kind of network.
        ValueError: if a setting does not fit it, or two methods cannot work together.
    """
    twice = len({id(method) for method in methods}) < len(methods)
    check(not twice, "the same method was given twice to accelerate(): give it once")
    layout = layout_of(model)
    owned = [(method, part) for method in methods for part in method.parts(layout)]
    _require_disjoint(owned)
    parts = tuple(part for _, part in owned)
    return Plan(tuple(methods), parts, tuple(_name(method) for method, _ in owned), (None,) * len(parts))


def companion_plan(companion: torch.nn.Module, denoiser: torch.nn.Module, methods: Sequence[Method]) -> Plan:
    """The plan of `methods` on a ControlNet that runs before `denoiser`; without parts if they change nothing there."""
    layout, first = layout_of(companion), 0
    owned, follows = [], []
    for method in methods:
        for part, followed in method.companion_parts(layout):
            owned.append((method, part))
            follows.append(None if followed is None else first + followed)
        first += len(method.parts(layout_of(denoiser)))
    _require_disjoint(owned)
    parts = tuple(part for _, part in owned)
    return Plan(tuple(methods), parts, tuple(_name(method) for method, _ in owned), tuple(follows))


def _name(method: Method) -> str:
    return type(method).__name__


def _require_disjoint(owned: Sequence[tuple[Method, Part]]) -> None:
    """Refuse parts of two methods that replay or skip the same module; those of one method may overlap."""
    claims: dict[str, Method] = {}
    for owner, part in owned:
        for name in part.branch.modules:
            other = claims.setdefault(name, owner)
            check(other is owner, f"{_name(owner)} and {_name(other)} cannot work together: both claim {name!r}")
    for owner, part in owned:
        if isinstance(part.branch, Residual):
            _require_measurable(owner, part.branch.front, owned)


def _require_measurable(owner: Method, front: Sequence[str], owned: Sequence[tuple[Method, Part]]) -> None:
    """Refuse to measure the change of blocks within which another method replays outputs of earlier calls."""
    for other, part in owned:
        for name in () if part.schedule.clears else part.branch.modules:
            inside = next((block for block in front if name.startswith(f"{block}.")), None)
            check(
                inside is None,
                f"{_name(owner)} and {_name(other)} cannot work together: {_name(owner)} measures how much {inside!r} "
                f"changed, and {_name(other)} replays {name!r} within it",
            )
