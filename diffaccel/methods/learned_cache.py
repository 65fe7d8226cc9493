"""Learning-to-Cache (arXiv 2406.01733) and HarmoniCa (arXiv 2410.01723): a router, learned for each call, says which
attentions and feed-forward networks compute."""

from dataclasses import dataclass, replace
from typing import Any, Self

from diffaccel.config import stored
from diffaccel.config.checks import check
from diffaccel.methods.base import Method
from diffaccel.methods.profile import require_guidance, require_sampler
from diffaccel.methods.routers import Routers
from diffaccel.networks.layout import Layout, Unit, joined
from diffaccel.reuse.schedule import Steps
from diffaccel.runtime.act import Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.host import Host
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.replay_act import Replay
from diffaccel.runtime.run import Run
from diffaccel.runtime.wrapper import Inner, Wrapper

REMEDY = "train routers for this one: diffaccel train-cache, or diffaccel.train_routers"
TRAINED = "the routers were trained with"


@dataclass(frozen=True)
class LearnedCache(Method):
    """Compute each attention and each feed-forward network in the calls where its router's weight exceeds a threshold.

    Made for one class and configuration of network, one sampler, one number of calls and one guidance; anything else is
    refused. A bare network tells neither sampler nor guidance, which are then not checked. Stores the output of each
    unit that is ever reused.

    Args:
        routers: the path of routers that `train_routers` wrote, or `Routers`.
    """

    routers: str | Routers

    def __post_init__(self) -> None:
        super().__post_init__()
        stored(self, "routers", Routers, "the path of a file of routers, or Routers")

    @property
    def loaded(self) -> Routers:
        """The routers, read from their file where a path was given."""
        return Routers.read(self.routers)

    def written_out(self) -> Self:
        """The routers themselves, without the course of their training."""
        return replace(self, routers=replace(self.loaded, training=None, curve=()))

    @property
    def no_stream(self) -> str:
        """Why it cannot work in a stream."""
        return (
            "is trained on whole runs of a pipeline's scheduler and cannot work in a stream, which has a sampler of "
            "its own and stages instead of a run: use IntervalCache or BlockCache"
        )

    def parts(self, layout: Layout) -> list[Part]:
        """One part for all units that compute in the same calls; none for those that always do."""
        layout.require("LearnedCache", "units")
        routers = self.loaded
        units = _require_made_for(routers, layout)
        alike: dict[tuple[int, ...], list[Unit]] = {}
        for name, computed in routers.computed().items():
            alike.setdefault(computed, []).append(units[name])
        return [
            Part(Replay(joined(found)), _Routed(computed, routers.total), routers.forecast)
            for computed, found in alike.items()
            if len(computed) < routers.total
        ]

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """Checks the sampler and the guidance."""
        return _AsTrained(self.loaded)


@dataclass(frozen=True)
class _Routed(Steps):
    """Compute the listed calls of a run of exactly `total`."""

    total: int = 1

    def validate(self, total: int | None) -> None:
        """Raise ValueError if the run has another number of calls."""
        check(
            total in (None, self.total),
            f"the routers were trained for {self.total} network calls, and this run has {total}: {REMEDY}",
        )


class _AsTrained(Wrapper):
    """Refuses runs that the routers were not trained for, and changes nothing."""

    def __init__(self, routers: Routers) -> None:
        self.routers = routers

    def start_run(self, run: Run, total: int | None) -> None:
        """Refuse another number of calls, another sampler, and another guidance."""
        routers = self.routers
        _Routed((0,), routers.total).validate(total)
        expected = routers.sampler, routers.sampler_fingerprint
        require_sampler(run.host.scheduler, expected, TRAINED, REMEDY)
        require_guidance(routers.guidance, TRAINED, REMEDY)

    def around(self, call: Call, memory: Memory, network: Inner) -> Any:  # noqa: ARG002
        """One network call."""
        return network(call)


def _require_made_for(routers: Routers, layout: Layout) -> dict[str, Unit]:
    """The units of a network by name; refuses routers of another network."""
    layout.require_made_for(routers.model, routers.fingerprint, "these routers were trained on", REMEDY)
    units = {unit.branch.replayed[0]: unit for unit in layout.units}
    for name in routers.units:
        check(name in units, f"the routers name the unit {name!r}; {layout.model} has {', '.join(units)}")
    return units
