"""One video under way: what has been made, what is in flight, and how the next chunk comes about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from diffaccel.networks.conditioning import Conditioning
from diffaccel.networks.network import Network
from diffaccel.stream.batch import FrameSettings, Slot, StreamBatch
from diffaccel.stream.images import finish
from diffaccel.stream.work import WorkRunner
from diffaccel.video.codec import FrameCodec
from diffaccel.video.config import VideoConfig
from diffaccel.video.denoiser import VideoCounts
from diffaccel.video.entrance import (
    Both,
    PushedPictures,
    check_source,
    from_frames,
    from_noise,
    seeded_noise,
    with_own_noise,
)
from diffaccel.video.experts import Experts
from diffaccel.video.history import History, Piece
from diffaccel.video.report import PARTS, ChunkReport, FramesNotFinite, OnStep, VideoChunk, timed


class Filming:
    """A video from its first frame on.

    Args:
        network: the denoiser.
        codec: of the pictures; it is restarted.
        shape: of latents, ``(C, h, w)``.
        config: what is asked for.
        settings: the same as tensors.
        images: pictures that it begins with, ``(pictures, 3, H, W)`` in [-1, 1], or None.
        calls: runs the network, perhaps in turn with streams.

    Attributes:
        config, settings: see `change`.
        stale: whether kept frames have to be computed anew.
        spoilt: why it cannot go on; empty as long as it can.
    """

    def __init__(
        self,
        network: Network,
        codec: FrameCodec,
        shape: tuple[int, int, int],
        config: VideoConfig,
        settings: Both,
        images: torch.Tensor | None,
        calls: WorkRunner,
    ) -> None:
        self.network, self.codec, self.shape, self._calls = network, codec, shape, calls
        self.config, self.settings = config, settings
        self.counts = VideoCounts()
        self.history = History(config.context, config.chunk)
        self.batch = StreamBatch(config.chunk, network.device)
        self.pushed = PushedPictures(int(network.pipe.scheduler.config.num_train_timesteps))
        self.stale, self.spoilt = False, ""
        self._finished: Slot | None = None
        self._given = self._given_pictures = self._begun = self._pictures_made = self._chunks = 0
        self._seconds = dict.fromkeys(PARTS, 0.0)
        codec.restart()
        if images is not None:
            self._begin_with(images)
        self.denoiser = Experts(network, config, self.counts, calls)

    def _begin_with(self, images: torch.Tensor) -> None:
        early = (len(images) - 1) % self.codec.pictures  # what fills no latent frame is left out where it is oldest
        whole, device = images[early:], self.network.device
        alone = self.codec.pictures == 1  # as many at once as in a chunk, however long the clip is
        pieces = torch.split(whole, self.config.chunk if alone else len(whole))
        latents = torch.cat([self.codec.encode(piece.to(device)) for piece in pieces])
        self.history.extend(latents, self.settings[self.config.stream_batch])
        self.codec.follow(latents)
        self._given = len(latents)
        self._pictures_made = self._given_pictures = 1 + (len(latents) - 1) * self.codec.pictures

    @property
    def begun(self) -> bool:
        """Whether there are frames, or chunks in flight."""
        return bool(self.history.length or self.batch.slots)

    @property
    def is_halted(self) -> bool:
        """Whether something was raised, so that a chunk waits to be gone on with."""
        waits = self.pushed.waiting is not None or self._finished is not None
        return waits or bool(self.batch.slots and not self.config.stream_batch)

    @property
    def in_flight(self) -> int:
        """Chunks that are begun and not handed out."""
        return len(self.batch.slots) + (self._finished is not None)

    def change(self, config: VideoConfig, settings: Both) -> None:
        """Go on under other settings from the next chunk on.

        Raises:
            ValueError: where kept frames would have to be computed anew and are not at hand, where a chunk that is
                under way needs them as they are, and where pictures cannot follow latents; nothing has changed then.
        """
        self._check_output(config)
        old, new = self.settings[0], settings[0]
        stages = [len(both[self.config.stream_batch].stages) for both in (self.settings, settings)]
        rebuilt = config.cache != self.config.cache or config.num_steps != self.config.num_steps
        rebuilt = rebuilt or (self.config.stream_batch and stages[0] != stages[1])
        asks = [each.guidance.reads_negative_prompt for each in (old, new)]
        prompts = new.positive is not old.positive or new.negative is not old.negative
        if (rebuilt or asks[0] != asks[1]) and self.begun:
            config.check_anew()
        if rebuilt and self.batch.slots:
            raise ValueError(
                "a chunk is not finished, as something was raised, and this change would take from it what it sees: "
                "call next() first"
            )
        if rebuilt:
            other = Experts(self.network, config, self.counts, self._calls)
            self.denoiser.close()
            self.denoiser = other
        else:
            self.denoiser.check(config)
        anew = rebuilt or asks[0] != asks[1] or (prompts and config.context.refresh == "prompt")
        self.stale = self.stale or (anew and self.history.length > 0)
        self.config, self.settings = config, settings

    def _check_output(self, config: VideoConfig) -> None:
        """Raise ValueError where an autoencoder that remembers would miss what was handed out as latents."""
        kinds = [each.output_type == "latent" for each in (self.config, config)]
        if self._chunks and self.codec.pictures > 1 and kinds[0] != kinds[1]:
            raise ValueError(
                f"output_type={config.output_type!r} cannot follow {self.config.output_type!r}: this autoencoder "
                "decodes every frame with those before it in mind; reset() the engine first, or build a new one"
            )

    def pictures_of(self, frames: int) -> int:
        """How many pictures the next so many latent frames are: the first one of a video is a single picture."""
        return frames * self.codec.pictures - (0 if self._pictures_made else self.codec.pictures - 1)

    def push(self, pictures: torch.Tensor) -> None:
        """Let a chunk of pictures ``(pictures, 3, H, W)`` enter next."""
        latents = self.codec.encode(pictures.to(self.network.device))
        settings = self._own(self.pushed.settings(pictures, self.config, self.settings))
        self.pushed.waiting = from_frames(self._ids(), settings, self.noise(self._begun, len(latents)), latents)

    def made(self, on_step: OnStep | None, *, entering: bool) -> VideoChunk | None:
        """The next chunk; None where a call of a stream batch finished none.

        Args:
            on_step: see `VideoEngine.on_step`.
            entering: whether another chunk may begin.
        """
        seconds = dict.fromkeys(PARTS, 0.0)
        try:
            if self._finished is None:
                with timed(seconds, "context"):
                    if not self.batch.slots:
                        self._write_context()
                with timed(seconds, "denoise"):
                    self._denoise(on_step, entering=entering)
            if self._finished is None:
                return None
            with timed(seconds, "decode"):
                frames = self._decoded(self._finished)
        finally:
            self._seconds = {name: self._seconds[name] + seconds[name] for name in PARTS}
        return self._delivered(self._finished, frames, seconds)

    def noise(self, number: int, frames: int) -> torch.Tensor:
        """The noise that a chunk begins from, ``(frames, C, h, w)``."""
        return next(seeded_noise(self.config.seed, number, (frames, *self.shape))).to(self.network.device)

    def _own(self, settings: FrameSettings) -> FrameSettings:
        """Settings of the chunk that enters next."""
        return with_own_noise(settings, self.config.seed, self._begun, (self.config.chunk, *self.shape))

    def _prompts(self, settings: FrameSettings) -> list[tuple[bool, Conditioning]]:
        """What rows of a chunk are told, the negative prompt first."""
        negative = [(True, settings.negative_prompt)] if self.settings[0].guidance.reads_negative_prompt else []
        return [*negative, (False, settings.positive)]

    def _write_context(self) -> None:
        """Let the coming chunk see what it may: frames that are new, or all of them anew."""
        context, current = self.config.context, self.settings[0]
        anew = self.stale or (context.refresh == "chunk" and self.history.written > 0)
        if anew:
            self.stale = True  # until all is written, whatever is raised on the way
            self.denoiser.forget()
        for piece in self.history.seen() if anew else self._unseen():
            own = piece.settings if context.refresh == "never" and not anew else current
            self._write(piece.first, piece.latents, own)
            if not anew:
                self.history.written = piece.first + len(piece.latents)
        self.stale = False
        self.history.settle()

    def _unseen(self) -> Iterable[Piece]:
        """Frames that have to be written: none of those whose last step has done it."""
        done = self.config.context.commit == "last-step" and self._chunks > 0
        return () if done or (self.config.stream_batch and self._chunks) else self.history.unwritten()

    def _write(self, first: int, latents: torch.Tensor, settings: FrameSettings) -> None:
        """Write frames as they are, or as noisy as each stage of a stream batch sees them."""
        prompts = self._prompts(settings)
        if not self.config.stream_batch:
            self.denoiser.write(first, latents, prompts)
            return
        if self.config.context.commit == "latest":
            for stage in range(len(settings.stages)):
                self.denoiser.write(first, latents, prompts, 0.0, stage)
            return
        noise = self.noise(-1 - first, len(latents))
        for stage, level in enumerate(settings.stages.levels):
            noisy = level.alpha * latents + level.sigma * noise
            self.denoiser.write(first, noisy, prompts, level.timestep, stage)

    def _denoise(self, on_step: OnStep | None, *, entering: bool) -> None:
        """Run network calls until a chunk is finished, in a stream batch one."""
        batch = self.config.stream_batch
        while True:
            slot = self._entering() if entering and (batch or not self.batch.slots) else None
            finished = self.batch.tick(self.denoiser.predict, slot)
            if slot is not None:
                self._begun, self.pushed.waiting = self._begun + 1, None
            if finished:
                self._finished = finished[0]
            if on_step is not None and not batch:
                moved = self._finished or self.batch.slots[0]
                timestep = moved.settings.stages.timesteps[moved.stage - 1]
                moved.latents = on_step(moved.stage - 1, timestep, moved.latents)
            if finished or batch:
                return

    def _ids(self) -> tuple[int, ...]:
        """Numbers of the frames of the chunk that enters next."""
        first = self._given + self._begun * self.config.chunk
        return tuple(range(first, first + self.config.chunk))

    def _entering(self) -> Slot:
        """The next chunk at its first stage."""
        if self.pushed.waiting is not None:
            return self.pushed.waiting
        if self.config.stream_batch and self.config.strength < 1:
            raise ValueError(
                "in a stream batch the frame before a chunk is not finished yet: leave strength at 1, or push pictures"
            )
        noise, last = self.noise(self._begun, self.config.chunk), self.history.last
        check_source(self.config.guidance, last)
        settings = self._own(self.settings[0 if last is None or self.config.stream_batch else 1])
        if last is None or self.config.strength == 1:
            slot = from_noise(self._ids(), settings, noise)
            slot.source = None if last is None or self.config.stream_batch else last.expand(noise.shape)
            return slot
        return from_frames(self._ids(), settings, noise, last.expand(noise.shape))

    def _decoded(self, slot: Slot) -> list[Any]:
        """A finished chunk as pictures."""
        pixels = slot.latents if self.config.output_type == "latent" else self.codec.decode(slot.latents)
        frames = finish(pixels, self.config.output_type)
        if any(frame is None for frame in frames) or not bool(slot.latents.isfinite().all()):
            self.spoilt = (
                f"frames {slot.frame_ids[0]} to {slot.frame_ids[-1]} are not finite, and none that follow would be: "
                "load the pipeline in float32 or bfloat16, or reset() the engine"
            )
            raise FramesNotFinite(self.spoilt)
        return frames

    def _delivered(self, slot: Slot, frames: list[Any], seconds: dict[str, float]) -> VideoChunk:
        """A chunk for the caller; later ones go on from it."""
        self.history.extend(slot.latents.clone(), slot.settings)  # the caller may write into what is handed out
        self._finished = None
        chunk = VideoChunk(frames, self._chunks, self._pictures_made, slot.latents, seconds)
        self._chunks += 1
        self._pictures_made += self.pictures_of(len(slot.latents))
        return chunk

    def report(self) -> ChunkReport:
        """Account of chunks and calls."""
        work = self.counts.work
        return ChunkReport(
            chunks=self._chunks,
            pictures=self._pictures_made - self._given_pictures,
            chunks_in_flight=len(self.batch.slots),
            seconds=dict(self._seconds),
            network_calls=work.calls,
            network_rows=work.rows,
            replayed_rows=work.replayed,
            context_calls=self.counts.writes,
            context_frames=self.denoiser.held,
            context_bytes=self.denoiser.context_bytes,
            sampler=type(self.settings[0].stages.sampler).__name__,
        )
