"""Refine the blend weights of a recipe, per call and unit, by the gradient of the final error through all steps.

First Gauss-Newton steps: random probes of the error give one linear equation per picture and probe, and a ridge
(Levenberg-Marquardt) keeps the steps where these say something. Then Adam on the mean of log MSE of the final latents.
What is done is fixed by a seed; whether the result is kept is for validation runs to say, see `Tuner`.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffaccel.config.checks import number, whole
from diffaccel.measure.workload import Workload
from diffaccel.methods.profile import unit_names
from diffaccel.methods.recipe import UNITS, Recipe
from diffaccel.networks import Layout, layout_of
from diffaccel.sampling.seeds import generator_of
from diffaccel.tune.graph_memory import graph_memory
from diffaccel.tune.probing import denoiser_of
from diffaccel.tune.unroll import Batch, Unrolled, latents_of, survey

log = logging.getLogger(__name__)
JUDGING = 12  # most pictures that are not learned from, but judge the steps
RIDGES = (1.0, 10.0)  # times the ridge, that are tried
SHARES = (1.0, 0.5)  # of a Gauss-Newton step that are tried
LEAST = 1e-6  # of the largest column's square, for columns that hardly matter

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Refinement:
    """How much is done to refine a recipe.

    Args:
        rounds: Gauss-Newton steps, each on pictures of its own, >= 0.
        pictures: pictures per round, >= 1.
        probes: equations per picture and round, each a backward pass, >= 1.
        ridge: strength of the ridge, as a fraction of each weight's own square, > 0.
        iterations: steps of Adam after that, >= 0.
        batch: pictures per step of Adam, >= 1.
        rate: of Adam, in units of the move of a weight that would change the error by as much as there is; > 0.
        memory: most bytes for autograd's graph; where a run needs more, calls are computed again in the backward pass.
    """

    rounds: int = 2
    pictures: int = 8
    probes: int = 12
    ridge: float = 1.0
    iterations: int = 100
    batch: int = 4
    rate: float = 0.02
    memory: float = 4e9

    def __post_init__(self) -> None:
        for name, least in (("rounds", 0), ("pictures", 1), ("probes", 1), ("iterations", 0), ("batch", 1)):
            whole(name, getattr(self, name), least)
        for name in ("ridge", "rate", "memory"):
            number(name, getattr(self, name), 1e-9)


def refine(
    pipe: Any,
    recipe: Recipe,
    workload: Workload,
    how: Refinement | None = None,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = log.info,
) -> Recipe:
    """The recipe with refined weights, and without evidence: whether it is better is for real runs to say.

    Args:
        pipe: the pipeline, with the sampler that the recipe is for.
        recipe: what to refine; ranges of units are taken apart, and blends get up to three features.
        workload: prompts and seeds to learn from; others than those that the result is judged by.
        how: how much is done.
        seed: of the probes, and of the order of the pictures.
        progress: told what is being done, and before anything else how much memory it takes.

    Raises:
        ValueError: if the sampler passes no gradient from step to step.
    """
    how = how or Refinement()
    if not recipe.reuses or not (how.rounds or how.iterations):
        return replace(recipe, evidence=None)
    single = apart(recipe, layout_of(denoiser_of(pipe)))
    seen = survey(pipe, single, _first(pipe, workload))
    wide = widened(single, seen.depths)
    need = graph_memory(pipe, wide, seen)
    start = torch.tensor([[weight for reuse in wide.reuses for weight in reuse.weights]], dtype=torch.float64)
    pictures = max(how.pictures if how.rounds else 0, how.batch if how.iterations else 0)
    again = need.whole * pictures > how.memory
    progress(f"refining {start.shape[1]} weights: {need.text(pictures, again=again)}")
    pool = _Pictures(pipe, workload, random.Random(seed))
    with Unrolled(pipe, wide, again=again) as unrolled:
        found = _Learner(unrolled, pool, how, generator_of(seed), progress).learned(start)
    if torch.equal(found, start):
        return replace(recipe, evidence=None)
    values = iter(found[0].tolist())
    reuses = [replace(reuse, weights=tuple(round(next(values), 6) for _ in reuse.weights)) for reuse in wide.reuses]
    return replace(wide, reuses=tuple(reuses))


def widened(recipe: Recipe, depths: Mapping[tuple[str, int], int]) -> Recipe:
    """The same recipe with zero weights for features that its blends do not use yet.

    Args:
        recipe: its blends.
        depths: for each part and call how many features are at hand.
    """
    reuses = [
        replace(reuse, weights=reuse.weights + (0.0,) * (depths[reuse.what, reuse.call] - len(reuse.weights)))
        for reuse in recipe.reuses
    ]
    return replace(recipe, reuses=tuple(reuses), evidence=None)


def _first(pipe: Any, workload: Workload) -> Batch:
    """The first picture alone."""
    return Batch(workload.prompts[:1], (workload.seed_of(workload.seeds[0], 0),), workload.arguments(pipe))


def apart(recipe: Recipe, layout: Layout) -> Recipe:
    """The same recipe with single units in place of ranges of them."""
    reuses = [
        replace(reuse, what=name)
        for reuse in recipe.reuses
        for name in (unit_names(reuse.what, layout) if reuse.what.startswith(f"{UNITS} ") else (reuse.what,))
    ]
    return replace(recipe, reuses=tuple(reuses))


class _Learner:
    """Steps of Gauss-Newton and of Adam on the weights of one recipe."""

    def __init__(
        self,
        unrolled: Unrolled,
        pool: "_Pictures",
        how: Refinement,
        noise: torch.Generator,
        progress: Callable[[str], None],
    ) -> None:
        self.unrolled, self.pool, self.how, self.noise, self.progress = unrolled, pool, how, noise, progress
        self.basis = difference_basis(unrolled.places)
        self.scale = np.ones(unrolled.count)

    def learned(self, start: torch.Tensor) -> torch.Tensor:
        """Weights (1, n) that are better than `start` on pictures that were not learned from, or `start`."""
        values = start
        matrices, sides = [], []
        for index in range(self.how.rounds):
            batch = self.pool.next(self.how.pictures)
            matrix, side = self._equations(values, *batch)
            matrices.append(matrix)
            sides.append(side + matrix @ (values - start)[0].numpy())  # as equations for the way from the start
            goals = [start + way for way in self._ways(np.concatenate(matrices), np.concatenate(sides))]
            values = self._best(values, goals, f"Gauss-Newton step {index + 1}")
        return self._adam(values) if self.how.iterations else values

    def _equations(self, values: torch.Tensor, batch: Batch, plain: torch.Tensor) -> tuple[Matrix, Matrix]:
        """a . step = b for each picture and probe: how the error along a probe, relative to its size, is to vanish.

        The first probe is the error itself; the others are Gaussian.
        """
        own = values.float().repeat(len(plain), 1).requires_grad_(True)  # (pictures, weights)
        error = (self.unrolled.latents(own, batch) - plain).flatten(1).float()  # (pictures, values)
        size = error.detach().norm(dim=1).clamp_min(1e-12)
        rows, sides = [], []
        for index in range(self.how.probes):
            probe = error.detach() / size[:, None]
            if index:
                probe = torch.randn(error.shape, generator=self.noise).to(error.device)
            along = (probe * error).sum(dim=1) / size
            (gradient,) = torch.autograd.grad(along.sum(), own, retain_graph=index + 1 < self.how.probes)
            rows.append(gradient.cpu().double().numpy())
            sides.append(-along.detach().cpu().double().numpy())
        return np.concatenate(rows), np.concatenate(sides)

    def _ways(self, matrix: Matrix, side: Matrix) -> list[torch.Tensor]:
        """Least-squares steps (1, n) with ridges, in differences of features, which depend less on each other.

        None where no weight matters to any picture.
        """
        turned = matrix @ self.basis
        square = turned.T @ turned
        if not square.any():
            return []
        own = square.diagonal() + LEAST * square.diagonal().max()
        self.scale = 1 / np.sqrt(own / len(matrix))
        ridges = [self.how.ridge * factor * np.diag(own) for factor in RIDGES]
        return [
            torch.from_numpy(self.basis @ np.linalg.solve(square + ridge, turned.T @ side))[None] for ridge in ridges
        ]

    def _best(self, values: torch.Tensor, goals: Sequence[torch.Tensor], name: str) -> torch.Tensor:
        """Where on the way to some goals other pictures are the most alike."""
        batch, plain = self.pool.unseen
        ways = [values, *(values + share * (goal - values) for goal in goals for share in SHARES)]
        with torch.no_grad():
            found = [float(self._loss(way.float(), batch, plain)) for way in ways]
        best = min(range(len(ways)), key=found.__getitem__)
        self.progress(f"{name}: {_decibels(found[best] - found[0]):+.2f} dB on latents not learned from")
        return ways[best]

    def _adam(self, values: torch.Tensor) -> torch.Tensor:
        """Weights after Adam, at a rate that falls to zero, if other pictures are more alike with them."""
        turn = torch.from_numpy(self.basis * self.scale)
        moved = torch.zeros(1, turn.shape[1], dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([moved], lr=self.how.rate)
        falls = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.how.iterations)
        for index in range(self.how.iterations):
            batch, plain = self.pool.next(self.how.batch)
            loss = self._loss((values + moved @ turn.T).float(), batch, plain)
            (moved.grad,) = torch.autograd.grad(loss, moved)
            adam.step()
            falls.step()
            if (index + 1) % 25 == 0:
                self.progress(f"Adam: {index + 1} of {self.how.iterations} steps")
        return self._best(values, [(values + moved @ turn.T).detach()], "Adam")

    def _loss(self, values: torch.Tensor, batch: Batch, plain: torch.Tensor) -> torch.Tensor:
        """Mean over pictures of log MSE of the final latents."""
        error = (self.unrolled.latents(values, batch) - plain).flatten(1).float()
        return error.square().mean(dim=1).clamp_min(1e-20).log().mean()


class _Pictures:
    """Pictures to learn from, each round through them in another order, with the plain pipeline's latents.

    Args:
        pipe: the pipeline, plain.
        workload: the pictures.
        order: draws the orders.

    Attributes:
        unseen: those that are not learned from, a quarter, by which steps are judged; of one picture, itself.
    """

    def __init__(self, pipe: Any, workload: Workload, order: random.Random) -> None:
        self.order = order
        known: list[tuple[Batch, torch.Tensor]] = []
        for seed in workload.seeds:
            for start in range(0, len(workload.prompts), workload.batch_size):
                prompts = workload.prompts[start : start + workload.batch_size]
                noises = tuple(workload.seed_of(seed, start + i) for i, _ in enumerate(prompts))
                batch = Batch(prompts, noises, workload.arguments(pipe))
                singles = [replace(batch, prompts=(p,), noises=(n,)) for p, n in zip(prompts, noises, strict=True)]
                known += zip(singles, latents_of(pipe, batch), strict=True)
        order.shuffle(known)
        aside = min(JUDGING, max(1, len(known) // 4))
        self.unseen = _together(known[:aside])
        self._learned = known[aside:] or known
        self._coming = self._endless()

    def _endless(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        while True:
            self.order.shuffle(self._learned)
            yield from self._learned

    def next(self, count: int) -> tuple[Batch, torch.Tensor]:
        """The next pictures to learn from, and their plain latents (pictures, ...)."""
        return _together(list(islice(self._coming, count)))


def _together(found: list[tuple[Batch, torch.Tensor]]) -> tuple[Batch, torch.Tensor]:
    """Single pictures as one batch."""
    prompts = tuple(prompt for batch, _ in found for prompt in batch.prompts)
    noises = tuple(noise for batch, _ in found for noise in batch.noises)
    return replace(found[0][0], prompts=prompts, noises=noises), torch.stack([latents for _, latents in found])


def difference_basis(places: Mapping[str, Mapping[int, range]]) -> Matrix:
    """Columns are weights of a feature, of a first difference and of a second one, for each part and call, (n, n)."""
    groups = [list(columns) for calls in places.values() for columns in calls.values()]
    count = sum(map(len, groups))
    basis: Matrix = np.zeros((count, count))
    for columns in groups:
        for order, column in enumerate(columns):
            for power in range(order + 1):
                basis[columns[power], column] = (-1) ** power * math.comb(order, power)
    return basis


def _decibels(log_ratio: float) -> float:
    """What a difference of logarithms of MSE is in dB, more where the error is less."""
    return -10 / math.log(10) * log_ratio
