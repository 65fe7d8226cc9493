"""Calibrate: run the plain pipeline, record its features, and reuse one thing at a time to see what that adds."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from diffaccel.attach.handle import accelerate
from diffaccel.measure.quality import psnr, ssim
from diffaccel.measure.workload import Workload
from diffaccel.methods.profile import Profile, sampler_of
from diffaccel.methods.recipe import OUTPUT, Recipe
from diffaccel.networks import layout_of, supports
from diffaccel.tune.blend import blend, left_over
from diffaccel.tune.budget import Budget, Score
from diffaccel.tune.model import ErrorModel, Probe, single
from diffaccel.tune.record import record
from diffaccel.tune.space import CallPlan, Space, space_of

log = logging.getLogger(__name__)
PROBES = (0.3, 0.7)  # where in a run the parts other than the output are probed
PROBED = 4  # most prompts that are probed: the model of errors only proposes


@dataclass
class Bench:
    """Runs plans for real, each once.

    Attributes:
        pipe: the pipeline.
        workload: its prompts, seeds and settings.
        plain: the plain pipeline's pictures, (n, 3, height, width).
        runs: real runs so far.
    """

    pipe: Any
    workload: Workload
    plain: torch.Tensor
    runs: int = 0

    def __post_init__(self) -> None:
        self._seen: dict[CallPlan, Score] = {}
        self._recipes: dict[Recipe, Score] = {}

    def first(self, count: int) -> "Bench":
        """The same for the first prompts alone."""
        few = replace(self.workload, prompts=self.workload.prompts[:count])
        return Bench(self.pipe, few, few.pictures(self.pipe))

    def pictures(self, space: Space, plan: CallPlan) -> torch.Tensor:
        """The pictures of a plan."""
        return self.drawn(space.recipe(plan, sampler_of(self.pipe.scheduler)))

    def drawn(self, recipe: Recipe) -> torch.Tensor:
        """The pictures of a recipe."""
        self.runs += 1
        with accelerate(self.pipe, Profile(recipe)):
            return self.workload.pictures(self.pipe)

    def score_of(self, recipe: Recipe, macs: float) -> Score:
        """How a recipe does whose cost is known."""
        if recipe not in self._recipes:
            self._recipes[recipe] = score_of(macs, self.drawn(recipe), self.plain)
        return self._recipes[recipe]

    def score(self, space: Space, plan: CallPlan) -> Score:
        """How a plan does."""
        if plan not in self._seen:
            recipe = space.recipe(plan, sampler_of(self.pipe.scheduler))
            self._seen[plan] = self.score_of(recipe, space.macs(plan))
        return self._seen[plan]

    def best(self, budget: Budget, count: int) -> list[CallPlan]:
        """The plans that did best so far for a budget, the best first."""
        return sorted(self._seen, key=lambda plan: budget.key(self._seen[plan]), reverse=True)[:count]

    def knows(self, plan: CallPlan) -> bool:
        """Whether a plan was run."""
        return plan in self._seen

    @property
    def scores(self) -> list[Score]:
        """All scores so far."""
        return list(self._seen.values())


def score_of(macs: float, pictures: torch.Tensor, plain: torch.Tensor) -> Score:
    """The score of pictures against the plain pipeline's; those of numbers that overflowed are like nothing."""
    if not pictures.isfinite().all():
        return Score(macs, 0.0, 0.0)
    return Score(macs, float(psnr(pictures, plain).mean()), float(ssim(pictures, plain, torch.float32).mean()))


@dataclass(frozen=True)
class Calibrated:
    """What calibration found: the choices with their savings and Gram matrices, and a model of the errors."""

    space: Space
    model: ErrorModel
    bench: Bench


def calibrate(pipe: Any, workload: Workload, progress: Callable[[str], None] = log.info) -> Calibrated:
    """Run the plain pipeline and the probes.

    Args:
        pipe: a pipeline with one denoiser.
        workload: what to run.
        progress: told what is being done.

    Raises:
        UnsupportedModelError: if the denoiser is neither a UNet nor made of transformer blocks.
        ValueError: if the pipeline has several denoisers, or gives different pictures from run to run.
    """
    space = space_of(layout_of(denoiser_of(pipe)))
    progress("plain run")
    plain = workload.pictures(pipe)
    progress("recording features")
    again: list[torch.Tensor] = []
    grams, guidance = record(pipe, lambda: again.append(workload.pictures(pipe)), space.parts)
    if not torch.equal(again[0], plain):
        raise ValueError("the pipeline's pictures differ from run to run at equal seeds, so they cannot be compared")
    space = replace(space, grams=grams, guidance=guidance)
    bench = Bench(pipe, workload, plain)
    few = bench.first(PROBED)
    total = len(grams[OUTPUT])
    probes, saved = [], {OUTPUT: 1.0}
    for name in space.parts:
        progress(f"probing {name}")
        found = [_probe(few, space, name, call, total) for call in sorted({max(1, int(p * total)) for p in PROBES})]
        probes += [probe for probe, _ in found]
        saved[name] = found[0][1]
    progress("probing every call")
    directions, errors = [], []
    for call in range(1, total):
        moved, error = _alone(few, space, OUTPUT, call, total)
        directions.append(moved.flatten(1).double().numpy())
        errors.append(error)
    space = replace(space, saved=saved)
    return Calibrated(space, ErrorModel(space, np.stack(directions), np.array(errors), probes), bench)


def denoiser_of(pipe: Any) -> torch.nn.Module:
    """The one denoiser of a pipeline.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = [component for component in pipe.components.values() if supports(component)]
    if len(found) != 1:
        raise ValueError(f"a pipeline with one known denoiser is needed; {type(pipe).__name__} has {len(found)}")
    model: torch.nn.Module = found[0]
    return model


def _alone(bench: Bench, space: Space, name: str, call: int, total: int) -> tuple[torch.Tensor, float]:
    """How the pictures move when a part is reused at one call alone, and the relative error of the blend there."""
    plan = single(name, call, total)
    return bench.pictures(space, plan) - bench.plain, _blend_error(space, plan, name, call)


def _probe(bench: Bench, space: Space, name: str, call: int, total: int) -> tuple[Probe, float]:
    """A probe, and the fraction of a call's multiply-accumulates that it saved."""
    plan = single(name, call, total)
    sampler = sampler_of(bench.pipe.scheduler)
    bench.runs += 1
    with accelerate(bench.pipe, Profile(space.recipe(plan, sampler))) as handle:
        moved = bench.workload.pictures(bench.pipe) - bench.plain
        report = handle.report()
    saved = total * report.macs_saved
    error = _blend_error(space, plan, name, call)
    return Probe(call, name, error, float(moved.double().square().mean().sqrt())), saved


def _blend_error(space: Space, plan: CallPlan, name: str, call: int) -> float:
    """Relative error of the blend of a part that a plan reuses at a call."""
    sources = space.sources(plan)[call][name]
    return left_over(space.grams[name], call, sources, blend(space.grams[name], call, sources))
