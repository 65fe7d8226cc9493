"""Search: start from every fixed schedule, let the model of errors propose, and let real runs decide."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from diffaccel.config.words import counted
from diffaccel.tune.budget import LIMITS, Budget, Score
from diffaccel.tune.minimax import minimax_steps
from diffaccel.tune.model import Manner, manner
from diffaccel.tune.probing import Calibrated
from diffaccel.tune.space import (
    COMPUTE,
    CallPlan,
    Choice,
    changed,
    fixed_plans,
    neighbours,
    plan_of,
    uniform_plans,
)

STARTS = 14  # most fixed schedules that are run
EXPANDED, OTHERS = (2, True), ((2, False), (3, True))  # ways in which uniform schedules are tried, the first on all
CONTENDERS = 2  # parts that are tried in the other ways, too
POLISHED = 2  # of these the best are improved in the model first
MODEL_ROUNDS = 40
PRICES = (160.0, 80.0, 40.0, 25.0, 15.0, 8.0)  # dB for the cost of one plain run
PATIENCE = 14  # real runs in a row that bring nothing, after which the search ends
DEEP, WIDE = 6, 2500  # neighbours run per round, and plans looked at per round


@dataclass
class Found:
    """What a search found, and how it went.

    Attributes:
        plan, score: the best, and how it did.
        start: how the best fixed schedule did.
        starts: the fixed schedules that were run, the best first.
        tried, accepted, misses: plans run, those of them that were kept, and how far the model was off, dB.
    """

    plan: CallPlan
    score: Score
    start: Score
    starts: tuple[CallPlan, ...]
    tried: int = 0
    accepted: int = 0
    misses: list[float] = field(default_factory=list)

    @property
    def account(self) -> str:
        """How it went, in words."""
        miss = f"; the model missed by {np.mean(np.abs(self.misses)):.1f} dB on average" if self.misses else ""
        return (
            f"the best fixed start gave {self.start.psnr:.1f} dB at {self.start.macs:.0%} of the cost, the search "
            f"{self.score.psnr:.1f} dB at {self.score.macs:.0%}; {counted(self.tried, 'candidate')} run, "
            f"{self.accepted} improved on the one before{miss}"
        )


def search(known: Calibrated, budget: Budget, runs: int, progress: Callable[[str], None]) -> Found:
    """The best plan for a budget within a number of real runs.

    Args:
        known: from `calibrate`.
        budget: what is asked for; a time must have been turned into a cost.
        runs: most real runs.
        progress: told about every improvement.
    """
    seeker = _Seeker(known, budget)
    starts = seeker.starts(min(STARTS, runs // 2))
    found = _best(seeker, starts)
    for plan in seeker.ranked(starts)[:POLISHED]:
        _take(seeker, found, seeker.polished(plan), progress)
    failures = 0
    while found.tried < runs and failures < PATIENCE:
        proposals = list(islice(seeker.proposals(found.plan), DEEP))
        if not proposals:
            break
        for plan in proposals:
            taken = _take(seeker, found, plan, progress)
            failures = 0 if taken else failures + 1
            if taken or found.tried >= runs:
                break
    return found


def _best(seeker: "_Seeker", starts: list[CallPlan]) -> Found:
    """The best of the fixed schedules, all of them run."""
    ranked = seeker.ranked(starts)
    score = seeker.run(ranked[0])
    return Found(ranked[0], score, score, tuple(ranked), tried=len(starts))


def _take(seeker: "_Seeker", found: Found, plan: CallPlan, progress: Callable[[str], None]) -> bool:
    """Run a plan, and keep it if it is better; whether it was."""
    if seeker.known.bench.knows(plan):
        return False
    expected = seeker.expected(plan, found.plan)
    score = seeker.run(plan)
    found.tried += 1
    found.misses.append(expected.psnr - score.psnr)
    if seeker.budget.key(score) <= seeker.budget.key(found.score):
        return False
    found.plan, found.score, found.accepted = plan, score, found.accepted + 1
    progress(f"{score.psnr:.2f} dB at {score.macs:.1%} of the cost, after {counted(found.tried, 'run')}")
    return True


class _Seeker:
    """Expected and real scores of plans."""

    def __init__(self, known: Calibrated, budget: Budget) -> None:
        self.known = known
        self.budget = budget
        self.total = len(next(iter(known.space.grams.values())))
        self._model: dict[CallPlan, float] = {}
        self._scales: dict[Manner, float] = {}

    def run(self, plan: CallPlan) -> Score:
        """The real score."""
        return self.known.bench.score(self.known.space, plan)

    def expected(self, plan: CallPlan, near: CallPlan | None = None) -> Score:
        """The model's score, set right by that of a plan nearby which was run."""
        decibels = self._psnr(plan)
        if near is not None and self.known.bench.knows(near):
            decibels += self.run(near).psnr - self._psnr(near)
        return Score(self.known.space.macs(plan), decibels, self._ssim(decibels))

    def starts(self, count: int) -> list[CallPlan]:
        """Fixed schedules, all of them run: uniform ones, and then those of any kind that promise most.

        The uniform ones are what the published methods do, each part with a Taylor expansion of order 1, the best parts
        in other ways, too, and the best of all with the last call computed. They also show what errors count where all
        calls make the same ones. Then come the minimax paths of the best parts. To compute everything is a start where
        it can be afforded.
        """
        wholes = self.known.space.wholes
        found = self._learned(self._uniform(Choice(reused, *EXPANDED)) for reused in wholes[:count])
        best = [next(choice for choice in plan if choice.reused).reused for plan in self.ranked(found)[:CONTENDERS]]
        others = [self._uniform(Choice(reused, *way)) for reused in best for way in OTHERS]
        found += self._learned(others[: count - len(found)])
        closed = [changed(plan, {self.total - 1: COMPUTE}) for plan in self.ranked(found)[:1]]
        found += [plan for plan in closed if plan not in found and self._affordable(plan)]
        paths = (self._minimax(Choice(reused, *EXPANDED)) for reused in best)
        found += [plan for plan in paths if plan is not None and plan not in found][: max(0, count - len(found))]
        promising = (plan for plan in self._promising() if plan not in found)
        found += islice(promising, max(0, count - len(found)))
        return [*found, *filter(self._affordable, [(COMPUTE,) * self.total])]

    def _minimax(self, choice: Choice) -> CallPlan | None:
        """The minimax path of a choice, in a graph of what each stretch of reused calls was found to cost alone."""
        stretches = [(a, b) for a in range(self.total) for b in range(a + 1, self.total + 1)]
        alone = {
            (a, b): plan_of([call for call in range(self.total) if not a < call < b], choice, self.total)
            for a, b in stretches
        }
        weights = {edge: -self._psnr(plan) for edge, plan in alone.items()}
        plans = (plan_of(steps, choice, self.total) for steps in minimax_steps(weights, self.total).values())
        return max(filter(self._affordable, plans), key=lambda plan: self.budget.key(self.expected(plan)), default=None)

    def ranked(self, plans: list[CallPlan]) -> list[CallPlan]:
        """Plans by their real runs, the best first."""
        return sorted(plans, key=lambda plan: self.budget.key(self.run(plan)), reverse=True)

    def _uniform(self, choice: Choice) -> CallPlan | None:
        """The uniform schedule of a choice that promises most; None if none can be afforded."""
        plans = filter(self._affordable, uniform_plans(choice, self.total))
        return max(plans, key=lambda plan: self.budget.key(self.expected(plan)), default=None)

    def _learned(self, plans: Iterable[CallPlan | None]) -> list[CallPlan]:
        """The plans that there are, after they were run and the model was set right by them."""
        found = [plan for plan in plans if plan is not None]
        for plan in found:
            self._scales |= self.known.model.scale(plan, self.run(plan).psnr)
        self._model.clear()
        return found

    def _promising(self) -> list[CallPlan]:
        """Of each kind of fixed schedule the one that promises most in each manner, the best of these first."""
        kinds: dict[tuple[tuple[str, ...], Manner], CallPlan] = {}
        for plan in filter(self._affordable, fixed_plans(self.known.space, self.total)):
            choice = next(choice for choice in plan if choice.reused)
            kind = choice.reused, manner(choice)
            kinds[kind] = max(kinds.get(kind, plan), plan, key=lambda p: self.budget.key(self.expected(p)))
        return sorted(kinds.values(), key=lambda plan: self.budget.key(self.expected(plan)), reverse=True)

    def polished(self, plan: CallPlan) -> CallPlan:
        """A plan improved step by step in the model alone."""

        def key(other: CallPlan) -> tuple[float, ...]:
            return self.budget.key(self.expected(other, plan))

        found = max((p for p in self._traded(plan) if self._affordable(p)), key=key)
        for _ in range(MODEL_ROUNDS):
            best = max(self._reachable(found), key=key, default=found)
            if key(best) <= key(found):
                break
            found = best
        return found

    def _traded(self, plan: CallPlan) -> list[CallPlan]:
        """Plans on the way from one to the best at each of several prices, at which quality is traded for cost."""
        passed = [plan]
        for price in PRICES:

            def worth(other: CallPlan, price: float = price) -> float:
                return self._psnr(other) - price * self.known.space.macs(other)

            for _ in range(MODEL_ROUNDS):
                best = max(neighbours(self.known.space, passed[-1]), key=worth)
                if worth(best) <= worth(passed[-1]) + 1e-9:
                    break
                passed.append(best)
        return passed

    def proposals(self, plan: CallPlan) -> Iterator[CallPlan]:
        """Plans near one that were not run, the most promising first."""
        unseen = [other for other in self._reachable(plan) if not self.known.bench.knows(other)]
        yield from sorted(unseen, key=lambda p: self.budget.key(self.expected(p, plan)), reverse=True)

    def _reachable(self, plan: CallPlan) -> Iterable[CallPlan]:
        """Affordable plans near one."""
        return islice((other for other in neighbours(self.known.space, plan) if self._affordable(other)), WIDE)

    def _affordable(self, plan: CallPlan) -> bool:
        """Whether a plan keeps a limit of cost; one of quality is for runs to say."""
        return self.budget.wants_quality or self.known.space.macs(plan) <= self.budget.limit + 1e-9

    def _psnr(self, plan: CallPlan) -> float:
        if plan not in self._model:
            self._model[plan] = self.known.model.psnr(plan, self._scales)
        return self._model[plan]

    def _ssim(self, decibels: float) -> float:
        """The SSIM that goes with a PSNR, between the real scores so far."""
        scores = sorted({(score.psnr, score.ssim) for score in self.known.bench.scores})
        if not scores:
            return 1 - 10 ** (-decibels / 20)
        return float(np.interp(decibels, [p for p, _ in scores], [s for _, s in scores]))


def tightened(searched: Budget, asked: Budget, score: Score) -> Budget:
    """The searched quality raised by what a held-out run fell short of the one that was asked for, or to the most."""
    _, most = LIMITS[asked.name]
    return replace(searched, **{asked.name: min(most, searched.limit + asked.limit - asked.quality(score))})
