"""Fixed settings of published methods, and fewer steps: what a tuned schedule must beat at equal cost."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from diffaccel.attach.handle import Handle, accelerate
from diffaccel.config.words import counted
from diffaccel.methods import (
    BlockCache,
    DeepCache,
    DeltaCache,
    EasyCache,
    EncoderPropagation,
    FeatureInheritance,
    IntervalCache,
    Method,
    NetworkSwitch,
)
from diffaccel.methods.recipe import BLOCKS, OUTPUT, UNITS
from diffaccel.networks import UnsupportedModelError
from diffaccel.reuse.forecast import Forecast, Newton, Taylor
from diffaccel.reuse.schedule import Quadratic, Schedule, Uniform
from diffaccel.reuse.spacing import quadratic_steps
from diffaccel.tune.budget import Budget, Score
from diffaccel.tune.probing import Bench, score_of
from diffaccel.tune.space import Space

THRESHOLDS = (0.1, 0.2, 0.4, 0.8)
EASY_THRESHOLDS = (0.1, 0.3, 0.9)
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the calls that a small network takes
LEVELS = ("block", "layer", "unit")
FORECASTS: tuple[Forecast | None, ...] = (None, Taylor(1), Taylor(2), Newton(2))
SCREENED = 4  # most pictures by which all settings are ranked
JUDGED = 6  # of them the best that are run on all pictures


@dataclass(frozen=True)
class Baseline:
    """One fixed setting and how it did.

    Attributes:
        name: as text that `diffaccel.methods.parse` reads, or "7 steps".
        score: on the pictures that confirm.
        method: what is put on the pipeline; None for fewer steps.
        steps: of the sampler, where they are fewer; else None.
        calls: network calls of so many steps; samplers may make more or fewer than one in each.
    """

    name: str
    score: Score
    method: Method | None = None
    steps: int | None = None
    calls: int | None = None

    @property
    def methods(self) -> tuple[Method, ...]:
        """What is put on the pipeline."""
        return () if self.method is None else (self.method,)

    @property
    def changes(self) -> dict[str, int]:
        """Settings of the run that differ."""
        return {} if self.steps is None else {"num_inference_steps": self.steps}


class FixedSettings:
    """Runs fixed settings, each once.

    Args:
        pipe: the pipeline.
        bench: the workload that confirms, with the plain pipeline's pictures of it; its settings give
            num_inference_steps.
        space: what reusing the network's parts saves.
        screen: other pictures, by which settings are ranked, and the best are run on those that confirm; None runs all.
        small: name of a small network that may take the first calls, as of `NetworkSwitch`; None for none.
    """

    def __init__(
        self, pipe: Any, bench: Bench, space: Space, screen: Bench | None = None, small: str | None = None
    ) -> None:
        self.pipe, self.small = pipe, small
        self.bench = bench
        self.screen = screen
        self.space = space
        self.total = len(space.grams[OUTPUT])
        self.steps = int(bench.workload.settings["num_inference_steps"])
        self._known: dict[tuple[str, int], Baseline] = {}
        self._costs: dict[str, float] = {}

    def within(self, macs: float) -> list[Baseline]:
        """The settings that cost no more than a fraction `macs`: of each method the most generous; and fewer steps.

        Of many the best of a screening, those as published and those with a forecast apart.
        """
        found = []
        methods = list(filter(self._fits, self._candidates(macs)))
        for chosen in (
            self._screened([m for m in methods if getattr(m, "forecast", None) is None], macs),
            self._screened([m for m in methods if getattr(m, "forecast", None) is not None], macs),
        ):
            found += [self.run(method) for method in chosen]
        found = [baseline for baseline in found if baseline.score.macs <= macs + 1e-6]
        fewer = (self.fewer(steps) for steps in range(min(self.steps - 1, int(macs * self.steps + 1e-6)), 0, -1))
        return [*found, *islice((baseline for baseline in fewer if baseline.score.macs <= macs + 1e-6), 1)]

    def _screened(self, methods: list[Method], macs: float) -> list[Method]:
        """The best of many, by few pictures."""
        if self.screen is None or len(methods) <= JUDGED:
            return methods
        scores = [(self.run(method, self.screen).score, method) for method in methods]
        fitting = [(score, method) for score, method in scores if score.macs <= macs + 1e-6]
        ranked = sorted(fitting, key=lambda pair: pair[0].psnr, reverse=True)
        return [method for _, method in ranked[: JUDGED // 2]]

    def cheapest(self, budget: Budget, below: float) -> Baseline | None:
        """The cheapest that holds a budget of quality and costs less than a fraction; None where none is known to.

        Fewer steps are tried from the most expensive down, as long as they hold: likeness falls with the steps. Of
        methods, those that `within` ran count, too.
        """
        known = [baseline for (_, bench), baseline in self._known.items() if bench == id(self.bench)]
        holding = [baseline for baseline in known if budget.holds(baseline.score) and baseline.score.macs < below]
        for fewer in range(min(self.steps - 1, int(below * self.steps)), 0, -1):
            baseline = self.fewer(fewer)
            if not budget.holds(baseline.score):
                break
            if baseline.score.macs < below:
                holding.append(baseline)
        return min(holding, key=lambda known: known.score.macs, default=None)

    def again(self, baseline: Baseline, bench: Bench) -> Baseline:
        """A setting on other pictures."""
        if baseline.method is not None:
            return self.run(baseline.method, bench)
        assert baseline.steps is not None
        return self.fewer(baseline.steps, bench)

    def run(self, method: Method, bench: Bench | None = None) -> Baseline:
        """A method."""
        bench, name = bench or self.bench, method.to_text()
        if (name, id(bench)) not in self._known:
            with accelerate(self.pipe, method) as handle:
                pictures = bench.workload.pictures(self.pipe)
                score = score_of(self._cost_of(method, handle), pictures, bench.plain)
            self._known[name, id(bench)] = Baseline(name, score, method)
        return self._known[name, id(bench)]

    def _cost_of(self, method: Method, handle: Handle) -> float:
        """Cost of a method's run as a fraction, counted once for all forecasts where decisions do not hang on them."""
        if isinstance(method, BlockCache | EasyCache | NetworkSwitch):
            return 1 - handle.report().macs_saved
        text = replace(method, forecast=None).to_text()  # type: ignore[call-arg]
        if text not in self._costs:
            self._costs[text] = 1 - handle.report().macs_saved
        return self._costs[text]

    def fewer(self, fewer: int, bench: Bench | None = None) -> Baseline:
        """The plain pipeline in fewer steps."""
        bench, name = bench or self.bench, counted(fewer, "step")
        if (name, id(bench)) not in self._known:
            pictures = bench.workload.pictures(self.pipe, num_inference_steps=fewer)
            calls = len(self.pipe.scheduler.timesteps)
            score = score_of(calls / self.total, pictures, bench.plain)
            self._known[name, id(bench)] = Baseline(name, score, steps=fewer, calls=calls)
        return self._known[name, id(bench)]

    def _candidates(self, macs: float) -> Iterator[Method]:
        """Of each method whose cost is known beforehand the setting that fits, and all whose cost is not."""
        for forecast in FORECASTS:
            yield from self._of_unets(macs, forecast) if self.space.nested else self._of_blocks(macs, forecast)
        yield from (EasyCache(threshold=threshold) for threshold in EASY_THRESHOLDS)
        if self.small is not None:
            yield from (NetworkSwitch(self.small, until=share) for share in SHARES)

    def _fits(self, method: Method) -> bool:
        """Whether the network has what a method reuses."""
        try:
            method.parts(self.space.layout)
        except (UnsupportedModelError, ValueError):
            return False
        return True

    def _of_unets(self, macs: float, forecast: Forecast | None) -> Iterator[Method]:
        """DeepCache at every branch; features in place, and the encoder's, which save less than a whole call."""
        for part in self.space.parts:
            for schedule in self._schedules(macs, self.space.saved[part]):
                yield DeepCache(branch=int(part.split()[1]), schedule=schedule, forecast=forecast)
        for interval in islice(self._intervals(macs, 0.9), 1):
            yield from (FeatureInheritance(level, interval, forecast=forecast) for level in LEVELS)
        for interval in islice(self._intervals(macs, 0.5), 1):
            yield EncoderPropagation(schedule=Uniform(interval), forecast=forecast)

    def _of_blocks(self, macs: float, forecast: Forecast | None) -> Iterator[Method]:
        """Interval, offset and first-block caches."""
        count = len(self.space.layout.blocks)
        whole, inside = (sum(self.space.saved[part] for part in self.space.of(kind)) for kind in (BLOCKS, UNITS))
        for schedule in self._schedules(macs, inside) if inside else ():
            yield IntervalCache(schedule=schedule, forecast=forecast)
        for interval in islice(self._intervals(macs, inside, {self.total - 1}), 1) if inside else ():
            yield IntervalCache(interval, forecast=forecast)
        for blocks in {max(1, count // 2), count - 1}:
            for interval in islice(self._intervals(macs, whole * blocks / count, {self.total // 2}), 1):
                yield DeltaCache(interval, blocks, forecast=forecast)
        yield from (BlockCache(threshold=threshold, forecast=forecast) for threshold in THRESHOLDS)

    def _schedules(self, macs: float, saved: float) -> Iterator[Schedule]:
        """The uniform and the quadratic schedule with the most computed calls that fit."""
        center = self.total * 15 // 50
        yield from map(Uniform, islice(self._intervals(macs, saved), 1))
        for interval in range(2, self.total):
            try:
                computed = quadratic_steps(self.total, interval, center, 1.4)
            except ValueError:  # no such spacing of so few calls
                continue
            if self._cost(len(computed), saved) <= macs:
                yield Quadratic(interval, center)
                return

    def _intervals(self, macs: float, saved: float, more: Collection[int] = ()) -> Iterator[int]:
        """Intervals that fit, from the shortest on, where some calls compute besides."""
        for interval in range(2, self.total + 1):
            computed = {*Uniform(interval).computed(self.total), *more}
            if self._cost(len(computed), saved) <= macs:
                yield interval

    def _cost(self, computed: int, saved: float) -> float:
        """Cost of a run in which all but some calls reuse a part."""
        return 1 - saved * (self.total - computed) / self.total


def best(found: list[Baseline]) -> Baseline | None:
    """The most alike; None of none."""
    return max(found, key=lambda baseline: baseline.score.psnr, default=None)


def screening(bench: Bench) -> Bench:
    """The first pictures of a workload, to rank settings by."""
    few = bench.workload.first(SCREENED)
    return Bench(bench.pipe, few, bench.plain[: len(few.prompts)])
