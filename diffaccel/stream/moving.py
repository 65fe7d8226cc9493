"""How the frames of a stream move on: they wait, enter, pass the stages tick by tick, and come out as pictures."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import torch

from diffaccel.stream.batch import Slot
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.course import Course, SettingsBuilder
from diffaccel.stream.denoiser import Denoiser
from diffaccel.stream.images import Codec, finish
from diffaccel.stream.intake import Intake
from diffaccel.stream.pace import Pace
from diffaccel.stream.smoothing import Track
from diffaccel.stream.state import Frame, StreamState, seen_in
from diffaccel.stream.work import WorkRunner


class MovingFrames:
    """The part of an engine that runs under its lock, a tick at a time."""

    config: StreamConfig
    _codec: Codec
    _intake: Intake
    _course: Course
    _denoiser: Denoiser
    _state: StreamState
    _builder: SettingsBuilder
    _pace: Pace | None = None
    _runner: WorkRunner

    @property
    def needs(self) -> tuple[str, ...]:
        """What each frame has to bring: "picture", "mask", "control image"."""
        return self._intake.needs(self.config)

    def making_room(self) -> AbstractContextManager[None]:
        """Within, this stream's room in its host is free for one that takes its place, unless the body raises."""
        return self._runner.aside()

    def _push(self, frame: Frame) -> None:
        state = self._state
        if state.skips(frame):
            try:
                if state.busy:
                    self._advance()
            finally:
                state.repeat(frame)
            return
        state.pending.append(frame)
        if len(state.pending) >= self.config.frame_buffer:
            self._advance()

    def _advance(self) -> None:
        """One tick; in sequential mode as many as finish what is in flight."""
        sums, begin = self._state.clock.sums, time.perf_counter()
        before = sums["denoise"]
        self._tick()
        if not self.config.stream_batch:
            self._drain()
        if self._pace is not None:
            frames, seconds = self.config.frame_buffer, time.perf_counter() - begin
            if self._pace.note(seconds / frames, (sums["denoise"] - before) / 1000 / frames):
                self._stand(self.config)

    def _standing(self, config: StreamConfig) -> StreamConfig:
        """Settings as they are in force: where they would run late, cheaper ones."""
        return config if self._pace is None else self._pace.rung.of(config)

    def _stand(self, config: StreamConfig) -> None:
        """Go on under cheaper or dearer settings."""
        standing = self._standing(config)
        target = self._builder.build(standing)
        self._replace(self._denoiser.configured(standing))
        if self._course.turn(target, 0, "all"):
            self._state.adopt(self._course.settings)

    def _replace(self, denoiser: Denoiser) -> None:
        if denoiser is not self._denoiser:
            self._denoiser.close()
            self._denoiser = denoiser

    def _drain(self) -> None:
        while self._state.busy:
            self._tick()

    def _tick(self) -> None:
        """Let the frames that wait enter, and move all frames on."""
        state = self._state
        group, state.pending = state.pending, []
        try:
            entering = self._enter(group) if group else None
            with state.clock.stage("denoise"):
                finished = state.batch.tick(self._denoiser.predict, entering)
        except BaseException:
            state.drop(len(group))
            state.clock.finish(waited=True)
            raise
        self._deliver(finished)

    def _enter(self, group: list[Frame]) -> Slot:
        """The slot of frames that enter together, noised to the first stage; missing frames repeat the last one."""
        if self._course.advance(len(group), self.config.blend):
            self._state.adopt(self._course.settings)
        padded = group + group[-1:] * (self.config.frame_buffer - len(group))
        slot = self._intake.slot(group, padded, self._course.settings, self._state, self.config)
        slot.number = self._state.count_slot()
        if self._state.smoothing is not None:
            with self._state.clock.stage("preprocess"):
                slot.tracks = self._state.smoothing.enter([frame.pixels for frame in group], self._course.settings)
        self._denoiser.enter(slot, seen_in(padded))
        return slot

    def _deliver(self, finished: list[Slot]) -> None:
        """Decode what is finished, withhold what overtook an older frame, and drop what is not finite."""
        state = self._state
        images: list[Any] = []
        try:
            if finished:
                latents = torch.cat([s.latents[: len(s.frame_ids)] for s in finished])
                state.keep_result(latents)
                with state.clock.stage("decode"):
                    decoded = latents if self.config.output_type == "latent" else self._codec.decode(latents)
                with state.clock.stage("post"):
                    if state.smoothing is not None:
                        tracks = [t for s in finished for t in s.tracks or (Track(),) * len(s.frame_ids)]
                        decoded = state.smoothing.leave(decoded, tracks)
                    images = finish(decoded, self.config.output_type)
        except BaseException:
            state.drop(sum(len(s.frame_ids) for s in finished))
            raise
        finally:
            timings = state.clock.finish(waited=bool(finished))
        state.release(finished, images, timings)
