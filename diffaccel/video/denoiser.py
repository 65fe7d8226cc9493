"""The network of one video: called on chunks, with what it keeps of earlier ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from diffaccel.networks import UnsupportedModelError
from diffaccel.networks.causal import causal_layout_of
from diffaccel.networks.conditioning import Conditioning, Keywords, stack
from diffaccel.networks.inputs import Inputs
from diffaccel.networks.network import Network
from diffaccel.reuse.schedule import Always
from diffaccel.runtime.act import Part
from diffaccel.runtime.call import Call
from diffaccel.runtime.extend_act import ExtendKeyValues, ExtendState
from diffaccel.runtime.lanes import Lane, Span
from diffaccel.stream.batch import Slot, Tick
from diffaccel.stream.denoiser import LATENTS, TIMESTEPS, NetworkWork
from diffaccel.stream.machine import Machine
from diffaccel.stream.slot_cache import SlotCache
from diffaccel.stream.work import Rows, Work, WorkRunner
from diffaccel.video.config import VideoConfig
from diffaccel.video.memory import context_bytes

CLEAN = "clean"
"""The stage of contexts that all stages share."""


@dataclass
class VideoCounts:
    """What has been called for a video.

    Attributes:
        work: calls of chunks.
        writes: calls that only keep what later chunks see.
    """

    work: NetworkWork = field(default_factory=NetworkWork)
    writes: int = 0


class VideoDenoiser:
    """Runs network calls.

    Args:
        network: what is called.
        config: of the video.
        counts: where calls are counted.
        calls: runs the network, perhaps in turn with streams.

    Raises:
        UnsupportedModelError, ValueError: where the context or the cache does not fit the network.
        RuntimeError: where the network is accelerated already.
    """

    def __init__(self, network: Network, config: VideoConfig, counts: VideoCounts, calls: WorkRunner) -> None:
        self.network, self.config, self._counts, self._calls = network, config, counts, calls
        self.layout = causal_layout_of(network.model)
        config.context.check_fit(self.layout, config.chunk)
        model = network.model
        self._cache = cache = None if config.cache is None else SlotCache(config.cache, "frame")
        if cache is not None and cache.method.needs_controlnet:
            name = type(cache.method).__name__
            raise UnsupportedModelError(f"{name} needs a ControlNet, and videos without end have none: leave it out")
        self.check(config)
        self._parts = [] if cache is None else cache.parts(model, config.num_steps)
        wrappers = [] if cache is None else cache.wrappers(model, config.num_steps)
        act = ExtendKeyValues(self.layout, config.context)
        self._machine = Machine(model, [*self._parts, Part(act, Always(), lifetime="video")], wrappers=wrappers)
        self._state: ExtendState = self._machine.session.states[len(self._parts)]  # type: ignore[assignment]

    def check(self, config: VideoConfig) -> None:
        """Raise ValueError where what is reused does not fit as many calls as a chunk takes under a configuration."""
        if self._cache is not None:
            for calls in sorted({*config.runs}):
                self._cache.parts(self.network.model, calls)

    @property
    def _context(self) -> Any:
        return self._machine.memory.parts[len(self._parts)].lanes

    @torch.no_grad()
    def predict(self, tick: Tick) -> torch.Tensor:
        """Prediction for the rows of a tick, ``(chunks * frames, C, h, w)``."""
        frames, batch = tick.frames, self.config.stream_batch
        told: Keywords = {name: value[::frames] for name, value in tick.inputs.items()}
        spans = tuple(self._span(slot, negative) for slot, negative in tick.groups)
        features = tuple(
            Lane(("chunk", row), 0) if self._cache is None else self._cache.lane(slot, negative, 0)
            for row, (slot, negative) in enumerate(tick.groups)
        )
        told_by = [slot.settings.prompt(negative) for slot, negative in tick.groups]
        own = tuple(Lane(("video", slot.stage if batch else CLEAN), negative) for slot, negative in tick.groups)
        latents = tick.latents.unflatten(0, (-1, frames)).transpose(1, 2)  # type: ignore[no-untyped-call]
        stages = [(slot.stage, slot.settings.stages) for slot, _ in tick.groups]
        levels = [each.levels[stage] for stage, each in stages]
        call = replace(
            self._call(latents, tick.timesteps[::frames], told, told_by, features, own, spans),
            places=tuple((stage, len(each)) for stage, each in stages),
            roles=tuple("negative" if negative else "positive" for _, negative in tick.groups),
            levels=tuple((level.alpha, level.sigma) for level in levels),
        )
        before = self._counts.work.rows
        prediction: torch.Tensor = self._machine.run(call, self._counted)
        work = self._counts.work
        skipped = call.count - (work.rows - before)  # rows that the network did not see
        self._counts.work = replace(work, rows=work.rows + skipped, replayed=work.replayed + skipped)
        self._machine.memory.keep({**call.lanes, "video": tuple(self._context.lanes)})
        return prediction.transpose(1, 2).flatten(0, 1)

    def _span(self, slot: Slot, negative: bool) -> Span:
        """The frames of a chunk, and who sees them as they are in this call."""
        commit, frames = self.config.context.commit, len(slot.latents)
        if not self.config.stream_batch:
            last = slot.stage == len(slot.settings.stages) - 1
            return Span(slot.frame_ids[0], frames, last and commit == "last-step")
        noisier = range(slot.stage) if commit == "latest" else ()
        return Span(slot.frame_ids[0], frames, True, tuple(Lane(("video", stage), negative) for stage in noisier))

    @torch.no_grad()
    def write(
        self,
        first: int,
        latents: torch.Tensor,
        prompts: Sequence[tuple[bool, Conditioning]],
        timestep: float = 0.0,
        stage: Hashable = CLEAN,
    ) -> None:
        """Let later chunks see frames.

        Args:
            first: number of the first one.
            latents: ``(frames, C, h, w)``, with the noise of the timestep.
            prompts: for each row whether it is the negative one, and what it is told.
            timestep: 0 for clean frames.
            stage: whose chunks will see them.
        """
        rows, frames = len(prompts), len(latents)
        told = stack([prompt for _, prompt in prompts], 1)
        features = tuple(Lane(("write", row), 0) for row in range(rows))
        own = tuple(Lane(("video", stage), negative) for negative, _ in prompts)
        whole_number = timestep == int(timestep)
        t = torch.full((rows,), timestep, dtype=torch.long if whole_number else torch.float32, device=latents.device)
        whole = latents.transpose(0, 1)[None].expand(rows, -1, -1, -1, -1)  # (rows, C, frames, h, w)
        spans = (Span(first, frames, True),) * rows
        call = self._call(whole, t, told, [prompt for _, prompt in prompts], features, own, spans)
        beginning, clean = ((0, self.config.num_steps),) * rows, ((1.0, 0.0),) * rows
        self._machine.run(replace(call, places=beginning, levels=clean), self._run)
        for memory in self._machine.memory.parts:
            memory.lanes.drop(features)
        self._counts.writes += 1

    def _call(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        told: Keywords,
        prompts: Sequence[Conditioning],
        features: tuple[Lane, ...],
        own: tuple[Lane, ...],
        spans: tuple[Span, ...],
    ) -> Call:
        """A call on rows of chunks, ``(rows, C, frames, h, w)``; one that keeps anything computes in full."""
        frames = latents.shape[2]
        tokens = max(map(len, told["encoder_hidden_states"]))  # a prompt is padded to the longest beside it
        shared = tuple(Lane((prompt, frames, tokens), 0) for prompt in prompts)  # its keys and values, for each frame
        values = {**told, LATENTS: latents, TIMESTEPS: timesteps}
        return Call(
            Inputs(values, (LATENTS, TIMESTEPS, None)),
            {"run": features, "prompt": shared, "frame": shared, "video": own},
            forced=True if any(span.commits for span in spans) else None,
            spans=spans,
        )

    def _run(self, call: Call) -> torch.Tensor:
        self._calls.begin()
        work = Work("network", id(self), self._predict, call.inputs.values, call.count)
        prediction: torch.Tensor = self._calls.run(work)
        return prediction

    def _counted(self, call: Call) -> torch.Tensor:
        """Run a call that denoises, and count it."""
        prediction = self._run(call)
        states = self._machine.session.states[: len(self._parts)]
        self._counts.work = self._counts.work.with_call(call.count, states)
        return prediction

    def _predict(self, rows: Rows) -> torch.Tensor:
        told = {name: value for name, value in rows.items() if name not in (LATENTS, TIMESTEPS)}
        return self.network.predict(rows[LATENTS].to(self.network.dtype), rows[TIMESTEPS], told)

    def forget(self) -> None:
        """Let later chunks see nothing of what was kept."""
        self._machine.memory.parts[len(self._parts)].keep(())
        self._state.forget_windows()

    @property
    def context_bytes(self) -> int:
        """Bytes that kept keys and values take, with the windows that are gathered from them."""
        return int(self._context.nbytes()) + self._state.window_bytes()

    def planned_bytes(self, size: tuple[int, int]) -> tuple[int, int]:
        """See `context_bytes` of memory.py."""
        return context_bytes(self.network, self.layout, self.config, size)

    @property
    def held(self) -> int:
        """Frames whose keys and values the next chunk may see."""
        kept = [self._context.block_of(lane).entries[-1].frames for lane in self._context.lanes]
        return max((len(self.config.context.seen(frames, frames[-1] + 1)) for frames in kept), default=0)

    def close(self) -> None:
        """Take all hooks off the network."""
        self.forget()
        self._machine.close()
