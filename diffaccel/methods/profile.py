"""A tuned recipe: what each call computes and what it replays, with which weights; `diffaccel tune` writes it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch.profiler import record_function

from diffaccel.branch import Branch, Part
from diffaccel.clock import RunClock
from diffaccel.config import Config, StoredConfig, check, whole
from diffaccel.families.layout import Layout, UnsupportedModelError, fingerprint_of, joined
from diffaccel.forecast import Blend
from diffaccel.host import Host
from diffaccel.methods.base import Method
from diffaccel.residual import residual
from diffaccel.schedule import Call, Schedule
from diffaccel.signature import Inputs
from diffaccel.state import Context
from diffaccel.wrapper import Network, Wrapper, map_output

OUTPUT, BRANCH, BLOCKS, UNITS = "output", "branch", "blocks", "units"
COUNTS = {OUTPUT: 0, BRANCH: 1, BLOCKS: 2, UNITS: 2}  # of the numbers that follow each


@dataclass(frozen=True)
class Reuse(Config):
    """One thing that one network call reuses.

    Args:
        call: index of the call within the run, >= 1.
        what: "output" (the network does not run at all), "branch N" (what DeepCache's branch N skips), "blocks A-B"
            (transformer blocks A to B, which are counted from 0, add what they added before) or "units A-B" (the
            attentions and feed-forward networks within blocks A to B return what they returned before, as in
            IntervalCache, while norms, modulations and gates run).
        weights: of the last computed features, latest first; (1,) replays the latest unchanged.
    """

    call: int
    what: str
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        whole("call", self.call, 1)
        kind, numbers = self.target
        fits = COUNTS.get(kind) == len(numbers) and list(numbers) == sorted(numbers)
        check(fits, f"what must be 'output', 'branch N', 'blocks A-B' or 'units A-B'; got {self.what!r}")
        sound = bool(self.weights) and all(isinstance(w, int | float) and math.isfinite(w) for w in self.weights)
        check(sound, f"weights must be finite numbers, at least one; got {self.weights!r}")

    @property
    def target(self) -> tuple[str, tuple[int, ...]]:
        """`what`, taken apart: ("blocks", (2, 5)) for "blocks 2-5"."""
        kind, _, rest = self.what.partition(" ")
        parts = rest.split("-") if rest else []
        check(all(part.isdecimal() for part in parts), f"what must end with block or branch numbers; got {self.what!r}")
        return kind, tuple(int(part) for part in parts)


@dataclass(frozen=True)
class Evidence(Config):
    """What a recipe was measured to give, on prompts and seeds that the search did not see.

    Args:
        budget: what was asked for, such as "min_psnr 30".
        met: whether the budget holds on the held-out runs, too.
        macs: multiply-accumulates of the network in a run, divided by those of the plain pipeline.
        psnr, ssim: mean likeness to the plain pipeline's pictures, held out.
        search_psnr: the same on the calibration prompts.
        validation_psnr: the same on the prompts by which this recipe was chosen among the best that the search found.
        best_fixed: the fixed schedule of no higher cost whose held-out pictures were the most alike.
        best_fixed_psnr: its PSNR.
        runs: real runs of the pipeline in the search.
        seconds: of the whole tuning.
        account: what the search found out, in words.
    """

    budget: str
    met: bool
    macs: float
    psnr: float
    ssim: float
    search_psnr: float
    validation_psnr: float = 0.0
    best_fixed: str = ""
    best_fixed_psnr: float = 0.0
    runs: int = 0
    seconds: float = 0.0
    account: str = ""


@dataclass(frozen=True)
class Recipe(StoredConfig):
    """When what is reused, for one network, one sampler and one number of calls.

    Args:
        model: class name of the network.
        fingerprint: hash of its configuration.
        sampler: class name of the scheduler.
        sampler_fingerprint: hash of its configuration.
        total: network calls of a run.
        reuses: what is reused at each call; a call that is not named computes everything.
        evidence: what it was measured to give.
    """

    _origin: ClassVar[str] = "a profile written by diffaccel tune"

    model: str
    fingerprint: str
    sampler: str
    sampler_fingerprint: str
    total: int
    reuses: tuple[Reuse, ...]
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        whole("total", self.total, 1)
        seen = set()
        for reuse in self.reuses:
            check(isinstance(reuse, Reuse), f"reuses of a recipe must be Reuse; got {reuse!r}")
            check(reuse.call < self.total, f"the recipe names call {reuse.call}; the run has calls 0..{self.total - 1}")
            check((reuse.call, reuse.what) not in seen, f"the recipe names {reuse.what!r} at call {reuse.call} twice")
            seen.add((reuse.call, reuse.what))
        kind = None if self.evidence is None or isinstance(self.evidence, Evidence) else self.evidence
        check(kind is None, f"evidence of a recipe must be Evidence; got {kind!r}")

    def at(self, what: str) -> dict[int, tuple[float, ...]]:
        """The calls that reuse `what`, each with its weights."""
        return {reuse.call: reuse.weights for reuse in self.reuses if reuse.what == what}

    @property
    def parts(self) -> tuple[str, ...]:
        """All that is reused, the output aside, in an order that does not depend on the order of the recipe."""
        return tuple(sorted({reuse.what for reuse in self.reuses if reuse.what != OUTPUT}))


@dataclass(frozen=True)
class Profile(Method):
    """Follow a tuned recipe: which calls compute, from which branch or in which blocks, with which forecast.

    Made for one class and configuration of network, one sampler and one number of calls; anything else is refused. A
    bare network does not tell its sampler, which is then not checked.

    Args:
        recipe: the path of a profile that `diffaccel tune` wrote, or a `Recipe`.
    """

    recipe: str | Recipe

    def __post_init__(self) -> None:
        if isinstance(self.recipe, Path):
            object.__setattr__(self, "recipe", str(self.recipe))
        fits = isinstance(self.recipe, Recipe) or (isinstance(self.recipe, str) and self.recipe != "")
        check(fits, f"recipe must be the path of a profile, or a Recipe; got {self.recipe!r}")

    @property
    def loaded(self) -> Recipe:
        """The recipe, read from its file where a path was given."""
        return self.recipe if isinstance(self.recipe, Recipe) else Recipe.load(self.recipe)

    def parts(self, layout: Layout) -> list[Part]:
        """One part for each branch, range of blocks or range of units that is ever reused."""
        recipe = self.loaded
        _require_made_for(recipe, layout)
        return [Part(*planned) for planned in _planned(recipe, layout)]

    def companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:
        """What the denoiser will not read of a ControlNet, decided as in the denoiser."""
        recipe = self.loaded
        branches = [what for what in recipe.parts if what.startswith(BRANCH)]
        return [
            (
                Part(branch_of(what, layout), _Planned(frozenset(recipe.at(what)), recipe.total)),
                recipe.parts.index(what),
            )
            for what in branches
            if branch_of(what, layout).modules
        ]

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """Checks the sampler, and stands in for the network where its output is reused."""
        return _Outputs(self.loaded, host)


@dataclass(frozen=True)
class _Planned(Schedule):
    """Reuse at the listed calls of a run of exactly `total`."""

    reused: frozenset[int]
    total: int

    def should_compute(self, call: Call) -> bool:
        """False for the listed calls."""
        return call.index not in self.reused

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
    history: Any = field(default=None)


class _Outputs(Wrapper):
    """Returns a blend of the network's last outputs at the calls whose output is reused; the network does not run."""

    order = 9

    def __init__(self, recipe: Recipe, host: Host) -> None:
        self.recipe = recipe
        self.host = host
        self.weights = recipe.at(OUTPUT)
        self.blend = Blend(self.weights)

    def start_run(self, clock: RunClock) -> None:
        """Refuse another sampler, and another number of calls."""
        _Planned(frozenset(), self.recipe.total).validate(clock.total)
        if self.host.scheduler is None:
            return
        expected = self.recipe.sampler, self.recipe.sampler_fingerprint
        found = sampler_of(self.host.scheduler)
        check(
            found == expected,
            f"the profile was tuned with {expected[0]} in configuration {expected[1]}, and the pipeline's scheduler is "
            f"{found[0]} in configuration {found[1]}: set that scheduler, or tune again with this one",
        )

    def around(self, context: Context, network: Network, inputs: Inputs) -> Any:
        """One network call, or none."""
        if not self.weights:
            return network(inputs)
        stored = context.memory.setdefault(self, _Stored())
        if context.step in self.weights and stored.history is not None:
            with record_function("diffaccel: replay output"):
                predicted = self.blend.predict(stored.history, context.step)
            return map_output(lambda _: predicted, stored.latest)
        stored.latest = network(inputs)
        stored.history = self.blend.update(stored.history, prediction(stored.latest), context.step)
        return stored.latest


def prediction(output: Any) -> Any:
    """What a network predicts: the first value of its output."""
    if isinstance(output, Mapping):
        return next(iter(output.values()))
    return output[0] if isinstance(output, tuple) else output


def sampler_of(scheduler: Any) -> tuple[str, str]:
    """Class name of a scheduler, and the hash of its configuration."""
    return type(scheduler).__name__, fingerprint_of(scheduler)


def _planned(recipe: Recipe, layout: Layout) -> list[tuple[Branch, Schedule, Blend]]:
    """The parts of a recipe; blocks that two of its ranges of one kind share are refused."""
    found: list[tuple[Branch, Schedule, Blend]] = []
    taken = set[tuple[str, int]]()
    for what in recipe.parts:
        kind, numbers = Reuse(1, what).target
        blocks = {(kind, i) for i in range(numbers[0], numbers[-1] + 1)} if kind in (BLOCKS, UNITS) else set()
        shared = {i for _, i in blocks & taken}
        check(not shared, f"the profile reuses block {min(shared, default=0)} in two ranges of {kind}")
        taken |= blocks
        weights = recipe.at(what)
        found.append((branch_of(what, layout), _Planned(frozenset(weights), recipe.total), Blend(weights)))
    return found


def branch_of(what: str, layout: Layout) -> Branch:
    """What `what` stands for in a network."""
    kind, numbers = Reuse(1, what).target
    if kind == BRANCH:
        whole(f"branch of {layout.model}", numbers[0], 0, len(layout.depths) - 1)
        return layout.depths[numbers[0]]
    whole(f"last block of {layout.model}", numbers[1], 0, len(layout.blocks) - 1)
    blocks = layout.blocks[numbers[0] : numbers[1] + 1]
    if kind == BLOCKS:
        return residual([blocks], rows_apart=layout.rows_apart, each=layout.long_skips)
    return joined(unit for unit in layout.units if unit.branch.replayed[0].startswith(tuple(f"{b}." for b in blocks)))


def _require_made_for(recipe: Recipe, layout: Layout) -> None:
    """Refuse a recipe of another network."""
    if (recipe.model, recipe.fingerprint) != (layout.model, layout.fingerprint):
        raise ValueError(
            f"this profile was tuned on {recipe.model} with configuration {recipe.fingerprint}, and the network is "
            f"{layout.model} with configuration {layout.fingerprint}: run diffaccel tune on it"
        )
    if any(what.startswith(BRANCH) for what in recipe.parts) and not layout.depths:
        raise UnsupportedModelError(f"the profile names branches of a UNet; {layout.model} has none")
