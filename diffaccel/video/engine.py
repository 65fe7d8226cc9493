"""VideoEngine: a video without end, chunk by chunk, on stock video networks (Ca2-VDM, arXiv 2411.16375)."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, Self

import torch

from diffaccel.methods.base import Method
from diffaccel.networks.conditioning import Interpolation
from diffaccel.networks.video_calls import video_network_for
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.sampling.guidance import Guidance
from diffaccel.sampling.samplers import Sampler, multistep_sampler_for
from diffaccel.stream.batch import FrameSettings
from diffaccel.stream.config import Prompt
from diffaccel.stream.course import SettingsBuilder
from diffaccel.stream.host import StreamHost
from diffaccel.stream.images import Fit, OutputType, to_frames
from diffaccel.stream.intake import latent_shape
from diffaccel.stream.motion import MotionNoise
from diffaccel.stream.work import WorkRunner
from diffaccel.video.codec import frame_codec_for, model_size
from diffaccel.video.config import VideoConfig
from diffaccel.video.entrance import check_pushed, check_source
from diffaccel.video.filming import Filming
from diffaccel.video.memory import require_memory
from diffaccel.video.report import ChunkReport, FramesNotFinite, OnStep, VideoChunk


class VideoEngine:
    """Makes a video chunk by chunk; each chunk sees the keys and values of the frames before it.

        engine = VideoEngine(pipe, prompt="a rocket flies up", height=128, width=128)
        for chunk in islice(engine, 5):
            show(chunk.frames)
        engine.update(prompt="a rocket moves left")

    Time and memory of a chunk do not grow with the video. Several engines may use one pipeline, which is only read.
    Weights that were not trained for it (as Self-Forcing's, CausVid's and Ca2-VDM's are) run, but drift within seconds.

    Args:
        pipe: a loaded text-to-video pipeline of AnimateDiff, Latte, Wan, SkyReels-V2 or AnyFlow-FAR.
        prompt: text, or several with weights (mapping, or pairs), blended as ``blend`` says.
        negative_prompt: likewise; only read by guidance that asks for it.
        chunk: latent frames that are made together. A latent frame is a picture, in Wan and SkyReels four.
        num_steps: network calls of a chunk.
        strength: a chunk that has a frame before it starts from that frame with noise, and runs the last ``strength``
            of the steps; 1 starts from noise alone. So do pictures that are pushed.
        motion: has pushed pictures begin with less noise where they move, `strength` being a share of the training
            timesteps then; None has all begin alike.
        guidance: NoGuidance (default), FullGuidance, SelfNegative or OneTimeNegative.
        context: what a chunk sees of earlier frames.
        cache: a method such as DeepCache(2) that reuses features between the steps of a chunk, or None.
        height, width: picture size in pixels; None for the model's.
        seed: of the noise, one CPU draw ``randn(chunk, C, h, w)`` for each chunk, and another one for each of its steps
            where the sampler's steps add noise.
        given: pictures that the video begins with, as ``StreamEngine.push`` takes them; it goes on from the last one.
            Where a latent frame is several pictures, oldest ones that fill none are left out.
        vae: an autoencoder to use instead of the pipeline's.
        output_type: "pil", "np" (H, W, 3), "pt" (3, H, W), both in [0, 1], or "latent" (C, h, w).
        fit: how given pictures of another shape get in: "crop", "pad" or "stretch".
        blend: "linear" or "slerp".
        sampler: LCM, TCD, Euler, DDIM, EulerAncestral, DPMSolver or FlowMatching; None for the pipeline's own.
        stream_batch: as many chunks as steps in each network call, each at its own noise level, in place of one chunk
            after the other: a chunk a call. Every stage keeps a context of its own, of frames as noisy as its own, so
            that there are no calls for the context alone (StreamDiffusionV2, arXiv 2511.07399).
        host: of the pipeline, perhaps ``beside`` that of streams: calls take turns. A video has a row for each frame.

    Attributes:
        on_step: see `OnStep`; what it returns is gone on with. Not in a stream batch.

    Raises:
        TypeError, ValueError: for a pipeline that cannot do this, and wrong arguments; the message names valid ones.
        MemoryError: where keys and values would not fit.
        HostFull: where the host has no room.
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
        motion: MotionNoise | None = None,
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
        host: StreamHost | None = None,
    ) -> None:
        names = {f.name for f in fields(VideoConfig)}
        values = {name: value for name, value in locals().items() if name in names and value is not None}
        self.pipe = pipe
        self.on_step: OnStep | None = None
        self._runner = WorkRunner() if host is None else host.runner(pipe)
        self._codec = frame_codec_for(pipe.vae if vae is None else vae, self._runner)
        values = {**model_size(pipe, self._codec.factor), **values}
        if not {"height", "width"} <= set(values):
            raise ValueError("this model does not say which size its pictures have: give height and width")
        self.config = VideoConfig(**{"sampler": multistep_sampler_for(pipe.scheduler), **values})
        self._network = video_network_for(pipe, self.config.height, self.config.width)
        self._shape = latent_shape(self.config.stream(continued=False), self._network, self._codec)
        self._builder = SettingsBuilder(self._network, self._shape)
        self._lock = threading.RLock()
        self._closed = False
        images = None if given is None else self._pictures(given)
        self._settings = self._build(self.config, has_frames=images is not None)
        with self._runner.room(self.config.rows):
            self._video = self._begin(images)
        try:
            planned = self._video.denoiser.planned_bytes(self._shape[1:])
            require_memory(self._network.device, planned, self.config)
        except MemoryError:
            self.close()
            raise

    def _pictures(self, given: Any) -> torch.Tensor:
        """Given pictures as ``(pictures, 3, H, W)`` in [-1, 1]."""
        size = self.config.height, self.config.width, self.config.fit
        several = list(given) if isinstance(given, list | tuple) else [given]
        if not several:
            raise ValueError("there are no pictures: give at least one")
        return torch.cat([to_frames(each, *size) for each in several])

    def _begin(self, images: torch.Tensor | None) -> Filming:
        """A video from its first frame on."""
        return Filming(self._network, self._codec, self._shape, self.config, self._settings, images, self._runner)

    def _build(self, config: VideoConfig, *, has_frames: bool) -> tuple[FrameSettings, FrameSettings]:
        """Settings of the first chunk, and of those that go on from a frame; raises for what does not fit."""
        if not has_frames and config.strength == 1:
            check_source(config.guidance, None)
        first = self._builder.build(config.stream(continued=False))
        later = first if config.strength == 1 else self._builder.build(config.stream(continued=True))
        return first, later

    @property
    def pictures_next(self) -> int:
        """How many pictures the next chunk is; the first latent frame of a video is a single one."""
        return self._video.pictures_of(self.config.chunk)

    def frames_for(self, pictures: int) -> int:
        """How many of the next ``frames`` hold so many pictures: as many, or the latents of them."""
        if self.config.output_type != "latent":
            return pictures
        each = self._codec.pictures
        return math.ceil((pictures + each * self.config.chunk - self.pictures_next) / each)

    def next(self) -> VideoChunk:
        """Make the next chunk. Where it raises, calling it again goes on from there.

        Raises:
            RuntimeError: after `close`; `FramesNotFinite` for frames that are not, until `reset`.
            ValueError: in a stream batch with strength below 1, to which pictures are pushed.
        """
        with self._lock:
            self._require_sound()
            while (chunk := self._video.made(self.on_step, entering=True)) is None:
                pass
            return chunk

    @property
    def wanted(self) -> int:
        """How many pictures `push` takes next: a chunk of them."""
        return self.config.chunk * self._codec.pictures - (0 if self._codec.begun else self._codec.pictures - 1)

    def push(self, pictures: Any) -> VideoChunk | None:
        """Paint pictures of a camera: they begin with noise, at `strength`, and leave as a chunk.

        Args:
            pictures: as many as `wanted`, as ``StreamEngine.push`` takes them.

        Returns:
            The chunk of these pictures; in a stream batch that of earlier ones, or None while it fills; see `drain`.
            Where it raises once the pictures are taken, `next` goes on with them.

        Raises:
            RuntimeError: as `next` does, and where chunks are to be finished first.
            ValueError: for another number of pictures, and strength 1.
        """
        with self._lock:
            self._require_sound()
            if self._video.is_halted:
                raise RuntimeError("the chunk before is not finished, as something was raised: call next() first")
            given = self._pictures(pictures)
            check_pushed(self.config, given, self.wanted)
            self._video.push(given)
            return self._video.made(self.on_step, entering=True)

    def drain(self) -> Iterator[VideoChunk]:
        """Finish the chunks of a stream batch that are in flight; none is begun."""
        while self._video.in_flight:
            with self._lock:
                self._require_sound()
                chunk = self._video.made(self.on_step, entering=False)
            if chunk is not None:
                yield chunk

    def __iter__(self) -> Iterator[VideoChunk]:
        return self

    def __next__(self) -> VideoChunk:
        return self.next()

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this VideoEngine is closed: build a new one")

    def _require_sound(self) -> None:
        self._require_open()
        if self._video.spoilt:
            raise FramesNotFinite(self._video.spoilt)

    def update(self, **changes: Any) -> None:
        """Change settings from the next chunk on; any combination, all or nothing.

        A new prompt reaches frames that are already kept if the context's ``refresh`` is "prompt" or "chunk".

        Args:
            changes: fields but sizes, chunk, context, seed, stream_batch; ``scale`` or ``delta`` of the guidance.

        Raises:
            TypeError, ValueError: for unknown fields and invalid values; the engine goes on as before.
        """
        with self._lock:
            self._require_sound()
            if changes.get("sampler", self) is None:
                changes["sampler"] = multistep_sampler_for(self.pipe.scheduler)
            config = self.config.updated(changes)
            video = self._video
            settings = self._build(config, has_frames=video.history.length > 0)
            with self._runner.room(config.rows):
                video.change(config, settings)
            self.config, self._settings = config, settings

    def reset(self, given: Any = None) -> None:
        """Begin another video with the same settings, on given pictures if there are any."""
        with self._lock:
            self._require_open()
            images = None if given is None else self._pictures(given)
            settings = self._build(self.config, has_frames=images is not None)
            before = self._codec, self._settings
            self._codec, self._settings = frame_codec_for(self._codec.vae, self._runner), settings
            try:
                other = self._begin(images)
            except BaseException:
                self._codec, self._settings = before  # the old video can go on, with what its autoencoder remembers
                raise
            self._video.denoiser.close()
            self._video = other

    def report(self) -> ChunkReport:
        """Account of chunks and calls since the engine was built or reset."""
        with self._lock:
            return self._video.report()

    def making_room(self) -> AbstractContextManager[None]:
        """Within, this engine's room in its host is free for one that takes its place, unless the body raises."""
        return self._runner.aside()

    def close(self) -> None:
        """Let go of everything that is kept, and take all hooks off. Closing twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._video.denoiser.close()
                self._runner.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
