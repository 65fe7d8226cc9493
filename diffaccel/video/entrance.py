"""How chunks begin: from noise alone, from the frame before with noise, or from pictures of a camera with noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch

from diffaccel.config.checks import check
from diffaccel.sampling.guidance import Guidance
from diffaccel.stream.batch import FrameSettings, Slot
from diffaccel.stream.motion import Motion, entered_at
from diffaccel.video.config import VideoConfig

Both = tuple[FrameSettings, FrameSettings]
"""Settings of chunks that begin from noise alone, and of those that begin from frames."""


def seeded_noise(seed: int, number: int, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """The noises of a chunk, one after the other, on the CPU: equal for equal seed and number."""
    generator = torch.Generator().manual_seed((seed * 2654435761 + number) % 2**63)
    while True:
        yield torch.randn(shape, generator=generator)


def with_own_noise(settings: FrameSettings, seed: int, number: int, shape: tuple[int, ...]) -> FrameSettings:
    """Settings of one chunk ``(frames, C, h, w)``: where the sampler's steps add noise, every chunk has its own.

    The same for all would leave its traces at the same places of every chunk.
    """
    stages = settings.stages
    if not any(stages.step(stage).fresh for stage in range(len(stages))):
        return settings
    drawn = islice(seeded_noise(seed, number, shape), 1, 1 + len(stages))  # the first is what the chunk begins from
    return replace(settings, stages=replace(stages, noise=torch.cat(list(drawn)).to(stages.noise)))


def from_noise(frame_ids: tuple[int, ...], settings: FrameSettings, noise: torch.Tensor) -> Slot:
    """A chunk that begins from noise ``(frames, C, h, w)``."""
    return Slot(frame_ids, settings, settings.stages.entry_scale * noise)


def from_frames(frame_ids: tuple[int, ...], settings: FrameSettings, noise: torch.Tensor, source: torch.Tensor) -> Slot:
    """A chunk that begins from clean latents ``(frames, C, h, w)`` under the noise of its first stage."""
    level = settings.stages.levels[0]
    return Slot(frame_ids, settings, level.alpha * source + level.sigma * noise, source)


class PushedPictures:
    """What is known of the pictures that were pushed.

    Args:
        timesteps: training timesteps of the scheduler.

    Attributes:
        waiting: a chunk that has not entered.
    """

    def __init__(self, timesteps: int) -> None:
        self._timesteps, self._motion = timesteps, Motion()
        self.waiting: Slot | None = None

    def settings(self, pictures: torch.Tensor, config: VideoConfig, both: Both) -> FrameSettings:
        """How pictures ``(pictures, 3, H, W)`` in [-1, 1] are denoised that follow those before."""
        if config.motion is None:
            self._motion = Motion()
            return both[1]
        strength = self._motion.strength(pictures, config.strength, config.motion)
        least = config.strength - config.motion.less
        stages = entered_at(both[0].stages, strength, least, self._timesteps)
        return replace(both[0], stages=stages)


def check_source(guidance: Guidance, source: torch.Tensor | None) -> None:
    """Raise ValueError where guidance pushes away from the frame before a chunk, and there is none."""
    check(
        source is not None or guidance.negative_source != "input",
        "SelfNegative pushes away from the frame before a chunk, and there is none: give frames",
    )


def check_pushed(config: VideoConfig, pictures: torch.Tensor, wanted: int) -> None:
    """Raise ValueError where pictures cannot be pushed."""
    check(config.strength < 1, "pushed pictures need strength below 1: at 1 all is noise, and nothing is left of them")
    check(
        len(pictures) == wanted,
        f"push {wanted} pictures at once, which is a chunk of {config.chunk} latent frames here; got {len(pictures)}",
    )
