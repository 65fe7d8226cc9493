"""A plan: what the methods that were asked for do to one network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from diffaccel.config.checks import check
from diffaccel.methods.base import Method
from diffaccel.methods.companions import tied_parts
from diffaccel.networks import UnsupportedModelError, layout_of
from diffaccel.reuse.schedule import Always
from diffaccel.runtime.act import Part
from diffaccel.runtime.session import Tie
from diffaccel.runtime.substitute import Stretch


@dataclass(frozen=True)
class Plan:
    """All that methods do to one network.

    Attributes:
        methods: the methods.
        parts: what they reuse, and when.
        owners: for each part, the name of its method.
        ties: for each part of a ControlNet what else has a say in its decisions; None decides by itself.
    """

    methods: tuple[Method, ...]
    parts: tuple[Part, ...]
    owners: tuple[str, ...]
    ties: tuple[Tie | None, ...]

    def fixed(self, variants: Sequence[int]) -> list[Part]:
        """The parts, each with one of the ways of its act always in force, for calls that are told what computes."""
        pairs = zip(self.parts, variants, strict=True)
        return [replace(part, act=part.act.fixed(variant), schedule=Always()) for part, variant in pairs]


def plan(model: torch.nn.Module, methods: Sequence[Method]) -> Plan:
    """The plan of `methods` on a denoiser.

    Raises:
        UnsupportedModelError: if a method does not work on this kind of network.
        ValueError: if a setting does not fit it, or two methods cannot work together.
    """
    known = set[object]()
    for method in methods:  # those around whole calls claim no module that would tell
        key = id(method) if type(method).wrapper is Method.wrapper else type(method)
        check(key not in known, f"{_name(method)} is given twice: give it once")
        known.add(key)
    layout = layout_of(model)
    owned = [(method, part) for method in methods for part in method.bounded_parts(layout)]
    return _planned(methods, owned, [None] * len(owned))


def stages_of(model: torch.nn.Module, methods: Sequence[Method]) -> list[tuple[Plan, Stretch]]:
    """The plan of each stage of a run, with the calls that it is for; none where methods are the same throughout.

    Raises:
        UnsupportedModelError, ValueError: as `plan`.
    """
    staged = [method for method in methods if method.stages()]
    if not staged:
        return []
    turning = [m for m in methods if m in staged[1:] or type(m).substitute is not Method.substitute]
    for other in turning[:1]:
        raise ValueError(f"{_name(staged[0])} and {_name(other)} cannot work together: both take turns in a run")
    others = tuple(method for method in methods if method is not staged[0])
    return [(plan(model, (*stage.methods, *others)), stage.turns) for stage in staged[0].stages()]


def plans_of(model: torch.nn.Module, methods: Sequence[Method]) -> list[Plan]:
    """All plans of `methods` on a denoiser: one for each stage of a run, or the only one.

    Raises:
        UnsupportedModelError, ValueError: as `plan`.
    """
    return [planned for planned, _ in stages_of(model, methods)] or [plan(model, methods)]


def substitute_plan(substitute: torch.nn.Module, methods: Sequence[Method], switch: Method) -> Plan:
    """The plan of all methods but `switch` on the network that takes some calls because of it.

    Raises:
        UnsupportedModelError, ValueError: as `plan`, if a method does not fit this network, too.
    """
    try:
        return plan(substitute, [method for method in methods if method is not switch])
    except (UnsupportedModelError, ValueError) as error:
        raise type(error)(f"{_name(switch)} puts other methods on both networks, and not all fit: {error}") from error


def companion_plan(
    companion: torch.nn.Module, denoiser: torch.nn.Module, methods: Sequence[Method], index: int
) -> Plan:
    """The plan of `methods` on a ControlNet that runs before `denoiser`; without parts if they change nothing there.

    Raises:
        ValueError: as `plan`.
    """
    tied = tied_parts(methods, layout_of(companion), layout_of(denoiser), index)
    owned = [(one.owner, one.part) for one in tied]
    return _planned(methods, owned, [one.tie for one in tied])


def _planned(methods: Sequence[Method], owned: Sequence[tuple[Method, Part]], ties: Sequence[Tie | None]) -> Plan:
    """A plan of parts with the methods that they are of. Raises ValueError where two of them cannot work together."""
    require_disjoint(owned)
    names = tuple(_name(method) for method, _ in owned)
    return Plan(tuple(methods), tuple(part for _, part in owned), names, tuple(ties))


def _name(method: Method) -> str:
    return type(method).__name__


def require_disjoint(owned: Sequence[tuple[Method, Part]]) -> None:
    """Refuse acts of two methods at the same module, unless one works within the other; those of one may overlap.

    Refused, too: to measure the change of blocks within which another method replays outputs of earlier calls.
    """
    claims: dict[tuple[str, bool], Method] = {}
    for owner, part in owned:
        for name in part.act.modules:
            other = claims.setdefault((name, part.act.exclusive), owner)
            check(other is owner, f"{_name(owner)} and {_name(other)} cannot work together: both claim {name!r}")
    for owner, part in owned:
        for other, theirs in owned:
            _require_measurable(owner, part.act.measured, other, theirs)


def _require_measurable(owner: Method, measured: Sequence[str], other: Method, theirs: Part) -> None:
    for name in theirs.act.replayed if theirs.lifetime == "run" else ():
        inside = next((block for block in measured if name.startswith(f"{block}.")), None)
        check(
            inside is None,
            f"{_name(owner)} and {_name(other)} cannot work together: {_name(owner)} measures how much {inside!r} "
            f"changed, and {_name(other)} replays {name!r} within it",
        )
