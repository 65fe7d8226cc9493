"""Networks that keep keys and values in a cache of their own, behind the same interface: AnyFlow's FAR transformer.

Its cache is made in one call on all frames that later ones see, of which all but the last few chunks are compressed,
and so anew for every chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from diffaccel.config.checks import check
from diffaccel.networks.conditioning import Conditioning
from diffaccel.networks.network import Network
from diffaccel.networks.video_calls import AnyFlow, FarCache
from diffaccel.runtime.lanes import stored_nbytes
from diffaccel.runtime.shared_hooks import require_plain
from diffaccel.sampling.samplers import FlowMatching
from diffaccel.stream.batch import Slot, Tick
from diffaccel.stream.denoiser import LATENTS
from diffaccel.stream.work import Work, WorkRunner
from diffaccel.video.config import VideoConfig
from diffaccel.video.denoiser import CLEAN, VideoCounts, VideoDenoiser


@dataclass(frozen=True, eq=False)
class _Told:
    """Neighbouring clean frames ``(frames, C, h, w)``, and what a row was told of them."""

    latents: torch.Tensor
    prompt: Conditioning


class OwnCache:
    """Runs network calls; arguments and errors as of `VideoDenoiser`."""

    def __init__(self, network: AnyFlow, config: VideoConfig, counts: VideoCounts, calls: WorkRunner) -> None:
        require_plain([network.model])
        self.network, self.config, self._counts, self._calls = network, config, counts, calls
        context, most = config.context, int(network.model.config.rope_max_seq_len)
        check(
            context.refresh == "chunk" and context.commit == "clean" and context.positions in ("auto", "relative"),
            f"{type(network.model).__name__} makes its cache anew for every chunk, from clean frames, with positions "
            "from the first one that is seen: give CausalContext(refresh='chunk', window=...)",
        )
        check(not config.stream_batch, "its own cache is of one noise level: leave stream_batch out")
        check(not context.offload, "its own cache stays on the device: leave offload out")
        check(config.cache is None, "features cannot be reused beside its own cache: leave cache out")
        needed = config.frames_seen
        check(needed <= most, f"{needed} frames are seen at once, and it has {most} positions: give a smaller window")
        self._pieces: dict[bool, list[_Told]] = {}
        self._caches: dict[bool, FarCache] = {}

    def check(self, config: VideoConfig) -> None:
        """Nothing is reused that would have to fit."""

    @torch.no_grad()
    def predict(self, tick: Tick) -> torch.Tensor:
        """Prediction for the rows of a tick, ``(chunks * frames, C, h, w)``."""
        found = []
        for row, (slot, negative) in enumerate(tick.groups):
            own = slice(row * tick.frames, (row + 1) * tick.frames)
            prompt = slot.settings.prompt(negative)
            step = partial(self.network.from_cache, prompt=prompt, cache=self._cache_of(negative))
            found.append(self._run(tick.latents[own], partial(step, **_interval(slot))))
        self._counts.work = self._counts.work.with_call(len(found), ())
        return torch.cat(found)

    def _cache_of(self, negative: bool) -> FarCache:
        """What a row's queries meet."""
        if negative not in self._caches:
            told = self._pieces.get(negative, [])
            sizes, prompts = [len(t.latents) for t in told], [t.prompt for t in told]

            def keep(latents: torch.Tensor) -> torch.Tensor:
                self._caches[negative] = self.network.cached(torch.split(latents, sizes), prompts)
                return latents

            if told:
                self._run(torch.cat([t.latents for t in told]), keep)
                self._counts.writes += 1
            else:
                self._caches[negative] = self.network.cached((), ())
        return self._caches[negative]

    def _run(self, latents: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Call the network when it is its turn."""
        require_plain([self.network.model])
        self._calls.begin()
        work = Work("network", id(self), lambda rows: function(rows[LATENTS]), {LATENTS: latents}, len(latents))
        found: torch.Tensor = self._calls.run(work)
        return found

    def write(
        self,
        first: int,  # noqa: ARG002
        latents: torch.Tensor,
        prompts: Sequence[tuple[bool, Conditioning]],
        timestep: float = 0.0,  # noqa: ARG002
        stage: Hashable = CLEAN,  # noqa: ARG002
    ) -> None:
        """Let later chunks see clean frames ``(frames, C, h, w)`` behind those written before."""
        for negative, prompt in prompts:
            self._pieces.setdefault(negative, []).append(_Told(latents, prompt))
            self._caches.pop(negative, None)

    def forget(self) -> None:
        """Let later chunks see nothing of what was kept."""
        self._pieces.clear()
        self._caches.clear()

    @property
    def context_bytes(self) -> int:
        """Bytes that kept keys and values take."""
        return int(stored_nbytes([list(cache.tensors) for cache in self._caches.values()]))

    def planned_bytes(self, size: tuple[int, int]) -> tuple[int, int]:
        """Bytes of the cache of a full window; there are no windows beside it."""
        context, rows = self.config.context, 1 + self.config.guidance.reads_negative_prompt
        frames = (context.window or 0) + context.sink
        pieces = [self.config.chunk] * -(-frames // self.config.chunk)
        return rows * self.network.cache_bytes(pieces, size), 0

    @property
    def held(self) -> int:
        """Frames whose keys and values are kept."""
        return max((sum(len(told.latents) for told in pieces) for pieces in self._pieces.values()), default=0)

    def close(self) -> None:
        """Let go of everything."""
        self.forget()


def denoiser_for(
    network: Network, config: VideoConfig, counts: VideoCounts, calls: WorkRunner
) -> VideoDenoiser | OwnCache:
    """What runs the calls of a network; arguments as of `VideoDenoiser`."""
    if isinstance(network, AnyFlow):
        return OwnCache(network, config, counts, calls)
    return VideoDenoiser(network, config, counts, calls)


def _interval(slot: Slot) -> dict[str, float]:
    """The timestep of a slot's stage, and the one that its step leads to: a stochastic one to the clean frames."""
    stages = slot.settings.stages
    timesteps = (*stages.timesteps, 0.0)
    afresh = isinstance(stages.sampler, FlowMatching) and stages.sampler.stochastic
    return {"timestep": timesteps[slot.stage], "following": 0.0 if afresh else timesteps[slot.stage + 1]}
