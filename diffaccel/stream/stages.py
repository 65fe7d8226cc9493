"""What each row of a stream batch is multiplied by, worked out once per schedule (StreamDiffusion, section 3.1).

`Stages` is the table of one schedule: row ``i`` holds the noise level of stage ``i``, the conversion of a network
prediction to a clean estimate, and the step to stage ``i + 1``. `StageRows` is a selection of table rows on the device,
for one network call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch

from diffaccel.sampling.guidance import virtual_negative
from diffaccel.sampling.samplers import (
    FlowMatching,
    LayOut,
    NoiseLevel,
    Sampler,
    Weights,
    clean_weights,
    grid_for,
    levels_of,
    signal_levels,
)


@dataclass(frozen=True, eq=False)
class Stages:
    """Noise levels and steps of one schedule, on the host; N stages.

    ``noise`` is the fixed noise of every stage, ``(N * frames, C, h, w)``, stage-major: row ``i * frames + k``
    belongs to stage i. ``entry_scale`` multiplies the noise that a text-to-image frame starts from. ``beside`` says, by
    timesteps of two stages in a row, where the scheduler leads to in place of the second one. ``begun_at`` is the table
    that these begin in between of, where they do.
    """

    sampler: Sampler
    prediction_type: str
    levels: tuple[NoiseLevel, ...]
    terminal: NoiseLevel
    signal: np.ndarray
    noise: torch.Tensor
    entry_scale: float = 1.0
    add_noise: bool = True
    beside: Mapping[tuple[float, float], NoiseLevel] = field(default_factory=dict)
    begun_at: Stages | None = None

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def table(self) -> Stages:
        """What frames share, wherever each of them begins."""
        return self if self.begun_at is None else self.begun_at

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timestep of each stage."""
        return tuple(level.timestep for level in self.levels)

    @property
    def alphas(self) -> tuple[float, ...]:
        """Signal level of each stage."""
        return tuple(level.alpha for level in self.levels)

    def noise_of(self, stage: int) -> torch.Tensor:
        """Fixed noise of a stage, ``(frames, C, h, w)``."""
        frames = len(self.noise) // len(self)
        return self.noise[stage * frames : (stage + 1) * frames]

    def transition(self, start: NoiseLevel, end: NoiseLevel) -> Weights:
        """Weights of the step from ``start`` to ``end``; without added noise, fresh noise has no weight."""
        weights = self.sampler.transition(start, end, self.signal)
        return weights if self.add_noise else weights._replace(fresh=0.0)

    def step(self, stage: int) -> Weights:
        """Weights of the step that follows ``stage``; the last one ends at the terminal level, without fresh noise."""
        if stage + 1 < len(self):
            start, end = self.levels[stage : stage + 2]
            return self.transition(start, self.beside.get((start.timestep, end.timestep), end))
        return Weights(self.terminal.alpha, self.terminal.sigma, 0.0)

    def correction(self, stage: int, before: NoiseLevel | None) -> float:
        """Weight, in the step that follows ``stage``, of what the clean estimate changed by since the stage before.

        Nothing where the step ends behind the last stage, or the estimate ``before`` is not of the stage before.
        """
        if stage == 0 or stage + 1 >= len(self) or before != self.levels[stage - 1]:
            return 0.0
        return self.sampler.correction(*self.levels[stage - 1 : stage + 2])

    def first_below(self, timestep: float) -> int | None:
        """The first stage that is less noisy than ``timestep``, or None."""
        return next((i for i, t in enumerate(self.timesteps) if t < timestep), None)


@dataclass(frozen=True, eq=False)
class StageRows:
    """Coefficients of the rows of one network call, each ``(rows, 1, 1, 1)`` in float32; ``timesteps`` is ``(rows,)``.

    The next latent is ``step_clean clean + step_noise noise + fresh``, with ``fresh`` already weighted, ``(rows, C,
    h, w)``.
    """

    timesteps: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    clean_latents: torch.Tensor
    clean_prediction: torch.Tensor
    out_clean: torch.Tensor
    out_latents: torch.Tensor
    step_clean: torch.Tensor
    step_noise: torch.Tensor
    fresh: torch.Tensor

    def clean(self, latents: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """Clean estimate from a prediction."""
        return self.clean_latents * latents + self.clean_prediction * prediction

    def denoised(self, latents: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Clean estimate under the sampler's boundary condition."""
        return self.out_clean * clean + self.out_latents * latents

    def noise(self, latents: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Noise that a clean estimate stands for (Eq. 5)."""
        return virtual_negative(latents, clean, self.alpha, self.sigma)

    def advance(self, denoised: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Latents of the next stage; of a last stage, the finished latents."""
        return self.step_clean * denoised + self.step_noise * noise + self.fresh


def gather(rows: Sequence[tuple[Stages, int]], frames: int, device: torch.device) -> StageRows:
    """Coefficients for slots at the given ``(stages, stage)``, each repeated for its ``frames`` rows."""
    weights: list[tuple[float, ...]] = []
    for stages, i in rows:
        level, step = stages.levels[i], stages.step(i)
        told = clean_weights(stages.prediction_type, level), stages.sampler.boundary(level), step[:2]
        weights.append((level.alpha, level.sigma, *chain.from_iterable(told)))  # in the order of the fields
    table = torch.tensor(weights, dtype=torch.float64).repeat_interleave(frames, 0).to(device, torch.float32)
    timesteps = torch.tensor([stages.timesteps[i] for stages, i in rows]).repeat_interleave(frames)
    fresh = torch.cat([_fresh(stages, i) for stages, i in rows]).to(device, torch.float32)
    columns = [column[:, None, None, None] for column in table.unbind(1)]
    return StageRows(*[_integral(timesteps).to(device), *columns, fresh])


def _fresh(stages: Stages, stage: int) -> torch.Tensor:
    weight = stages.step(stage).fresh
    following = stages.noise_of(min(stage + 1, len(stages) - 1))
    return following * weight if weight else torch.zeros_like(following)


def _integral(timesteps: torch.Tensor) -> torch.Tensor:
    whole = timesteps.round()
    return whole.long() if torch.equal(whole, timesteps) else timesteps


def build_stages(
    scheduler: Any,
    sampler: Sampler,
    indices: Sequence[int],
    num_inference_steps: int,
    noise: torch.Tensor,
    lay_out: LayOut,
    *,
    add_noise: bool,
) -> Stages:
    """Table of the stages at ``indices`` of the grid of ``num_inference_steps`` timesteps.

    Raises:
        ValueError: for indices outside the grid, or a grid whose timesteps do not fall.
    """
    grid = grid_for(sampler, scheduler, num_inference_steps, lay_out)
    levels = levels_of(sampler, grid)
    if max(indices) >= len(levels):
        raise ValueError(
            f"timestep index {max(indices)} is outside the grid of {len(levels)} timesteps (0 to {len(levels) - 1})"
        )
    chosen = tuple(levels[i] for i in indices)
    if any(b.timestep >= a.timestep for a, b in pairwise(chosen)):
        raise ValueError(
            f"timesteps must descend, not {[level.timestep for level in chosen]}: choose ascending indices"
        )
    flow = isinstance(sampler, FlowMatching)
    prediction = "flow_prediction" if flow else str(scheduler.config.get("prediction_type", "epsilon"))
    if chosen[-1].sigma == 0:
        raise ValueError(f"timestep {chosen[-1].timestep:g} is already clean: leave index {indices[-1]} out")
    for level in chosen:
        clean_weights(prediction, level)
    neighbours = [levels[i : i + 2] for i, j in pairwise(indices) if j == i + 1]
    beside = {(a.timestep, b.timestep): led for a, b in neighbours if (led := sampler.following(grid, a)) is not None}
    return Stages(
        sampler=sampler,
        prediction_type=prediction,
        levels=chosen,
        terminal=sampler.terminal(grid),
        signal=signal_levels(grid),
        noise=noise,
        entry_scale=_entry_scale(grid, chosen[0]),
        add_noise=add_noise,
        beside=beside,
    )


def _entry_scale(grid: Any, level: NoiseLevel) -> float:
    """What a text-to-image frame's noise is multiplied by: how diffusers starts on this grid (``init_noise_sigma``)."""
    variance_exploding = hasattr(grid, "sigmas") and hasattr(grid, "alphas_cumprod")
    scaled = float(getattr(grid, "init_noise_sigma", 1.0)) != 1.0
    starts_at_sigma = variance_exploding and scaled and grid.config.timestep_spacing in ("linspace", "trailing")
    return level.sigma if starts_at_sigma else 1.0


def indices_for(strength: float, num_steps: int, num_inference_steps: int) -> tuple[int, ...]:
    """``num_steps`` indices, evenly spaced over the last ``strength`` of the grid (as LCMScheduler spaces its steps).

    Raises:
        ValueError: for a strength outside (0, 1], or more steps than the grid has left.
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be in (0, 1], not {strength}")
    start = min(round((1 - strength) * num_inference_steps), num_inference_steps - 1)
    left = num_inference_steps - start
    if not 1 <= num_steps <= left:
        raise ValueError(
            f"num_steps={num_steps} does not fit: strength={strength} leaves {left} of {num_inference_steps} timesteps"
            ": take fewer steps, or more strength"
        )
    return tuple(start + i * left // num_steps for i in range(num_steps))
