"""Noise for pictures: less where they move, so that motion is followed (StreamDiffusionV2, 2511.07399)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from diffaccel.config import Config
from diffaccel.config.checks import number
from diffaccel.sampling.samplers import NoiseLevel
from diffaccel.stream.stages import Stages


@dataclass(frozen=True)
class MotionNoise(Config):
    """How much less noise pushed pictures begin with where they move.

    A frame, or a chunk of a video, begins at ``(1 - inertia) (strength - less min(1, motion / full)) + inertia
    before``, where ``before`` is what the one before it began at, and motion the largest difference of a picture from
    the one before: the root of the mean square of pixel values in [-1, 1]. All are shares of the training timesteps.

    Args:
        less: what is taken from `strength` for the most motion.
        full: motion that counts as the most.
        inertia: share of the one before, in [0, 1).

    Raises:
        ValueError: for values out of range.
    """

    less: float = 0.2
    full: float = 0.2
    inertia: float = 0.1

    def __post_init__(self) -> None:
        number("less", self.less, 0.0, 1.0)
        number("full", self.full, 1e-6, 2.0)
        number("inertia", self.inertia, 0.0, 0.999)

    def strength(self, still: float, before: float, motion: float) -> float:
        """Share of the training timesteps that pictures begin at."""
        return (1 - self.inertia) * (still - self.less * min(1.0, motion / self.full)) + self.inertia * before


class Motion:
    """What is known of the pictures that were pushed: the last one, and what it began at."""

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None
        self._strength: float | None = None

    def strength(self, pictures: torch.Tensor, still: float, noise: MotionNoise) -> float:
        """What pictures ``(pictures, 3, H, W)`` in [-1, 1] begin at; `still` is without motion."""
        motion, self._last = motion_of(pictures, self._last), pictures[-1]
        self._strength = noise.strength(still, still if self._strength is None else self._strength, motion)
        return self._strength


def motion_of(pictures: torch.Tensor, last: torch.Tensor | None) -> float:
    """The largest difference of a picture ``(pictures, 3, H, W)`` from the one before it; `last` is before the first.

    The root of the mean square, in the unit of the pixels; 0 where nothing is before.
    """
    whole = pictures if last is None else torch.cat([last[None].to(pictures), pictures])
    if len(whole) < 2:
        return 0.0
    return float((whole[1:] - whole[:-1]).square().mean((1, 2, 3)).sqrt().max())


def entered_at(stages: Stages, strength: float, least: float, timesteps: int) -> Stages:
    """Stages that begin in between: at `strength` of all timesteps, and go on with those below the `least` one.

    So there are equally many from `least` upward.

    Args:
        stages: of a whole grid.
        strength, least: shares of the training timesteps.
        timesteps: how many these are.
    """
    later = [i for i, level in enumerate(stages.levels) if level.timestep < least * timesteps]
    noise = torch.cat([stages.noise_of(i) for i in (0, *later)])
    first = _level(stages, strength, timesteps)
    return replace(stages, levels=(first, *(stages.levels[i] for i in later)), noise=noise, begun_at=stages)


def _level(stages: Stages, strength: float, timesteps: int) -> NoiseLevel:
    """The noise level at a share of the training timesteps."""
    if not len(stages.signal):  # of flow matching
        return NoiseLevel(1 - strength, strength, strength * timesteps)
    timestep = min(round(strength * timesteps), len(stages.signal) - 1)
    alpha = float(stages.signal[timestep])
    return NoiseLevel(alpha, (1 - alpha**2) ** 0.5, float(timestep))
