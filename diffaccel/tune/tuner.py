"""Tune: calibrate once, search for a budget, choose among the best found, confirm; each on prompts of its own."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from diffaccel.attach.handle import accelerate
from diffaccel.config.checks import check, whole
from diffaccel.config.files import write_atomically
from diffaccel.measure.quality import Quality, compare
from diffaccel.measure.timing import interleaved
from diffaccel.measure.workload import other_seeds
from diffaccel.methods.base import Method
from diffaccel.methods.network_switch import NetworkSwitch
from diffaccel.methods.profile import Profile, sampler_of
from diffaccel.methods.recipe import OUTPUT, Evidence, Recipe
from diffaccel.tune.baselines import Baseline, FixedSettings, best, screening
from diffaccel.tune.budget import Budget, BudgetError, Score
from diffaccel.tune.probing import Bench, Calibrated, calibrate
from diffaccel.tune.refine import Refinement, refine
from diffaccel.tune.search import Found, search, tightened
from diffaccel.tune.space import CallPlan, Choice, plan_of
from diffaccel.tune.split import CALIBRATION, split

log = logging.getLogger(__name__)
FINALISTS, FIXED_FINALISTS = 4, 2  # the best of all plans run, and of fixed schedules, that are run for validation
REFINING_SEEDS = 3  # of noise, for each prompt that was searched on
RETRIES = 2  # searches for more, where the held-out pictures fall short of a quality, or the clock of a time


@dataclass(frozen=True)
class Tuned:
    """A recipe with its evidence, and the fixed settings that it was held against.

    Attributes:
        recipe: what to do.
        score: of the recipe, held out.
        fixed: the fixed settings, held out.
        winner: the fixed setting that does better than what was found, if any does: it holds a quality at a lower
            cost, or at any where what was found holds none, or is more alike at no higher cost, on the pictures that
            choose and on those that confirm. It is the result then.
        floor: likeness of the held-out pictures to the plain pipeline's at other seeds.
    """

    recipe: Recipe
    score: Score
    fixed: tuple[Baseline, ...]
    winner: Baseline | None
    floor: Quality

    @property
    def met(self) -> bool:
        """Whether the budget holds on the held-out runs."""
        return self.winner is not None or (self.recipe.evidence is not None and self.recipe.evidence.met)

    def save(self, path: str | Path) -> None:
        """Write the result as a profile: the recipe, or the fixed setting that does better.

        Fewer steps are written as a recipe for that number of steps which reuses nothing.
        """
        if self.winner is None:
            self.recipe.save(path)
        elif self.winner.steps is not None:
            assert self.winner.calls is not None
            fewer = replace(self.recipe, total=self.winner.calls, reuses=(), evidence=self._evidence(self.winner))
            fewer.save(path)
        else:
            assert self.winner.method is not None
            values = {"methods": [self.winner.method.to_dict()], "evidence": self._evidence(self.winner).to_dict()}
            write_atomically(path, json.dumps(values, indent=1) + "\n")

    def _evidence(self, winner: Baseline) -> Evidence:
        """What was measured of the fixed setting that is the result."""
        assert self.recipe.evidence is not None
        own, score = self.recipe.evidence, winner.score
        account = f"the fixed setting {winner.name} does better than what was found: {own.account}"
        figures = {name: round(getattr(score, name), 5) for name in ("macs", "psnr", "ssim")}
        effort = {name: getattr(own, name) for name in ("runs", "seconds", "settings")}
        return Evidence(own.budget, met=True, **figures, search_psnr=0.0, account=account, **effort)


class Tuner:
    """Tunes one pipeline for any number of budgets; what was run for one serves the others.

    Args:
        pipe: a pipeline with one denoiser that takes prompts, with the sampler to tune for.
        prompts: the first are searched on, the last third, 16 at most, is held out, and as many as that before them, 8
            at most, choose among the best found. Fewer than three serve twice, with other noise.
        seed: of calibration; validation has seeds seed + 1 and seed + 2, held-out pictures have seed + 3.
        runs: most real runs per search, >= 10.
        calibration: most prompts that the search runs, >= 1.
        refinement: how the blend weights of the best plan are refined by gradient, on the prompts that were searched on
            with noise of three further seeds; None leaves them as the search found them. The result is kept where the
            pictures that choose say that it is better.
        small: a small network that may take a run's first calls, as of `NetworkSwitch`; tried as a fixed setting.
        progress: told what is being done.
        settings: arguments of the pipeline, num_inference_steps among them.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        runs: int = 40,
        calibration: int = CALIBRATION,
        refinement: Refinement | None = None,
        small: str | None = None,
        progress: Callable[[str], None] = log.info,
        **settings: Any,
    ) -> None:
        check(bool(prompts), "tune needs at least one prompt; got none")
        check("num_inference_steps" in settings, "tune needs num_inference_steps: a recipe is for one number of steps")
        whole("num_inference_steps", settings["num_inference_steps"], 3)
        whole("runs", runs, 10)
        whole("calibration", calibration, 1)
        if small is not None:
            with accelerate(pipe, NetworkSwitch(small)):  # one that does not fit is told before anything runs
                pass
        self.pipe = pipe
        self.runs = runs
        self.seed = seed
        self.refinement, self.small = refinement, small
        self.progress = progress
        self.split = split(prompts, seed, calibration, settings)

    @cached_property
    def known(self) -> Calibrated:
        """The calibration, made on first use."""
        return calibrate(self.pipe, self.split.seen, self.progress)

    @cached_property
    def validation(self) -> Bench:
        """Runs plans on prompts and seeds that the search does not see."""
        return Bench(self.pipe, self.split.validation, self.split.validation.pictures(self.pipe))

    @cached_property
    def held_out(self) -> Bench:
        """Runs plans on prompts and seeds that nothing is chosen by."""
        return Bench(self.pipe, self.split.held_out, self.split.held_out.pictures(self.pipe))

    @cached_property
    def fixed(self) -> FixedSettings:
        """The fixed settings, on the held-out workload."""
        return FixedSettings(self.pipe, self.held_out, self.known.space, screening(self.validation), self.small)

    @cached_property
    def floor(self) -> Quality:
        """How far two seeds are apart on the held-out prompts."""
        return compare(other_seeds(self.split.held_out).pictures(self.pipe), self.held_out.plain)

    def tune(self, budget: Budget) -> Tuned:
        """The recipe for a budget, with its evidence; see `Tuned.met` for whether the budget could be met.

        Raises:
            BudgetError: if no schedule at all keeps a limit of cost.
        """
        start, runs = time.perf_counter(), self.known.bench.runs
        asked = self._as_cost(budget)
        found, plan = self._chosen(asked, self.runs)
        stricter = self._stricter(asked, budget, plan)
        for _ in range(RETRIES):
            if stricter is None:
                break
            self.progress(f"{budget} does not hold in the held-out runs: searching for {stricter}")
            asked = stricter
            found, plan = self._chosen(asked, self.runs // 2)
            stricter = self._stricter(asked, budget, plan)
        cost = self.known.space.macs(plan)
        searched = self.known.space.recipe(plan, sampler_of(self.pipe.scheduler))
        recipe, gain = self._refined(searched, cost, asked)
        missed = budget.wants_quality and not budget.holds(self.held_out.score_of(recipe, cost))
        late = recipe != searched and not self._in_time(budget, Profile(recipe))
        if stricter is None and (missed or late):
            recipe, gain = searched, 0.0  # which keeps the limit
        score = self.held_out.score_of(recipe, cost)
        met = stricter is None if budget.name == "max_time" else budget.holds(score)
        self.progress("running the fixed settings of no higher cost")
        fixed = self.fixed.within(score.macs if asked.wants_quality else max(score.macs, asked.limit))
        rival = best(fixed)
        evidence = Evidence(
            budget=str(budget),
            met=met,
            macs=round(score.macs, 5),
            psnr=round(score.psnr, 5),
            ssim=round(score.ssim, 5),
            search_psnr=round(self.known.bench.score(self.known.space, plan).psnr, 5),
            validation_psnr=round(self.validation.score_of(recipe, cost).psnr, 5),
            refined=round(gain, 5),
            best_fixed=rival.name if rival else "",
            best_fixed_psnr=round(rival.score.psnr, 5) if rival else 0.0,
            runs=self.known.bench.runs - runs,
            seconds=round(time.perf_counter() - start, 1),
            account=_account(found, found.plan == plan, gain, score, rival),
            settings=", ".join(f"{name}={value}" for name, value in self.split.seen.settings.items()),
        )
        winner = self._winner(asked if budget.name == "max_time" else budget, recipe, score, rival)
        if winner is not None and not self._in_time(budget, *winner.methods, **winner.changes):
            self.progress(f"the fixed setting {winner.name} does better, and takes longer than {budget}")
            winner = None
        return Tuned(replace(recipe, evidence=evidence), score, tuple(fixed), winner, self.floor)

    def _refined(self, recipe: Recipe, cost: float, budget: Budget) -> tuple[Recipe, float]:
        """A recipe with refined weights where validation confirms them, and the dB that they add there."""
        if self.refinement is None:
            return recipe, 0.0
        seen = self.split.seen
        workload = replace(seen, seeds=tuple(self.seed + 4 + index for index in range(REFINING_SEEDS)))
        refined = refine(self.pipe, recipe, workload, self.refinement, seed=self.seed, progress=self.progress)
        before, after = (self.validation.score_of(one, cost) for one in (recipe, refined))
        kept = budget.quality(after) > budget.quality(before)
        self.progress(
            f"refined weights: {before.psnr:.2f} -> {after.psnr:.2f} dB, SSIM {before.ssim:.3f} -> {after.ssim:.3f} in "
            f"validation, {'kept' if kept else 'not kept'}"
        )
        return (refined, after.psnr - before.psnr) if kept else (recipe, 0.0)

    def _winner(self, budget: Budget, recipe: Recipe, score: Score, rival: Baseline | None) -> Baseline | None:
        """The fixed setting that does better than a recipe on the pictures that choose and on those that confirm."""
        below = score.macs if budget.holds(score) else 1.0
        asked = self.fixed.cheapest(budget, below) if budget.wants_quality else rival
        if asked is None or budget.key(asked.score) <= budget.key(score):
            return None
        chosen = self.fixed.again(asked, self.validation).score
        own = self.validation.score_of(recipe, score.macs)
        return asked if budget.key(chosen) > budget.key(own) else None

    def _chosen(self, budget: Budget, runs: int) -> tuple[Found, CallPlan]:
        """What a search found, and the plan that is the best on the validation prompts among its best and fixed ones.

        The search has fitted its own prompts; the validation prompts are the first to tell by how much.
        """
        found = search(self.known, budget, runs, self.progress)
        finalists = [found.plan, *self.known.bench.best(budget, FINALISTS), *found.starts[:FIXED_FINALISTS]]
        self.progress(f"choosing among {len(set(finalists))} plans on other prompts")
        chosen = max(finalists, key=lambda plan: budget.key(self.validation.score(self.known.space, plan)))
        return found, chosen

    def _stricter(self, asked: Budget, budget: Budget, plan: CallPlan) -> Budget | None:
        """What to search for instead, by how far a plan's held-out runs miss the budget; None if they keep it."""
        if budget.name == "max_time":
            seconds, least = self._seconds(self._profile(plan)), 1 / len(plan)
            cost = max(least, asked.limit * budget.limit / seconds)
            return None if seconds <= budget.limit else Budget(max_macs=cost)
        score = self.held_out.score(self.known.space, plan)
        return None if budget.holds(score) else tightened(asked, budget, score)

    def _as_cost(self, budget: Budget) -> Budget:
        """A limit of time as one of cost: seconds are taken to be a constant and a part that follows the cost."""
        total = len(self.known.space.grams[OUTPUT])
        if budget.name == "max_time":
            least = plan_of((0,), Choice((OUTPUT,), 1), total)
            constant, full = self._seconds(self._profile(least)), self._seconds()
            if budget.limit < constant:
                raise BudgetError(
                    f"max_time {budget.limit:g} s cannot be met: one network call alone takes {constant:.3g} s"
                )
            cost = (budget.limit - constant) / max(full - constant, 1e-9)
            budget = Budget(max_macs=min(1.0, 1 / total + 0.97 * cost * (1 - 1 / total)))
        if budget.name == "max_macs" and budget.limit < 1 / total:
            raise BudgetError(f"max_macs {budget.limit:g} cannot be met: the first of {total} calls must compute")
        return budget

    def _profile(self, plan: CallPlan) -> Profile:
        """A plan as a method."""
        return Profile(self.known.space.recipe(plan, sampler_of(self.pipe.scheduler)))

    def _in_time(self, budget: Budget, *methods: Method, **changes: Any) -> bool:
        """Whether the clock leaves a limit of time standing; of another limit it says nothing."""
        return budget.name != "max_time" or self._seconds(*methods, **changes) <= budget.limit

    def _seconds(self, *methods: Method, **changes: Any) -> float:
        """Median seconds of one picture with some methods, and settings of the run that differ."""
        one = self.split.seen.first()
        with accelerate(self.pipe, *methods) if methods else nullcontext():
            return interleaved({"one": lambda: one.pictures(self.pipe, **changes)}, rounds=5)["one"].median


def tune(pipe: Any, prompts: Sequence[str], budget: Budget, **options: Any) -> Tuned:
    """Tune a pipeline for one budget; options are those of `Tuner`."""
    return Tuner(pipe, prompts, **options).tune(budget)


def _account(found: Found, first: bool, gain: float, score: Score, rival: Baseline | None) -> str:
    """What the search found out, in words; `first`: whether its best was chosen."""
    chosen = (
        "its best was also the best on the validation prompts" if first else "validation chose another than its best"
    )
    refined = f"; refining its weights added {gain:.1f} dB there" if gain else ""
    held = f"held out {score.psnr:.1f} dB"
    against = f", the best fixed setting of no higher cost ({rival.name}) {rival.score.psnr:.1f} dB" if rival else ""
    return f"{found.account}; {chosen}{refined}; {held}{against}"
