"""Samplers as transitions between noise levels, so that every row of a batch can take a different step.

At a noise level ``(alpha, sigma)`` a latent is ``x = alpha clean + sigma noise``. A first-order sampler goes from a
level to the next one by ``x' = w_clean clean + w_noise noise + w_fresh fresh``: it re-noises its clean estimate with
a mixture of the predicted noise and fresh noise. `scheduler.step` of diffusers does the same for one timestep at a
time.
"""

# ruff: noqa: ARG002 - subclasses share one signature and need different parts of it

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import diffusers
import numpy as np
import torch

from diffaccel.config.checks import number


class NoiseLevel(NamedTuple):
    """A noise level: signal and noise magnitudes, and the timestep that the network is told."""

    alpha: float
    sigma: float
    timestep: float


class Weights(NamedTuple):
    """Weights of the clean estimate, the predicted noise and fresh noise in the next latent."""

    clean: float
    noise: float
    fresh: float


@dataclass(frozen=True)
class Sampler(ABC):
    """Base of the samplers; a configuration, no state.

    ``scheduler`` names the diffusers scheduler class whose timestep grid is used.
    """

    scheduler: ClassVar[str]

    @abstractmethod
    def transition(self, start: NoiseLevel, end: NoiseLevel, signal: np.ndarray) -> Weights:
        """Weights for the step from ``start`` to ``end``; ``signal[t]`` is alpha at training timestep t."""

    def boundary(self, level: NoiseLevel) -> tuple[float, float]:
        """``(c_out, c_skip)`` of the consistency boundary condition: ``clean <- c_out clean + c_skip x``."""
        return 1.0, 0.0

    def correction(self, before: NoiseLevel, start: NoiseLevel, end: NoiseLevel) -> float:
        """Weight of what the clean estimate changed by since the level before, in the step from ``start`` to ``end``.

        First-order samplers have none.
        """
        return 0.0

    def following(self, grid: Any, level: NoiseLevel) -> NoiseLevel | None:
        """Where the scheduler leads to from a point of its grid; None for the next point."""
        return None

    def terminal(self, grid: Any) -> NoiseLevel:
        """The level behind the last stage; by default clean."""
        return NoiseLevel(1.0, 0.0, 0.0)


@dataclass(frozen=True)
class LCM(Sampler):
    """Multistep consistency sampling (Latent Consistency Models, arXiv 2310.04378, Algorithm 3)."""

    scheduler: ClassVar[str] = "LCMScheduler"
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5

    def transition(self, start: NoiseLevel, end: NoiseLevel, signal: np.ndarray) -> Weights:
        """Re-noise the clean estimate with fresh noise only."""
        return Weights(end.alpha, 0.0, end.sigma)

    def boundary(self, level: NoiseLevel) -> tuple[float, float]:
        """Boundary scalings of the LCM paper, section 4.1."""
        s, d = level.timestep * self.timestep_scaling, self.sigma_data
        return s / math.sqrt(s * s + d * d), d * d / (s * s + d * d)


@dataclass(frozen=True)
class TCD(Sampler):
    """Strategic stochastic sampling (Trajectory Consistency Distillation, arXiv 2402.19159, Algorithm 4).

    Args:
        eta: stochasticity (gamma in the paper) in [0, 1]: 0 deterministic, 1 multistep consistency sampling.
    """

    scheduler: ClassVar[str] = "TCDScheduler"
    eta: float = 0.3

    def __post_init__(self) -> None:
        number("eta", self.eta, 0.0, 1.0)

    def transition(self, start: NoiseLevel, end: NoiseLevel, signal: np.ndarray) -> Weights:
        """Denoise to ``s = (1 - eta) t'`` along the trajectory, then diffuse to ``t'``."""
        alpha_s = float(signal[math.floor((1 - self.eta) * end.timestep)])
        sigma_s = math.sqrt(1 - alpha_s**2)
        ratio = end.alpha / alpha_s
        return Weights(end.alpha, ratio * sigma_s, math.sqrt(max(0.0, 1 - ratio**2)))

    def terminal(self, grid: Any) -> NoiseLevel:
        """Timestep 0, as in diffusers."""
        alpha = float(grid.alphas_cumprod[0].double().sqrt())
        return NoiseLevel(alpha, math.sqrt(1 - alpha**2), 0.0)


@dataclass(frozen=True)
class Euler(Sampler):
    """Deterministic first-order steps: Euler on the probability-flow ODE (Karras et al., arXiv 2206.00364), or DDIM."""

    scheduler: ClassVar[str] = "EulerDiscreteScheduler"

    def transition(self, start: NoiseLevel, end: NoiseLevel, signal: np.ndarray) -> Weights:
        """Keep the predicted noise."""
        return Weights(end.alpha, end.sigma, 0.0)

    def terminal(self, grid: Any) -> NoiseLevel:
        """Clean, but for what the scheduler is told to leave (``final_sigmas_type="sigma_min"``)."""
        return NoiseLevel(1.0, float(grid.sigmas[len(grid.timesteps)]), 0.0)


@dataclass(frozen=True)
class DPMSolver(Euler):
    """DPM-Solver++ of second order, multistep (arXiv 2211.01095, Algorithm 2): DDIM with a look at the step before.

    Not only the first step is of first order but, as in diffusers, the last one, which ends at clean latents.
    """

    scheduler: ClassVar[str] = "DPMSolverMultistepScheduler"

    def terminal(self, grid: Any) -> NoiseLevel:
        """Clean."""
        return NoiseLevel(1.0, 0.0, 0.0)

    def correction(self, before: NoiseLevel, start: NoiseLevel, end: NoiseLevel) -> float:
        """``alpha_t (1 - e^-h) / (2 r)`` with ``r = h_before / h``, where h are steps of ``log(alpha / sigma)``."""
        lambdas = [math.log(level.alpha / level.sigma) for level in (before, start, end)]
        h_before, h = lambdas[1] - lambdas[0], lambdas[2] - lambdas[1]
        return end.alpha * -math.expm1(-h) * h / (2 * h_before)


@dataclass(frozen=True)
class DDIM(Euler):
    """DDIM (arXiv 2010.02502, eta = 0) on its own grid and with its own last step."""

    scheduler: ClassVar[str] = "DDIMScheduler"

    def following(self, grid: Any, level: NoiseLevel) -> NoiseLevel:
        """As many training timesteps on as there are on average: next to the next point where those are uneven."""
        timestep = int(level.timestep) - grid.config.num_train_timesteps // grid.num_inference_steps
        signal = grid.alphas_cumprod[timestep] if timestep >= 0 else grid.final_alpha_cumprod
        alpha = math.sqrt(float(signal))
        return NoiseLevel(alpha, math.sqrt(1 - alpha**2), float(timestep))

    def terminal(self, grid: Any) -> NoiseLevel:
        """What follows the last point: as a rule the scheduler's ``final_alpha_cumprod``."""
        return self.following(grid, NoiseLevel(1.0, 0.0, float(grid.timesteps[-1])))


@dataclass(frozen=True)
class FlowMatching(Euler):
    """Euler steps of rectified flow (arXiv 2403.03206): ``alpha = 1 - sigma``, the prediction is ``noise - clean``.

    Args:
        stochastic: whether every step noises the clean estimate afresh, as distilled weights may ask for.
    """

    scheduler: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"
    stochastic: bool = False

    def transition(self, start: NoiseLevel, end: NoiseLevel, signal: np.ndarray) -> Weights:
        """Keep the predicted noise, or take fresh noise."""
        return Weights(end.alpha, 0.0, end.sigma) if self.stochastic else Weights(end.alpha, end.sigma, 0.0)


@dataclass(frozen=True)
class EulerAncestral(Sampler):
    """Euler steps down to ``sigma_down``, then fresh noise up to the next level, as in k-diffusion."""

    scheduler: ClassVar[str] = "EulerAncestralDiscreteScheduler"

    def transition(self, start: NoiseLevel, end: NoiseLevel, signal: np.ndarray) -> Weights:
        """Split the next level's noise into predicted and fresh, in variance-exploding units."""
        start_sigma, end_sigma = start.sigma / start.alpha, end.sigma / end.alpha
        up = math.sqrt(end_sigma**2 * max(0.0, start_sigma**2 - end_sigma**2) / start_sigma**2)
        down = math.sqrt(end_sigma**2 - up**2)
        return Weights(end.alpha, end.alpha * down, end.alpha * up)


_BY_SCHEDULER = {s.scheduler: s for s in (LCM(), TCD(), Euler(), DDIM(), EulerAncestral(), FlowMatching())}


def sampler_for(scheduler: Any) -> Sampler:
    """The sampler that steps like ``scheduler``.

    Multistep and second-order schedulers (PNDM, DPM-Solver++, UniPC, Heun, ...) cannot take a different step in each
    row. Like StreamDiffusion, their variance-preserving ones are replaced by LCM on the same noise schedule;
    flow-matching ones by Euler.

    Raises:
        ValueError: for schedulers of another kind (EDM, Karras-VE, ...).
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name == "LCMScheduler":
        return LCM(timestep_scaling=config.timestep_scaling)
    if name in _BY_SCHEDULER and not config.get("stochastic_sampling"):
        return _BY_SCHEDULER[name]
    if _is_flow(scheduler):
        return FlowMatching(stochastic=bool(config.get("stochastic_sampling")))
    if hasattr(scheduler, "alphas_cumprod"):
        return LCM()
    raise ValueError(
        f"{name} cannot step row by row: pass sampler=, or set pipe.scheduler to one of "
        + ", ".join(sorted(_BY_SCHEDULER))
    )


def _is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is one of flow matching."""
    predicts = getattr(scheduler.config, "prediction_type", None)
    return predicts == "flow_prediction" or type(scheduler).__name__.startswith(("FlowMatch", "FlowMap"))


def multistep_sampler_for(scheduler: Any) -> Sampler:
    """As `sampler_for`, but multistep variance-preserving schedulers are replaced by `DPMSolver`, not by LCM.

    For streams whose frames all begin at the first stage, and weights that need several steps.
    """
    sampler = sampler_for(scheduler)
    return DPMSolver() if isinstance(sampler, LCM) and type(scheduler).__name__ != "LCMScheduler" else sampler


LayOut = Callable[[Any, int], None]
"""Sets the timesteps of a flow-matching scheduler as the stock pipeline does: ``(scheduler, num_inference_steps)``."""


def grid_for(sampler: Sampler, scheduler: Any, num_inference_steps: int, lay_out: LayOut) -> Any:
    """A fresh diffusers scheduler with the timesteps of ``sampler`` set; ``scheduler`` is only read.

    Args:
        sampler: whose grid to lay out.
        scheduler: the pipeline's scheduler, source of the noise schedule.
        num_inference_steps: length of the grid.
        lay_out: what sets flow-matching timesteps.

    Raises:
        ValueError: for a scheduler that clips what it takes for clean, and a sampler of another kind of network.
    """
    if isinstance(sampler, FlowMatching) != (flow := _is_flow(scheduler)):
        kind, own = type(sampler).__name__, "flow matching" if flow else "noise levels of diffusion"
        raise ValueError(
            f"{kind} cannot step with this network, whose {type(scheduler).__name__} is of {own}: leave sampler out"
        )
    config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    if isinstance(sampler, FlowMatching) and "flow_shift" in config:
        config["shift"] = config["flow_shift"]
    kind = getattr(diffusers, sampler.scheduler)
    known = inspect.signature(kind.__init__).parameters
    grid = kind(**{k: v for k, v in config.items() if k in known})
    clips = [name for name in ("clip_sample", "thresholding") if config.get(name)]
    if clips and isinstance(sampler, LCM | DDIM):  # others do not read it
        off = ", ".join(f"{name}=False" for name in clips)
        raise ValueError(
            f"the scheduler clips its clean estimates ({clips[0]}=True), which suits pixels, and latents are not "
            f"clipped here: switch it off with pipe.scheduler.register_to_config({off})"
        )
    if isinstance(sampler, FlowMatching):
        lay_out(grid, num_inference_steps)
    else:
        grid.set_timesteps(num_inference_steps)
    return grid


def levels_of(sampler: Sampler, grid: Any) -> list[NoiseLevel]:
    """Noise levels of all grid points, first the noisiest."""
    timesteps = [float(t) for t in grid.timesteps]
    if isinstance(sampler, FlowMatching):
        return [NoiseLevel(1.0 - s, s, t) for s, t in zip(grid.sigmas.double().tolist(), timesteps, strict=False)]
    if isinstance(sampler, Euler | EulerAncestral) and hasattr(grid, "sigmas"):
        sigmas = grid.sigmas.double().tolist()[: len(timesteps)]
        return [
            NoiseLevel(1 / math.hypot(1, s), s / math.hypot(1, s), t) for s, t in zip(sigmas, timesteps, strict=True)
        ]
    signal = signal_levels(grid)
    return [NoiseLevel(float(signal[int(t)]), math.sqrt(1 - float(signal[int(t)]) ** 2), t) for t in timesteps]


def signal_levels(grid: Any) -> np.ndarray:
    """``alpha_t`` for every training timestep, ``(num_train_timesteps,)``; empty for flow matching."""
    alphas_cumprod = getattr(grid, "alphas_cumprod", torch.empty(0))
    return np.asarray(alphas_cumprod.double().sqrt().numpy())


def clean_weights(prediction_type: str, level: NoiseLevel) -> tuple[float, float]:
    """``(w_x, w_pred)`` such that the clean estimate is ``w_x x + w_pred prediction``.

    Solves ``x = alpha clean + sigma noise`` together with what the network predicts.

    Raises:
        ValueError: for an unknown prediction type, or noise prediction where there is no signal.
    """
    alpha, sigma, timestep = level
    if prediction_type == "epsilon":
        if alpha == 0:
            raise ValueError(f"timestep {timestep:g} is pure noise, where noise prediction says nothing: start later")
        return 1 / alpha, -sigma / alpha
    if prediction_type == "v_prediction":
        return alpha, -sigma
    if prediction_type == "flow_prediction":
        return 1.0, -sigma
    if prediction_type == "sample":
        return 0.0, 1.0
    raise ValueError(
        f"prediction_type {prediction_type!r} is unknown: epsilon, v_prediction, sample and flow_prediction can stream"
    )
