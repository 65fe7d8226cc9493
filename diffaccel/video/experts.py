"""The networks of one video that take turns by noise level, as those of Wan 2.2 do, each with a context of its own.

Each sees what its own attentions made of earlier frames, so that finished frames go through all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from diffaccel.config.checks import check
from diffaccel.networks.conditioning import Conditioning
from diffaccel.networks.network import Network
from diffaccel.networks.video_calls import experts_of
from diffaccel.stream.batch import Tick
from diffaccel.stream.work import WorkRunner
from diffaccel.video.config import VideoConfig
from diffaccel.video.denoiser import CLEAN, VideoCounts, VideoDenoiser
from diffaccel.video.own_cache import OwnCache, denoiser_for


class Experts:
    """Runs network calls, each on the rows whose noise it is for.

    Args:
        network: the one for most noise.
        config: of the video.
        counts: where calls are counted.
        calls: runs the networks, perhaps in turn with streams.

    Raises:
        UnsupportedModelError, ValueError: where the context or the cache does not fit the networks.
        RuntimeError: where one is accelerated already.
    """

    def __init__(self, network: Network, config: VideoConfig, counts: VideoCounts, calls: WorkRunner) -> None:
        found = experts_of(network)
        check(
            len(found) == 1 or config.context.commit == "clean",
            f"commit={config.context.commit!r} keeps what one step made of frames, and each of two transformers needs "
            "its own keys and values: leave commit out",
        )
        self._experts: list[tuple[float, VideoDenoiser | OwnCache]] = []
        try:
            with calls.quiet():
                for least, each in found:
                    self._experts.append((least, denoiser_for(each, config, counts, calls)))
        except BaseException:
            self.close()
            raise

    def _turn(self, timestep: float) -> int:
        """Whose turn it is at a timestep."""
        return next(k for k, (least, _) in enumerate(self._experts) if timestep >= least)

    def predict(self, tick: Tick) -> torch.Tensor:
        """Prediction for the rows of a tick, ``(chunks * frames, C, h, w)``."""
        turns = [self._turn(slot.settings.stages.timesteps[slot.stage]) for slot, _ in tick.groups]
        if len(set(turns)) == 1:
            return self._experts[turns[0]][1].predict(tick)
        prediction = torch.empty_like(tick.latents)
        for turn in sorted(set(turns)):
            groups = [k for k, each in enumerate(turns) if each == turn]
            rows = [row for k in groups for row in range(k * tick.frames, (k + 1) * tick.frames)]
            part = replace(
                tick,
                latents=tick.latents[rows],
                timesteps=tick.timesteps[rows],
                inputs={name: _picked(value, rows) for name, value in tick.inputs.items()},
                groups=tuple(tick.groups[k] for k in groups),
            )
            prediction[rows] = self._experts[turn][1].predict(part).to(prediction)
        return prediction

    def write(
        self,
        first: int,
        latents: torch.Tensor,
        prompts: Sequence[tuple[bool, Conditioning]],
        timestep: float = 0.0,
        stage: Hashable = CLEAN,
    ) -> None:
        """Let later chunks see frames: clean ones through all networks; see `VideoDenoiser.write`."""
        turn = self._turn(timestep)
        for denoiser in self.denoisers if stage == CLEAN else self.denoisers[turn : turn + 1]:
            denoiser.write(first, latents, prompts, timestep, stage)

    @property
    def denoisers(self) -> list[VideoDenoiser | OwnCache]:
        """The networks, the one for most noise first."""
        return [denoiser for _, denoiser in self._experts]

    def check(self, config: VideoConfig) -> None:
        """Raise ValueError where what is reused does not fit a configuration."""
        for denoiser in self.denoisers:
            denoiser.check(config)

    def planned_bytes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """For each network bytes of keys and values to come, and of windows, for latents of this height and width."""
        return [denoiser.planned_bytes(size) for denoiser in self.denoisers]

    def forget(self) -> None:
        """Let later chunks see nothing of what was kept."""
        for denoiser in self.denoisers:
            denoiser.forget()

    @property
    def context_bytes(self) -> int:
        """Bytes that kept keys and values take, with the windows that are gathered from them."""
        return sum(denoiser.context_bytes for denoiser in self.denoisers)

    @property
    def held(self) -> int:
        """Frames whose keys and values are kept."""
        return max(denoiser.held for denoiser in self.denoisers)

    def close(self) -> None:
        """Take all hooks off the networks."""
        for denoiser in self.denoisers:
            denoiser.close()


def _picked(value: torch.Tensor | list[torch.Tensor], rows: Sequence[int]) -> torch.Tensor | list[torch.Tensor]:
    """Some rows of a conditioning."""
    return value[rows] if isinstance(value, torch.Tensor) else [value[row] for row in rows]
