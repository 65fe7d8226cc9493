"""Fixed settings of published methods, and fewer steps: what a tuned schedule must beat at equal cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.accelerate import accelerate
from diffaccel.measure.quality import compare
from diffaccel.measure.workload import Workload
from diffaccel.methods import BlockCache, DeepCache, DeltaCache, IntervalCache, Method
from diffaccel.methods.profile import OUTPUT
from diffaccel.schedule import Quadratic, Schedule, Uniform, quadratic_steps
from diffaccel.tune.budget import Score
from diffaccel.tune.space import Space

THRESHOLDS = (0.1, 0.2, 0.4, 0.8)


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

    def _run(self, method: Method) -> Baseline:
        """A method."""
        name = method.to_text()
        if name not in self._known:
            with accelerate(self.pipe, method) as handle:
                quality = compare(self.workload.pictures(self.pipe), self.plain)
                macs = 1 - handle.report().macs_saved
            self._known[name] = Baseline(name, Score(macs, quality.psnr, quality.ssim))
        return self._known[name]

    def _fewer(self, fewer: int, steps: int) -> Baseline:
        """The plain pipeline in fewer steps."""
        name = f"{fewer} steps"
        if name not in self._known:
            quality = compare(self.workload.pictures(self.pipe, num_inference_steps=fewer), self.plain)
            self._known[name] = Baseline(name, Score(fewer / steps, quality.psnr, quality.ssim))
        return self._known[name]

    def _candidates(self, macs: float) -> Iterator[Method]:
        """Of each method whose cost is known beforehand the setting that fits, and all whose cost is not."""
        space = self.space
        if space.nested:
            for index, part in enumerate(space.parts):
                for schedule in self._schedules(macs, space.saved[part]):
                    yield DeepCache(branch=index, schedule=schedule)
            return
        share = 1 / len(space.layout.blocks)
        inside = sum(space.saved[part] for part in space.parts)
        for schedule in self._schedules(macs, inside) if space.layout.units else ():
            yield IntervalCache(schedule=schedule)
        for blocks in {max(1, len(space.layout.blocks) // 2), len(space.layout.blocks) - 1}:
            for schedule in self._schedules(macs, inside * share * blocks):
                if isinstance(schedule, Uniform):
                    yield DeltaCache(schedule.interval, blocks)
        yield from (BlockCache(threshold=threshold) for threshold in THRESHOLDS)

    def _schedules(self, macs: float, saved: float) -> Iterator[Schedule]:
        """The uniform and the quadratic schedule with the most computed calls that fit, and one more reused each."""
        center = self.total * 15 // 50
        uniform = (
            i for i in range(2, self.total + 1) if self._cost(len(Uniform(i).computed(self.total)), saved) <= macs
        )
        if (interval := next(uniform, None)) is not None:
            yield Uniform(interval)
            if interval < self.total:
                yield Uniform(interval + 1)  # methods that compute one call more than the schedule says
        for interval in range(2, self.total):
            try:
                computed = quadratic_steps(self.total, interval, center, 1.4)
            except ValueError:  # no such spacing of so few calls
                continue
            if self._cost(len(computed), saved) <= macs:
                yield Quadratic(interval, center)
                return

    def _cost(self, computed: int, saved: float) -> float:
        """Cost of a run in which all but some calls reuse a part."""
        return 1 - saved * (self.total - computed) / self.total


def best(found: list[Baseline]) -> Baseline | None:
    """The most alike; None of none."""
    return max(found, key=lambda baseline: baseline.score.psnr, default=None)
