"""The choices of a search: what each network call computes, and how what it reuses is carried forward."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from diffaccel.methods.profile import act_of
from diffaccel.methods.recipe import BLOCKS, OUTPUT, UNITS, GuidanceScales, Recipe, Reuse
from diffaccel.networks import Layout, UnsupportedModelError
from diffaccel.reuse.schedule import Steps, Uniform
from diffaccel.reuse.spacing import quadratic_steps
from diffaccel.tune.blend import Gram, blend, taylor

BRANCHES = 4
GROUPS = 8
ORDER = 3  # most features in a blend
WAYS = ((1, False), (2, False), (3, False), (2, True), (3, True))  # features of a blend, and whether a Taylor expansion


@dataclass(frozen=True)
class Choice:
    """What one call reuses, and how.

    Attributes:
        reused: names of parts, none where the call computes everything.
        order: most features that are blended.
        taylor: whether their weights are those of a Taylor expansion of order `order` - 1, not the least-squares ones.
    """

    reused: tuple[str, ...] = ()
    order: int = 2
    taylor: bool = False


COMPUTE = Choice()
CallPlan = tuple[Choice, ...]  # one choice per call, the first of them COMPUTE


@dataclass(frozen=True)
class Space:
    """What may be reused in one network, and what that saves.

    Attributes:
        layout: the network's parts.
        parts: names of the reusable parts, the output aside: branches of a UNet; or groups of transformer blocks, and
            the attentions and feed-forward networks within each group.
        saved: fraction of a call's multiply-accumulates that reusing a part saves; that of the output is 1.
        grams: how the features of each part resemble each other over the calls of a run.
        guidance: scales of guidance of these runs, by name.
    """

    layout: Layout
    parts: tuple[str, ...]
    saved: Mapping[str, float] = field(default_factory=dict)
    grams: Mapping[str, Gram] = field(default_factory=dict)
    guidance: GuidanceScales = ()
    _known: dict[Choice, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def nested(self) -> bool:
        """Whether parts lie within each other, so that a call reuses one of them at most."""
        return bool(self.layout.depths)

    @property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """What a call may reuse, the least first; groups of blocks and runs of them, or all units within blocks."""
        if self.nested:
            return ((), *((part,) for part in self.parts), (OUTPUT,))
        blocks, units = self.of(BLOCKS), self.of(UNITS)
        runs = {blocks[a:b] for a in range(len(blocks)) for b in range(a + 1, len(blocks) + 1)}
        inside = (units,) if units else ()
        return ((), *sorted(runs, key=lambda run: (len(run), run)), *inside, (OUTPUT,))

    @property
    def wholes(self) -> tuple[tuple[str, ...], ...]:
        """Of these what fixed settings reuse: a branch, all blocks, all units within them, or the output."""
        if self.nested:
            return self.choices[1:]
        return (*(kind for kind in (self.of(UNITS), self.of(BLOCKS)) if kind), (OUTPUT,))

    def of(self, kind: str) -> tuple[str, ...]:
        """The parts of one kind."""
        return tuple(part for part in self.parts if part.startswith(kind))

    def macs(self, plan: CallPlan) -> float:
        """Cost of a plan as a fraction of computing everything."""
        return sum(1 - sum(self.saved[name] for name in choice.reused) for choice in plan) / len(plan)

    def recipe(self, plan: CallPlan, sampler: tuple[str, str]) -> Recipe:
        """A plan with its weights, as a method takes it."""
        reuses = [
            Reuse(call, name, self.weights(name, call, sources, plan[call].taylor))
            for call, reused in enumerate(self.sources(plan))
            for name, sources in reused.items()
        ]
        network = self.layout.model, self.layout.fingerprint
        return Recipe(*network, *sampler, len(plan), tuple(reuses), guidance=self.guidance)

    def weights(self, name: str, call: int, sources: Sequence[int], expanded: bool) -> tuple[float, ...]:
        """The weights of a part's features of some calls, the latest first: of a Taylor expansion, or least squares."""
        return taylor(call, sources) if expanded else blend(self.grams[name], call, sources)

    def sources(self, plan: CallPlan) -> list[dict[str, tuple[int, ...]]]:
        """For each call, and each part that it reuses, the calls whose features are blended, the latest first."""
        found: list[dict[str, tuple[int, ...]]] = []
        known: dict[str, tuple[int, ...]] = dict.fromkeys((*self.parts, OUTPUT), ())
        for call, choice in enumerate(plan):
            found.append({name: known[name][: choice.order] for name in choice.reused})
            for name in self._fresh(choice):
                known[name] = (call, *known[name][: ORDER - 1])
        return found

    def _fresh(self, choice: Choice) -> tuple[str, ...]:
        """Parts that a call computes anew: those, too, within which something is reused, or a deeper branch is."""
        if choice not in self._known:
            self._known[choice] = tuple(name for name in (*self.parts, OUTPUT) if self._is_fresh(name, choice))
        return self._known[choice]

    def _is_fresh(self, name: str, choice: Choice) -> bool:
        """Whether a part is among them."""
        if name in choice.reused or OUTPUT in choice.reused or name.replace(UNITS, BLOCKS) in choice.reused:
            return False
        if not self.nested or name == OUTPUT or not choice.reused:
            return True
        return self.parts.index(choice.reused[0]) > self.parts.index(name)


def space_of(layout: Layout) -> Space:
    """The space of one network.

    Raises:
        UnsupportedModelError: if it has neither branches nor transformer blocks.
    """
    if layout.depths:
        usable = [i for i, branch in enumerate(layout.depths) if branch.modules]
        return Space(layout, tuple(f"branch {i}" for i in usable[:BRANCHES]))
    if not layout.blocks:
        raise UnsupportedModelError(f"tune needs a UNet, or a transformer made of blocks; {layout.model} is neither")
    count = len(layout.blocks)
    edges = [round(i * count / min(count, GROUPS)) for i in range(min(count, GROUPS) + 1)]
    ranges = [f"{a}-{b - 1}" for a, b in pairwise(edges)]
    units = tuple(f"{UNITS} {r}" for r in ranges)
    known = all(act_of(name, layout).modules for name in units)
    return Space(layout, tuple(f"{BLOCKS} {r}" for r in ranges) + (units if known else ()))


def fixed_plans(space: Space, total: int) -> Iterator[CallPlan]:
    """Every fixed schedule as a plan: uniform and quadratic, of each choice of parts, held, blended and expanded."""
    uniform = {tuple(Uniform(n).computed(total)) for n in range(2, total + 1)}
    spreads = uniform | {tuple(sorted({*computed, total - 1})) for computed in uniform}  # IntervalCache's: and the last
    for interval in range(2, min(total, 8) + 1):
        for center in {total // 4, total * 15 // 50, total // 2}:
            try:
                spreads.add(quadratic_steps(total, interval, center, 1.4))
            except ValueError:  # no such spacing of so few calls
                continue
    for computed in sorted(spreads):
        for reused in space.choices[1:]:
            for way in WAYS:
                yield plan_of(computed, Choice(reused, *way), total)


def uniform_plans(choice: Choice, total: int) -> Iterator[CallPlan]:
    """A choice at all calls but every n-th, for every n."""
    for interval in range(2, total + 1):
        yield plan_of(tuple(Uniform(interval).computed(total)), choice, total)


def plan_of(computed: Sequence[int], choice: Choice, total: int) -> CallPlan:
    """The plan that computes some calls, and makes one choice at all others."""
    steps = Steps(tuple(computed)).steps
    return tuple(COMPUTE if call in steps else choice for call in range(total))


def neighbours(space: Space, plan: CallPlan) -> Iterator[CallPlan]:
    """Plans that differ in what one call reuses, in the weights of one call, or in two calls that change places."""
    for call in range(1, len(plan)):
        for reused in space.choices:
            if reused != plan[call].reused:
                other = replace(plan[call], reused=reused, order=max(2, plan[call].order))
                yield changed(plan, {call: other if reused else COMPUTE})
        for way in WAYS if plan[call].reused else ():
            if way != (plan[call].order, plan[call].taylor):
                yield changed(plan, {call: Choice(plan[call].reused, *way)})
        for later in range(call + 1, len(plan)):
            if plan[call] != plan[later]:
                yield changed(plan, {call: plan[later], later: plan[call]})


def changed(plan: CallPlan, changes: Mapping[int, Choice]) -> CallPlan:
    """A plan with other choices at some calls."""
    return tuple(changes.get(call, choice) for call, choice in enumerate(plan))
