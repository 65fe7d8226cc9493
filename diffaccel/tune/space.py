"""The choices of a search: what each network call computes, and how what it reuses is carried forward."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise

from diffaccel.families import Layout, UnsupportedModelError
from diffaccel.methods.profile import OUTPUT, Recipe, Reuse
from diffaccel.schedule import Steps, Uniform, quadratic_steps
from diffaccel.tune.blend import Gram, blend

BRANCHES = 4
GROUPS = 8
ORDER = 3  # most features in a blend


@dataclass(frozen=True)
class Choice:
    """What one call reuses: names of parts, none where it computes everything; and how many features are blended."""

    reused: tuple[str, ...] = ()
    order: int = 2


COMPUTE = Choice()
Plan = tuple[Choice, ...]  # one choice per call, the first of them COMPUTE


@dataclass(frozen=True)
class Space:
    """What may be reused in one network, and what that saves.

    Attributes:
        layout: the network's parts.
        parts: names of the reusable parts, the output aside: branches of a UNet, or groups of transformer blocks.
        saved: fraction of a call's multiply-accumulates that reusing a part saves; that of the output is 1.
        grams: how the features of each part resemble each other over the calls of a run.
    """

    layout: Layout
    parts: tuple[str, ...]
    saved: Mapping[str, float] = field(default_factory=dict)
    grams: Mapping[str, Gram] = field(default_factory=dict)

    @property
    def nested(self) -> bool:
        """Whether parts lie within each other, so that a call reuses one of them at most."""
        return bool(self.layout.depths)

    @property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """What a call may reuse, the least first; single groups of blocks and runs of them."""
        if self.nested:
            return ((), *((part,) for part in self.parts), (OUTPUT,))
        count = len(self.parts)
        runs = {self.parts[a:b] for a in range(count) for b in range(a + 1, count + 1)}
        return ((), *sorted(runs, key=lambda run: (len(run), run)), (OUTPUT,))

    def macs(self, plan: Plan) -> float:
        """Cost of a plan as a fraction of computing everything."""
        return sum(1 - sum(self.saved[name] for name in choice.reused) for choice in plan) / len(plan)

    def recipe(self, plan: Plan, sampler: tuple[str, str]) -> Recipe:
        """A plan with its weights, as a method takes it."""
        reuses = [
            Reuse(call, name, blend(self.grams[name], call, sources))
            for call, choice in enumerate(plan)
            for name, sources in self.sources(plan, call).items()
        ]
        return Recipe(self.layout.model, self.layout.fingerprint, *sampler, len(plan), tuple(reuses))

    def sources(self, plan: Plan, call: int) -> dict[str, list[int]]:
        """For each part that a call reuses, the calls whose features are blended, the latest first."""
        order = plan[call].order
        return {
            name: list(islice((s for s in range(call - 1, -1, -1) if self._fresh(name, plan[s])), order))
            for name in plan[call].reused
        }

    def _fresh(self, name: str, choice: Choice) -> bool:
        """Whether a call computes a part anew: in nested parts that is so, too, where a deeper one is reused."""
        if name in choice.reused or OUTPUT in choice.reused:
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
    return Space(layout, tuple(f"blocks {a}-{b - 1}" for a, b in pairwise(edges)))


def fixed_plans(space: Space, total: int) -> Iterator[Plan]:
    """Every fixed schedule as a plan: uniform and quadratic, of each choice of parts, held and blended."""
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
            for order in range(1, ORDER + 1):
                yield plan_of(computed, Choice(reused, order), total)


def plan_of(computed: Sequence[int], choice: Choice, total: int) -> Plan:
    """The plan that computes some calls, and makes one choice at all others."""
    steps = Steps(tuple(computed)).steps
    return tuple(COMPUTE if call in steps else choice for call in range(total))


def neighbours(space: Space, plan: Plan) -> Iterator[Plan]:
    """Plans that differ in one call, in the order of one blend, or in two calls that change places."""
    for call in range(1, len(plan)):
        for reused in space.choices:
            if reused != plan[call].reused:
                yield changed(plan, {call: Choice(reused, max(2, plan[call].order)) if reused else COMPUTE})
        for order in range(1, ORDER + 1) if plan[call].reused else ():
            if order != plan[call].order:
                yield changed(plan, {call: replace(plan[call], order=order)})
        for other in range(call + 1, len(plan)):
            if plan[call] != plan[other]:
                yield changed(plan, {call: plan[other], other: plan[call]})


def changed(plan: Plan, changes: Mapping[int, Choice]) -> Plan:
    """A plan with other choices at some calls."""
    return tuple(changes.get(call, choice) for call, choice in enumerate(plan))
