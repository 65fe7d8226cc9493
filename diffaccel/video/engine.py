"""VideoEngine: a video without end, chunk by chunk, on stock video networks (Ca2-VDM, arXiv 2411.16375)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Self

import torch

from diffaccel.methods.base import Method
from diffaccel.networks.conditioning import Conditioning, Interpolation
from diffaccel.networks.video_calls import video_network_for
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.sampling.guidance import Guidance
from diffaccel.sampling.samplers import Sampler, multistep_sampler_for
from diffaccel.stream.batch import FrameSettings, Slot, StreamBatch
from diffaccel.stream.config import Prompt
from diffaccel.stream.course import SettingsBuilder
from diffaccel.stream.images import Fit, OutputType, finish, to_frames
from diffaccel.stream.intake import latent_shape
from diffaccel.video.codec import frame_codec_for, model_size
from diffaccel.video.config import VideoConfig
from diffaccel.video.denoiser import CallCounts
from diffaccel.video.experts import Experts
from diffaccel.video.history import History
from diffaccel.video.memory import require_memory
from diffaccel.video.report import PARTS, ChunkReport, OnStep, VideoChunk, timed


class VideoEngine:
    """Makes a video chunk by chunk; each chunk sees the keys and values of the frames before it.

        engine = VideoEngine(pipe, prompt="a rocket flies up", height=128, width=128)
        for chunk in islice(engine, 5):
            show(chunk.frames)
        engine.update(prompt="a rocket moves left")

    Time and memory of a chunk do not grow with the video. Several engines may use one pipeline, which is only read.
    Weights that were not trained for it (as Self-Forcing's, CausVid's and Ca2-VDM's are) run, but drift within seconds.

    Args:
        pipe: a loaded text-to-video pipeline of AnimateDiff, Latte, Wan or SkyReels-V2.
        prompt: text, or several with weights (mapping, or pairs), blended as ``blend`` says.
        negative_prompt: likewise; only read by guidance that asks for it.
        chunk: latent frames that are made together. A latent frame is a picture, in Wan and SkyReels four.
        num_steps: network calls of a chunk.
        strength: a chunk that has a frame before it starts from that frame with noise, and runs the last ``strength``
            of the steps; 1 starts from noise alone.
        guidance: NoGuidance (default), FullGuidance, SelfNegative or OneTimeNegative.
        context: what a chunk sees of earlier frames.
        cache: a method such as DeepCache(2) that reuses features between the steps of a chunk, or None.
        height, width: picture size in pixels; None for the model's.
        seed: of the noise, one CPU draw ``randn(chunk, C, h, w)`` for each chunk.
        given: pictures that the video begins with, as ``StreamEngine.push`` takes them; it goes on from the last one.
        vae: an autoencoder to use instead of the pipeline's.
        output_type: "pil", "np" (H, W, 3), "pt" (3, H, W), both in [0, 1], or "latent" (C, h, w).
        fit: how given pictures of another shape get in: "crop", "pad" or "stretch".
        blend: "linear" or "slerp".
        sampler: LCM, TCD, Euler, DDIM, EulerAncestral, DPMSolver or FlowMatching; None for the pipeline's own.
        stream_batch: as many chunks as steps in each network call, each at its own noise level, in place of one chunk
            after the other: a chunk a call. Every stage keeps a context of its own, of frames as noisy as its own, so
            that there are no calls for the context alone (StreamDiffusionV2, arXiv 2511.07399).

    Attributes:
        on_step: see `OnStep`; what it returns is gone on with. Not in a stream batch.

    Raises:
        TypeError, ValueError: for a pipeline that cannot do this, and wrong arguments; the message names valid ones.
        MemoryError: where keys and values would not fit.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        prompt: Prompt,
        negative_prompt: Prompt = "",
        chunk: int = 4,
        num_steps: int = 8,
        strength: float = 1.0,
        guidance: Guidance | None = None,
        context: CausalContext | None = None,
        cache: Method | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        given: Any = None,
        vae: Any = None,
        output_type: OutputType = "pil",
        fit: Fit = "crop",
        blend: Interpolation = "linear",
        sampler: Sampler | None = None,
        stream_batch: bool = False,
    ) -> None:
        names = {f.name for f in fields(VideoConfig)}
        values = {name: value for name, value in locals().items() if name in names and value is not None}
        self.pipe = pipe
        self.on_step: OnStep | None = None
        self._codec = frame_codec_for(pipe.vae if vae is None else vae)
        values = {**model_size(pipe, self._codec.factor), **values}
        if not {"height", "width"} <= set(values):
            raise ValueError("this model does not say which size its pictures have: give height and width")
        self.config = VideoConfig(**{"sampler": multistep_sampler_for(pipe.scheduler), **values})
        self._network = video_network_for(pipe, self.config.height, self.config.width)
        self._shape = latent_shape(self.config.stream(continued=False), self._network, self._codec)
        self._builder = SettingsBuilder(self._network, self._shape)
        self._lock = threading.RLock()
        self._closed = False
        images = self._pictures(given)
        self._settings = self._build(self.config, has_frames=images is not None)
        self._counts = CallCounts()
        self._denoiser = Experts(self._network, self.config, self._counts)
        require_memory(self._denoiser.layouts, self.config, self._shape[1:])
        self._start(images)

    def _pictures(self, given: Any) -> torch.Tensor | None:
        """Given pictures as ``(pictures, 3, H, W)`` in [-1, 1]."""
        if given is None:
            return None
        size = self.config.height, self.config.width, self.config.fit
        several = list(given) if isinstance(given, list | tuple) else [given]
        if not several:
            raise ValueError("given is empty: give at least one picture, or None")
        return torch.cat([to_frames(each, *size) for each in several])

    def _build(self, config: VideoConfig, *, has_frames: bool) -> tuple[FrameSettings, FrameSettings]:
        """Settings of the first chunk, and of those that go on from a frame; raises for what does not fit."""
        if config.guidance.negative_source == "input" and not has_frames:
            raise ValueError("SelfNegative pushes away from the frame before a chunk, and there is none: give frames")
        first = self._builder.build(config.stream(continued=False))
        later = first if config.strength == 1 else self._builder.build(config.stream(continued=True))
        return first, later

    def _start(self, images: torch.Tensor | None) -> None:
        """Begin a video."""
        self._history = History(self.config.context, self.config.chunk)
        self._batch = StreamBatch(self.config.chunk, self._network.device)
        self._finished: Slot | None = None
        self._spoilt = ""
        self._stale = False
        self._given = self._given_pictures = self._begun = self._pictures_made = self._chunks = 0
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._codec.restart()
        if images is not None:
            latents = self._codec.encode(images.to(self._network.device))
            self._history.extend(latents, self._settings[0])
            self._codec.follow(latents)
            self._given = len(latents)
            self._pictures_made = self._given_pictures = 1 + (len(latents) - 1) * self._codec.pictures

    @property
    def pictures_each(self) -> int:
        """Pictures of a latent frame, after the first one of a video."""
        return 1 if self.config.output_type == "latent" else self._codec.pictures

    def next(self) -> VideoChunk:
        """Make the next chunk. Where it raises, calling it again goes on from there.

        Raises:
            RuntimeError: after `close`, and for frames that are not finite, until `reset`.
        """
        with self._lock:
            self._check_open()
            seconds = dict.fromkeys(PARTS, 0.0)
            if self._finished is None:
                with timed(seconds, "context"):
                    if not self._batch.slots:
                        self._write_context()
                with timed(seconds, "denoise"):
                    self._finished = self._denoise()
            with timed(seconds, "decode"):
                frames = self._decoded(self._finished)
            return self._delivered(self._finished, frames, seconds)

    def __iter__(self) -> Iterator[VideoChunk]:
        return self

    def __next__(self) -> VideoChunk:
        return self.next()

    def _check_open(self) -> None:
        if self._closed or self._spoilt:
            raise RuntimeError(self._spoilt or "this VideoEngine is closed: build a new one")

    def _noise(self, number: int, frames: int) -> torch.Tensor:
        """The noise of a chunk, ``(frames, C, h, w)``: equal for equal seed and number."""
        generator = torch.Generator().manual_seed((self.config.seed * 2654435761 + number) % 2**63)
        return torch.randn(frames, *self._shape, generator=generator).to(self._network.device)

    def _prompts(self, settings: FrameSettings) -> list[tuple[bool, Conditioning]]:
        """What rows of a chunk are told, the negative prompt first."""
        asks = self._settings[0].guidance.negative_source in ("predicted", "first")
        return [*([(True, settings.negative_prompt)] if asks else []), (False, settings.positive)]

    def _write_context(self) -> None:
        """Let the coming chunk see what it may: frames that are new, or all of them anew."""
        context, current = self.config.context, self._settings[0]
        anew = self._stale or (context.refresh == "chunk" and self._history.written > 0)
        if anew:
            self._denoiser.forget()
            self._history.written = 0
        for piece in self._history.seen() if anew else self._unseen():
            own = piece.settings if context.refresh == "never" and not anew else current
            self._write(piece.first, piece.latents, own)
        self._stale = False
        self._history.settle()

    def _unseen(self) -> Any:
        """Frames that have to be written: none of those whose last step has done it."""
        done = self.config.context.commit == "last-step" and self._chunks > 0
        return () if done or (self.config.stream_batch and self._chunks) else self._history.unwritten()

    def _write(self, first: int, latents: torch.Tensor, settings: FrameSettings) -> None:
        """Write frames as they are, or as noisy as each stage of a stream batch has them."""
        prompts = self._prompts(settings)
        if not self.config.stream_batch:
            self._denoiser.write(first, latents, prompts)
            return
        noise = self._noise(-1 - first, len(latents))
        for stage, level in enumerate(settings.stages.levels):
            noisy = level.alpha * latents + level.sigma * noise
            self._denoiser.write(first, noisy, prompts, level.timestep, stage)

    def _denoise(self) -> Slot:
        """Run network calls until a chunk is finished."""
        while True:
            entering = self._entering() if self.config.stream_batch or not self._batch.slots else None
            finished = self._batch.tick(self._denoiser.predict, entering)
            self._begun += entering is not None
            if self.on_step is not None and not self.config.stream_batch:
                slot = finished[0] if finished else self._batch.slots[0]
                timestep = slot.settings.stages.timesteps[slot.stage - 1]
                slot.latents = self.on_step(slot.stage - 1, timestep, slot.latents)
            if finished:
                return finished[0]

    def _entering(self) -> Slot:
        """The next chunk at its first stage."""
        size = self.config.chunk
        last = None if self.config.stream_batch else self._history.last
        settings = self._settings[0 if last is None else 1]
        noise = self._noise(self._begun, size)
        source = None if last is None else last.expand(noise.shape)
        if source is None or self.config.strength == 1:
            latents = settings.stages.entry_scale * noise
        else:
            level = settings.stages.levels[0]
            latents = level.alpha * source + level.sigma * noise
        first = self._given + self._begun * size
        return Slot(tuple(range(first, first + size)), settings, latents, source)

    def _decoded(self, slot: Slot) -> list[Any]:
        """A finished chunk as pictures."""
        pixels = slot.latents if self.config.output_type == "latent" else self._codec.decode(slot.latents)
        frames = finish(pixels, self.config.output_type)
        if any(frame is None for frame in frames) or not bool(slot.latents.isfinite().all()):
            self._spoilt = (
                f"frames {slot.frame_ids[0]} to {slot.frame_ids[-1]} are not finite, and none that follow would be: "
                "load the pipeline in float32 or bfloat16, or reset() the engine"
            )
            raise RuntimeError(self._spoilt)
        return frames

    def _delivered(self, slot: Slot, frames: list[Any], seconds: dict[str, float]) -> VideoChunk:
        """A chunk for the caller; later ones go on from it."""
        self._history.extend(slot.latents, slot.settings)
        self._finished = None
        chunk = VideoChunk(frames, self._chunks, self._pictures_made, slot.latents, seconds)
        self._chunks += 1
        self._pictures_made += len(frames)
        self._seconds = {name: self._seconds[name] + seconds[name] for name in PARTS}
        return chunk

    def update(self, **changes: Any) -> None:
        """Change settings from the next chunk on; any combination, all or nothing.

        A new prompt reaches frames that are already kept if the context's ``refresh`` is "prompt" or "chunk".

        Args:
            changes: fields but sizes, chunk, context, seed, stream_batch; ``scale`` or ``delta`` of the guidance.

        Raises:
            TypeError, ValueError: for unknown fields and invalid values; the engine goes on as before.
        """
        with self._lock:
            self._check_open()
            if changes.get("sampler", self) is None:
                changes["sampler"] = multistep_sampler_for(self.pipe.scheduler)
            config = self.config.updated(changes)
            settings = self._build(config, has_frames=self._history.length > 0)
            old, new = self._settings[0], settings[0]
            rebuilt = config.cache != self.config.cache or config.num_steps != self.config.num_steps
            asks = [s.guidance.negative_source in ("predicted", "first") for s in (old, new)]
            prompts = new.positive is not old.positive or new.negative is not old.negative
            if (rebuilt or asks[0] != asks[1]) and (self._history.length or self._batch.slots):
                config.check_anew()
            if rebuilt:
                self._replace_denoiser(config)
            anew = rebuilt or asks[0] != asks[1] or (prompts and config.context.refresh == "prompt")
            self._stale = self._stale or (anew and self._history.length > 0)
            self.config, self._settings = config, settings

    def _replace_denoiser(self, config: VideoConfig) -> None:
        """Exchange what reuses features; the counts go on."""
        other = Experts(self._network, config, self._counts)
        self._denoiser.close()
        self._denoiser = other

    def reset(self, given: Any = None) -> None:
        """Begin another video with the same settings, on given pictures if there are any."""
        with self._lock:
            self._spoilt = ""
            self._check_open()
            images = self._pictures(given)
            self._settings = self._build(self.config, has_frames=images is not None)
            self._counts = CallCounts()
            self._replace_denoiser(self.config)
            self._start(images)

    def report(self) -> ChunkReport:
        """Account of chunks and calls since the engine was built or reset."""
        with self._lock:
            work, denoiser = self._counts.work, self._denoiser
            return ChunkReport(
                chunks=self._chunks,
                pictures=self._pictures_made - self._given_pictures,
                chunks_in_flight=len(self._batch.slots),
                seconds=dict(self._seconds),
                network_calls=work.calls,
                network_rows=work.rows,
                replayed_rows=work.replayed,
                context_calls=self._counts.writes,
                context_frames=denoiser.held,
                context_bytes=denoiser.context_bytes,
                sampler=type(self._settings[0].stages.sampler).__name__,
            )

    def close(self) -> None:
        """Let go of everything that is kept, and take all hooks off. Closing twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._denoiser.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
