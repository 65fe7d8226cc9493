"""What a running stream remembers; `StreamEngine.reset` builds it anew, so that no field is forgotten."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from diffaccel.sampling.guidance import Guidance
from diffaccel.sampling.samplers import Sampler
from diffaccel.stream.batch import FrameSettings, Slot, StreamBatch
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.denoiser import NetworkWork
from diffaccel.stream.motion import Motion
from diffaccel.stream.pace import PaceReport
from diffaccel.stream.report import Counts, StreamOutput, StreamReport
from diffaccel.stream.seeds import SeededNoise
from diffaccel.stream.similarity import SimilarityState
from diffaccel.stream.smoothing import Smoothing
from diffaccel.stream.stopwatch import Clock


@dataclass(frozen=True, eq=False)
class Frame:
    """An accepted input: pixels ``(1, 3, H, W)`` in [-1, 1] or None, own noise ``(1, C, h, w)`` or None.

    ``control`` are control images that were given with it, ``(1, 3, H, W)`` in [0, 1] for each ControlNet, ``mask`` is
    ``(1, 1, H, W)``, 1 where it is painted anew, or None.
    """

    frame_id: int
    entered: float
    pixels: torch.Tensor | None
    noise: torch.Tensor | None
    control: tuple[torch.Tensor, ...] | None = None
    mask: torch.Tensor | None = None

    @property
    def seen(self) -> torch.Tensor | None:
        """What makes it like another frame or not: picture, mask and given control images, ``(1, channels, H, W)``."""
        beside = [*(self.control or ()), *([] if self.mask is None else [self.mask])]
        if self.pixels is None or not beside:
            return self.pixels
        return torch.cat([self.pixels, *(image.to(self.pixels) * 2 - 1 for image in beside)], 1)


def seen_in(frames: Sequence[Frame]) -> torch.Tensor | None:
    """What all frames show, ``(frames, channels, H, W)``; None for text-to-image."""
    seen = [x for f in frames if (x := f.seen) is not None]
    if len({x.shape for x in seen}) > 1:  # control images were given with some of them
        seen = [f.pixels for f in frames if f.pixels is not None]
    return torch.cat(seen) if seen else None


def first_noise(settings: FrameSettings, noises: Sequence[torch.Tensor | None], device: torch.device) -> torch.Tensor:
    """The noise of entering frames, ``(frames, C, h, w)``: their own, or for None the first stage's."""
    own = settings.stages.noise_of(0)
    rows = [own[k : k + 1] if noise is None else noise for k, noise in enumerate(noises)]
    return own if all(noise is None for noise in noises) else torch.cat([row.to(device, torch.float32) for row in rows])


def entering_slot(
    frames: Sequence[Frame],
    settings: FrameSettings,
    source: torch.Tensor | None,
    noise: torch.Tensor,
    *,
    bare: bool,
) -> Slot:
    """Frames at their first stage: clean latents ``source`` noised, or for text-to-image (None) noise alone.

    ``bare`` frames begin as noise alone though they have a source.
    """
    ids, entered = tuple(f.frame_id for f in frames), tuple(f.entered for f in frames)
    stages, level = settings.stages, settings.stages.levels[0]
    latents = stages.entry_scale * noise if source is None or bare else level.alpha * source + level.sigma * noise
    return Slot(ids, settings, latents, source, entered=entered)


class StreamState:
    """Frames waiting and in flight, generators, counts, times, the last picture."""

    def __init__(self, config: StreamConfig, device: torch.device) -> None:
        self.batch = StreamBatch(config.frame_buffer, device)
        self.pending: list[Frame] = []
        self.counts = Counts()
        self.clock = Clock(device)
        self.motion = Motion()
        self.smoothing = None if config.smoothing is None else Smoothing(config.smoothing)
        self._noise = SeededNoise(config.seed)
        self._result: torch.Tensor | None = None  # the last finished latents, (1, C, h, w)
        self._filter = None if config.similarity is None else SimilarityState(config.similarity)
        self._own: tuple[torch.Tensor | None, torch.Tensor | None] = None, None  # noise and mask of the last frame
        self.next_id = 0
        self._slots = count()
        self._withheld: list[tuple[Slot, list[Any]]] = []
        self._ready: list[StreamOutput] = []
        self._last_image: Any = None
        self._settings: FrameSettings | None = None

    def take_ids(self, frames: int, first: int | None) -> int:
        """Number so many frames that were accepted; gives the first number.

        Raises:
            ValueError: where ``first`` is not above every earlier number.
        """
        start = self.next_id if first is None else first
        if start < self.next_id:
            raise ValueError(f"frame_id must rise: {start} is below {self.next_id}")
        self.next_id = start + frames
        self.counts.frames_in += frames
        return start

    def count_slot(self) -> int:
        """The number of an entering slot."""
        return next(self._slots)

    def noise(self, frame: Frame, shape: tuple[int, int, int]) -> torch.Tensor:
        """The initial noise of a text-to-image frame, ``(1, C, h, w)``: its own, or a draw."""
        return self._noise.draw(1, *shape) if frame.noise is None else frame.noise

    def keep_result(self, latents: torch.Tensor) -> None:
        """Remember finished latents ``(frames, C, h, w)`` for `fed_back`."""
        self._result = latents[-1:]

    def fed_back(self, source: torch.Tensor, share: float) -> torch.Tensor:
        """Clean latents ``(frames, C, h, w)`` of entering frames, with a share of the last result in their place.

        A result that is not finite is left out, which is decided on the device, so that nobody waits for it.
        """
        if self._result is None or share == 0:
            return source
        result = self._result.to(source)
        return torch.where(result.isfinite().all(), torch.lerp(source, result.nan_to_num(), share), source)

    def skips(self, frame: Frame) -> bool:
        """Whether the similarity filter skips this frame.

        Never before there is a picture to show instead, nor behind a frame without one, or with another mask or other
        noise of its own.
        """
        if self._filter is None:
            return False
        seen, (noise, mask) = frame.seen, self._own
        if seen is None or not (_are_same(frame.noise, noise) and _are_same(frame.mask, mask)):
            self._filter.forget()
        self._own = frame.noise, frame.mask
        if seen is None:
            return False
        if self._last_image is None:
            self._filter.accept(seen)
            return False
        return self._filter.skips(seen)

    def _forget_seen(self) -> None:
        """Let the next frame pass: what the last ones showed was not painted."""
        if self._filter is not None:
            self._filter.forget()

    def painted_under(self, settings: FrameSettings) -> None:
        """Note what entering frames are painted under: a picture of other settings must not be shown again."""
        if self._settings is not None and settings != self._settings:
            self._forget_seen()
        self._settings = settings

    def repeat(self, frame: Frame) -> None:
        """Make the last picture ready again, for a skipped frame."""
        self.counts.frames_skipped += 1
        latency = (time.perf_counter() - frame.entered) * 1000
        self._ready.append(StreamOutput(self._last_image, frame.frame_id, skipped=True, timings={"latency": latency}))

    def take_ready(self) -> list[StreamOutput]:
        """The outputs that are ready, each once; where a call raises, they stay for the next one."""
        ready, self._ready = self._ready, []
        return ready

    def release(self, finished: Sequence[Slot], images: Sequence[Any], timings: dict[str, float]) -> None:
        """Make outputs ready in the order of their inputs: frames that overtook an older one wait for it."""
        start = 0
        for slot in finished:
            end = start + len(slot.frame_ids)
            self._withheld.append((slot, list(images[start:end])))
            start = end
        oldest = min((s.frame_ids[0] for s in self.batch.slots), default=None)
        self._withheld.sort(key=lambda pair: pair[0].frame_ids)
        while self._withheld and (oldest is None or self._withheld[0][0].frame_ids[0] < oldest):
            self._output(*self._withheld.pop(0), timings)

    def _output(self, slot: Slot, images: list[Any], timings: dict[str, float]) -> None:
        for frame_id, entered, image in zip(slot.frame_ids, slot.entered, images, strict=True):
            if image is None:
                self.counts.frames_not_finite += 1
                self._forget_seen()
                continue
            latency = (time.perf_counter() - entered) * 1000
            self.clock.latency(latency)
            self.counts.frames_out += 1
            self._last_image = image
            self._ready.append(StreamOutput(image, frame_id, timings={**timings, "latency": latency}))

    def check_guidance(self, guidance: Guidance, at: str) -> None:
        """Raise ValueError where waiting frames, or those in flight, have no picture that new guidance would need."""
        flying = at == "all" and any(s.source is None for s in self.batch.slots)
        if guidance.negative_source == "input" and (flying or any(f.pixels is None for f in self.pending)):
            raise ValueError(
                "SelfNegative needs input pictures, and text-to-image frames are in flight: flush, or use at='new'"
                if flying
                else "SelfNegative needs input pictures, and text-to-image frames wait for their buffer to fill: flush"
            )

    def reconfigure(self, old: StreamConfig, new: StreamConfig) -> None:
        """Follow a change of settings: a frame is only skipped for one that was painted under the same ones."""
        self._forget_seen()
        if new.similarity != old.similarity:
            self._filter = None if new.similarity is None else SimilarityState(new.similarity)
        if new.motion != old.motion:
            self.motion = Motion()
        if new.smoothing != old.smoothing:
            self.smoothing = None if new.smoothing is None else Smoothing(new.smoothing)
        if new.seed != old.seed:
            self._noise = SeededNoise(new.seed)
        if new.output_type != old.output_type:
            self._last_image = None

    def adopt(self, settings: FrameSettings) -> None:
        """Let frames in flight go on under new settings."""
        for slot in self.batch.slots:
            slot.adopt(settings)

    def drop(self, frames: int | None = None) -> None:
        """Count accepted ``frames`` as dropped; None drops every frame that waits, flies or is ready."""
        if frames is None:
            frames = self.in_flight
            self.pending, self.batch.slots, self._withheld, self._ready = [], [], [], []
            self._result = None
        self.counts.frames_dropped += frames
        self._forget_seen()

    @property
    def busy(self) -> bool:
        """Whether frames wait or are in flight."""
        return bool(self.pending or self.batch.slots)

    @property
    def in_flight(self) -> int:
        """Frames that were accepted and have not come out."""
        slots = [*self.batch.slots, *(slot for slot, _ in self._withheld)]
        return len(self.pending) + sum(len(s.frame_ids) for s in slots)

    def report(self, work: NetworkWork, latency: int, sampler: Sampler, pace: PaceReport | None) -> StreamReport:
        """Account of this stream."""
        summary = self.clock.summary()
        latency_ms = summary.pop("latency", {})
        return StreamReport(
            **vars(self.counts),
            frames_in_flight=self.in_flight,
            latency_frames=latency,
            latency_ms=latency_ms,
            tick_ms=summary,
            ticks=self.clock.ticks,
            network_calls=work.calls,
            network_rows=work.rows,
            computed_rows=work.rows - work.replayed,
            replayed_rows=work.replayed,
            sampler=type(sampler).__name__,
            pace=pace,
        )


def _are_same(own: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two frames have the same noise or mask of their own, or none."""
    if own is None or other is None:
        return own is other
    return own.device == other.device and torch.equal(own, other)
