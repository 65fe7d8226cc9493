"""A tuned recipe: what each call computes and what it replays, with which weights; `diffaccel tune` writes it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch.profiler import record_function

from diffaccel._diffusers import running_call
from diffaccel.config import stored
from diffaccel.config.checks import check, whole
from diffaccel.methods.base import Method, Unread
from diffaccel.methods.companions import hidden_in
from diffaccel.methods.recipe import BLOCKS, BRANCH, OUTPUT, UNIT, UNITS, GuidanceScales, Recipe, Reuse
from diffaccel.networks.layout import Layout, UnsupportedModelError, fingerprint_of, joined
from diffaccel.reuse.branch import Branch
from diffaccel.reuse.ends import NO_ENDS, Ends
from diffaccel.reuse.forecast import Blend, Forecast
from diffaccel.reuse.residual import Ranges
from diffaccel.reuse.schedule import CallInfo, Schedule
from diffaccel.runtime.act import Act, Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.host import Host
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.replay_act import Replay
from diffaccel.runtime.residual_act import AddResidual
from diffaccel.runtime.run import Run
from diffaccel.runtime.wrapper import Inner, Wrapper, map_output, prediction, require_one

TUNED = "the profile was tuned with"


@dataclass(frozen=True)
class Profile(Method):
    """Follow a tuned recipe: which calls compute, from which branch or in which blocks, with which forecast.

    Made for one class and configuration of network, one sampler, one number of calls and one guidance; anything else is
    refused. A bare network tells neither sampler nor guidance, which are then not checked.

    Args:
        recipe: the path of a profile that `diffaccel tune` wrote, or a `Recipe`.
    """

    recipe: str | Recipe

    def __post_init__(self) -> None:
        super().__post_init__()
        stored(self, "recipe", Recipe, "the path of a profile, or a Recipe")

    @property
    def loaded(self) -> Recipe:
        """The recipe, read from its file where a path was given."""
        return Recipe.read(self.recipe)

    def written_out(self) -> Self:
        """The recipe itself, without its evidence."""
        return replace(self, recipe=replace(self.loaded, evidence=None))

    def parts(self, layout: Layout) -> list[Part]:
        """One part for each branch, range of blocks or range of units that is ever reused."""
        recipe = self.loaded
        _require_made_for(recipe, layout)
        return planned(recipe, layout, lambda what: Blend(recipe.at(what)))

    def unread(self, companion: Layout, denoiser: Layout) -> list[Unread]:
        """What lies below the branches, and what is added within the ranges of blocks."""
        found = []
        for index, what in enumerate(self.loaded.parts):
            kind, numbers = Reuse(1, what).target
            if kind == BRANCH:
                found.append(Unread(companion.depths[numbers[0]], index))
            elif kind == BLOCKS:
                found.append(Unread(hidden_in(_ranges_of(numbers, denoiser), 0, companion, denoiser), index))
        return found

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """Checks the sampler and the guidance, and stands in for the network where its output is reused."""
        return Outputs(self.loaded, self.ends)


@dataclass(frozen=True)
class _Planned(Schedule):
    """Reuse at the listed calls of a run of exactly `total`.

    Args:
        reused: those calls.
        spared: calls at which the network does not run; a part has missed none of them.
    """

    counts_run: ClassVar[bool] = True

    reused: frozenset[int]
    total: int
    spared: frozenset[int] = frozenset()

    def should_compute(self, call: CallInfo) -> bool:
        """False for the listed calls."""
        return call.index not in self.reused

    def was_due(self, call: CallInfo) -> bool:
        """Whether the network ran without this part's group."""
        return call.index not in self.reused | self.spared

    def validate(self, total: int | None) -> None:
        """Raise ValueError if the run has another number of calls."""
        check(
            total in (None, self.total),
            f"the profile was tuned for {self.total} network calls, and this run has {total}: tune again with these "
            "settings",
        )


@dataclass
class _Stored:
    """The network's last outputs: the latest as it was, and a history of its prediction."""

    latest: Any = None
    history: Any = None


class Outputs(Wrapper):
    """Returns a blend of the network's last outputs at the calls whose output is reused; the network does not run.

    Args:
        recipe: what is reused.
        ends: calls that compute whatever the recipe says.
        blend: carries the outputs on; None takes the recipe's weights.
    """

    order = 9

    def __init__(self, recipe: Recipe, ends: Ends = NO_ENDS, blend: Forecast | None = None) -> None:
        self.recipe, self.ends = recipe, ends
        self.weights = recipe.at(OUTPUT)
        self.blend = Blend(self.weights) if blend is None else blend

    def start_run(self, run: Run, total: int | None) -> None:
        """Refuse another number of calls, another sampler, and another guidance."""
        _Planned(frozenset(), self.recipe.total).validate(total)
        expected = self.recipe.sampler, self.recipe.sampler_fingerprint
        require_sampler(run.host.scheduler, expected, TUNED, "tune again with this one")
        if self.recipe.guidance is not None:
            require_guidance(self.recipe.guidance, TUNED, "tune again with this one")

    def around(self, call: Call, memory: Memory, network: Inner) -> Any:
        """One network call, or none."""
        if not self.weights or call.step is None:
            return network(call)
        stored: _Stored = memory.notes.setdefault((self, call.lanes["run"]), _Stored())
        may_reuse = stored.history is not None and not self.ends.computes(call.step, call.total)
        if may_reuse and call.step in self.weights:
            with record_function("diffaccel: replay output"):
                predicted = self.blend.predict(stored.history, call.step)
            return map_output(lambda _: predicted, stored.latest)
        stored.latest = network(call)
        require_one(stored.latest, "Profile")
        stored.history = self.blend.update(stored.history, prediction(stored.latest), call.step)
        return stored.latest


def sampler_of(scheduler: Any) -> tuple[str, str]:
    """Class name of a scheduler, and the hash of its configuration."""
    return type(scheduler).__name__, fingerprint_of(scheduler)


def require_sampler(scheduler: Any, expected: tuple[str, str], made: str, remedy: str) -> None:
    """Refuse another sampler than `expected`; a bare network has none, and is not checked.

    Args:
        scheduler: of the pipeline at hand, or None.
        expected: as `sampler_of` gave it.
        made: what was made for that sampler, as the start of the message.
        remedy: what to do, besides setting that scheduler.
    """
    found = expected if scheduler is None else sampler_of(scheduler)
    check(
        found == expected,
        f"{made} {expected[0]} in configuration {expected[1]}, and the pipeline's scheduler is {found[0]} in "
        f"configuration {found[1]}: set that scheduler, or {remedy}",
    )


def guidance_of_call() -> GuidanceScales:
    """The scales of guidance of the pipeline's call that is under way, where it tells them."""
    running = running_call()
    return () if running is None else running.guidance_scales


def require_guidance(expected: GuidanceScales, made: str, remedy: str) -> None:
    """Refuse another guidance than `expected`, of the pipeline's call that is under way, where it tells one.

    Args:
        expected: as `guidance_of_call` gave it.
        made: what was made for that guidance, as the start of the message.
        remedy: what to do, besides setting that guidance.
    """
    found = guidance_of_call()
    check(
        found in ((), expected),
        f"{made} {_written(expected)}, and this run has {_written(found)}: set that guidance, or {remedy}",
    )


def _written(guidance: GuidanceScales) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in guidance) or "no guidance that the pipeline tells"


def planned(recipe: Recipe, layout: Layout, forecast: Callable[[str], Forecast]) -> list[Part]:
    """The parts of a recipe.

    Args:
        forecast: of each part, by its name.
    """
    require_apart(recipe)
    spared = frozenset(recipe.at(OUTPUT))
    return [
        Part(act_of(what, layout), _Planned(frozenset(recipe.at(what)), recipe.total, spared), forecast(what))
        for what in recipe.parts
    ]


def require_apart(recipe: Recipe) -> None:
    """Refuse blocks that two ranges of one kind share, and single units within a range of units."""
    taken = set[tuple[str, int]]()
    targets = [Reuse(1, what).target for what in recipe.parts]
    for kind, numbers in targets:
        blocks = {(kind, i) for i in range(numbers[0], numbers[-1] + 1)} if kind in (BLOCKS, UNITS) else set()
        shared = {i for _, i in blocks & taken}
        check(not shared, f"the profile reuses block {min(shared, default=0)} in two ranges of {kind}")
        taken |= blocks
    for kind, numbers in targets:
        within = kind == UNIT and (UNITS, numbers[0]) in taken
        check(not within, f"the profile reuses a unit of block {numbers[0]} alone and within a range of units")


def act_of(what: str, layout: Layout) -> Act:
    """What `what` stands for in a network."""
    kind, numbers = Reuse(1, what).target
    if kind == BRANCH:
        whole(f"branch of {layout.model}", numbers[0], 0, len(layout.depths) - 1)
        return Replay(layout.depths[numbers[0]])
    whole(f"last block of {layout.model}", numbers[-1], 0, len(layout.blocks) - 1)
    blocks = layout.blocks[numbers[0] : numbers[-1] + 1]
    if kind == BLOCKS:
        return AddResidual(_ranges_of(numbers, layout))
    if kind == UNIT:
        return Replay(_unit(f"{blocks[0]}.{Reuse(1, what).module}", layout))
    inside = tuple(f"{block}." for block in blocks)
    return Replay(joined(unit for unit in layout.units if unit.branch.replayed[0].startswith(inside)))


def _ranges_of(numbers: tuple[int, ...], layout: Layout) -> Ranges:
    """The blocks from one number to another."""
    return Ranges((layout.blocks[numbers[0] : numbers[1] + 1],), each=layout.long_skips)


def unit_names(what: str, layout: Layout) -> tuple[str, ...]:
    """Each of the units of "units A-B" by its own name."""
    _, (first, last) = Reuse(1, what).target
    return tuple(
        f"{UNIT} {index}.{unit.branch.replayed[0].removeprefix(f'{block}.')}"
        for index, block in enumerate(layout.blocks)
        for unit in layout.units
        if first <= index <= last and unit.branch.replayed[0].startswith(f"{block}.")
    )


def _unit(module: str, layout: Layout) -> Branch:
    """The unit whose output leaves a module."""
    found = next((unit.branch for unit in layout.units if unit.branch.replayed[0] == module), None)
    if found is None:
        raise UnsupportedModelError(f"the profile reuses {module!r}, which is no attention or feed-forward network")
    return found


def _require_made_for(recipe: Recipe, layout: Layout) -> None:
    """Refuse a recipe of another network."""
    layout.require_made_for(recipe.model, recipe.fingerprint, "this profile was tuned on", "run diffaccel tune on it")
    if any(what.startswith(BRANCH) for what in recipe.parts) and not layout.depths:
        raise UnsupportedModelError(f"the profile names branches of a UNet; {layout.model} has none")
