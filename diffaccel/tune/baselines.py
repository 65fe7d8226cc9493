"""Fixed settings of published methods, and fewer steps: what a tuned schedule must beat at equal cost."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from diffaccel.attach.handle import accelerate
from diffaccel.config.words import counted
from diffaccel.measure.workload import Workload
from diffaccel.methods import BlockCache, DeepCache, DeltaCache, IntervalCache, Method
from diffaccel.methods.recipe import BLOCKS, OUTPUT, UNITS
from diffaccel.reuse.forecast import Forecast, Taylor
from diffaccel.reuse.schedule import Quadratic, Schedule, Uniform, quadratic_steps
from diffaccel.tune.budget import Budget, Score
from diffaccel.tune.probing import score_of
from diffaccel.tune.space import Space

THRESHOLDS = (0.1, 0.2, 0.4, 0.8)
FORECASTS: tuple[Forecast | None, ...] = (None, Taylor(1))


@dataclass(frozen=True)
class Baseline:
    """One fixed setting and how it did."""

    name: str
    score: Score


class FixedSettings:
    """Runs fixed settings on one workload, each once.

    Args:
        pipe: the pipeline.
        workload: what to run; its settings give num_inference_steps.
        plain: the plain pipeline's pictures of it.
        space: what reusing the network's parts saves.
    """

    def __init__(self, pipe: Any, workload: Workload, plain: torch.Tensor, space: Space) -> None:
        self.pipe = pipe
        self.workload = workload
        self.plain = plain
        self.space = space
        self.total = len(space.grams[OUTPUT])
        self._known: dict[str, Baseline] = {}

    def within(self, macs: float) -> list[Baseline]:
        """Of each method the most generous setting that costs no more than a fraction `macs`, and fewer steps."""
        found = [self._run(method) for method in self._candidates(macs)]
        steps = int(self.workload.settings["num_inference_steps"])
        fewer = min(steps - 1, int(macs * steps + 1e-6))
        if fewer >= 1:
            found.append(self._fewer(fewer, steps))
        return [baseline for baseline in found if baseline.score.macs <= macs + 1e-6]

    def cheapest(self, budget: Budget, below: float) -> Baseline | None:
        """The cheapest that holds a budget of quality and costs less than a fraction; None where none is known to.

        Fewer steps are tried from the most expensive down, as long as they hold: likeness falls with the steps. Of
        methods, those that `within` ran count, too.
        """
        steps = int(self.workload.settings["num_inference_steps"])
        holding = [known for known in self._known.values() if budget.holds(known.score) and known.score.macs < below]
        for fewer in range(min(steps - 1, int(below * steps)), 0, -1):
            baseline = self._fewer(fewer, steps)
            if not budget.holds(baseline.score):
                break
            if baseline.score.macs < below:
                holding.append(baseline)
        return min(holding, key=lambda known: known.score.macs, default=None)

    def _run(self, method: Method) -> Baseline:
        """A method."""
        name = method.to_text()
        if name not in self._known:
            with accelerate(self.pipe, method) as handle:
                pictures = self.workload.pictures(self.pipe)
                score = score_of(1 - handle.report().macs_saved, pictures, self.plain)
            self._known[name] = Baseline(name, score)
        return self._known[name]

    def _fewer(self, fewer: int, steps: int) -> Baseline:
        """The plain pipeline in fewer steps."""
        name = counted(fewer, "step")
        if name not in self._known:
            pictures = self.workload.pictures(self.pipe, num_inference_steps=fewer)
            self._known[name] = Baseline(name, score_of(fewer / steps, pictures, self.plain))
        return self._known[name]

    def _candidates(self, macs: float) -> Iterator[Method]:
        """Of each method whose cost is known beforehand the setting that fits, and all whose cost is not."""
        for forecast in FORECASTS:
            yield from self._of_unets(macs, forecast) if self.space.nested else self._of_blocks(macs, forecast)

    def _of_unets(self, macs: float, forecast: Forecast | None) -> Iterator[Method]:
        """DeepCache at every branch."""
        for part in self.space.parts:
            for schedule in self._schedules(macs, self.space.saved[part]):
                yield DeepCache(branch=int(part.split()[1]), schedule=schedule, forecast=forecast)

    def _of_blocks(self, macs: float, forecast: Forecast | None) -> Iterator[Method]:
        """Interval, offset and first-block caches."""
        count = len(self.space.layout.blocks)
        whole, inside = (sum(self.space.saved[part] for part in self.space.of(kind)) for kind in (BLOCKS, UNITS))
        for schedule in self._schedules(macs, inside) if inside else ():
            yield IntervalCache(schedule=schedule, forecast=forecast)
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
