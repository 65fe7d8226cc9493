"""How the frames of a stream move on: they wait, enter, pass the stages tick by tick, and come out as pictures."""

from __future__ import annotations

from typing import Any

import torch

from diffaccel.stream.batch import Slot
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.course import Course
from diffaccel.stream.denoiser import Denoiser
from diffaccel.stream.images import Codec, finish
from diffaccel.stream.intake import Intake
from diffaccel.stream.state import Frame, StreamState, seen_in


class MovingFrames:
    """The part of an engine that runs under its lock, a tick at a time."""

    config: StreamConfig
    _codec: Codec
    _intake: Intake
    _course: Course
    _denoiser: Denoiser
    _state: StreamState

    def _push(self, frame: Frame) -> None:
        state = self._state
        seen = frame.seen
        if seen is not None and state.skips(seen):
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
        self._tick()
        if not self.config.stream_batch:
            self._drain()

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
            state.counts.frames_dropped += len(group)
            state.clock.finish(waited=True)
            raise
        self._deliver(finished)

    def _enter(self, group: list[Frame]) -> Slot:
        """The slot of frames that enter together, noised to the first stage; missing frames repeat the last one."""
        if self._course.advance(len(group), self.config.blend):
            self._state.adopt(self._course.settings)
        padded = group + group[-1:] * (self.config.frame_buffer - len(group))
        slot = self._intake.slot(group, padded, self._course.settings, self._state, self.config)
        self._denoiser.enter(slot, seen_in(padded))
        return slot

    def _deliver(self, finished: list[Slot]) -> None:
        """Decode what is finished, withhold what overtook an older frame, and drop what is not finite."""
        state = self._state
        images: list[Any] = []
        try:
            if finished:
                latents = torch.cat([s.latents[: len(s.frame_ids)] for s in finished])
                with state.clock.stage("decode"):
                    decoded = latents if self.config.output_type == "latent" else self._codec.decode(latents)
                with state.clock.stage("post"):
                    images = finish(decoded, self.config.output_type)
        except BaseException:
            state.counts.frames_dropped += sum(len(s.frame_ids) for s in finished)
            raise
        finally:
            timings = state.clock.finish(waited=bool(finished))
        state.release(finished, images, timings)
