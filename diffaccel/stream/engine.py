"""StreamEngine: frames go in at one end, finished pictures come out at the other (StreamDiffusion, 2312.12491)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch

from diffaccel.methods.base import Method
from diffaccel.networks.calls import network_for
from diffaccel.networks.compiled import unwrapped
from diffaccel.networks.conditioning import GivenEmbeds, Interpolation
from diffaccel.networks.image_prompts import ImagePrompt
from diffaccel.sampling.guidance import Guidance
from diffaccel.sampling.samplers import Sampler
from diffaccel.stream.config import Prompt, StreamConfig
from diffaccel.stream.control import Control, Given
from diffaccel.stream.course import At, Course, SettingsBuilder, check_way
from diffaccel.stream.denoiser import Denoiser
from diffaccel.stream.images import Codec, Fit, OutputType, Picture
from diffaccel.stream.intake import Intake, latent_shape
from diffaccel.stream.ladder import ladder
from diffaccel.stream.motion import MotionNoise
from diffaccel.stream.moving import MovingFrames
from diffaccel.stream.pace import Pace, PaceReport
from diffaccel.stream.regions import Region
from diffaccel.stream.report import StreamOutput, StreamReport
from diffaccel.stream.seeds import Seed
from diffaccel.stream.similarity import SimilarityFilter
from diffaccel.stream.slot_cache import SlotCache
from diffaccel.stream.smoothing import MotionBlend
from diffaccel.stream.state import Frame, StreamState
from diffaccel.stream.steadiness import CrossFrame
from diffaccel.stream.work import WorkRunner

if TYPE_CHECKING:
    from diffaccel.stream.host import StreamHost


class StreamEngine(MovingFrames):
    """Stream batch over N stages with residual guidance, a similarity filter and slot caches.

    A frame pushed at tick j is finished at tick ``j + N - 1``; until then `push` returns nothing for it. Several
    engines may use one pipeline: its weights are not changed, and its scheduler is only read.

    Args:
        pipe: a loaded diffusers text-to-image or image-to-image pipeline (SD, SDXL, LCM, Turbo, SD3, FLUX, Sana,
            PixArt, Z-Image; SD and SDXL also with ControlNets).
        prompt: text, or several with weights (mapping, or pairs), blended as ``blend`` says.
        negative_prompt: likewise; only read by guidance that asks for it.
        prompt_embeds, negative_prompt_embeds: in place of a prompt what encodes it, ``(1, tokens, width)``; where a
            network is told more a mapping: "prompt_embeds" with "pooled_prompt_embeds", or "prompt_attention_mask".
        clip_skip: how many last layers of CLIP text encoders do not count, as the stock pipelines take it.
        timestep_indices: ascending positions of the N stages in the grid of ``num_inference_steps`` timesteps; or
        strength, num_steps: N stages over the last ``strength`` of the grid, in (0, 1].
        num_inference_steps: length of the grid.
        guidance: NoGuidance (default), FullGuidance, SelfNegative or OneTimeNegative.
        height, width, fit: picture size in pixels, and how others get it: "crop" (the middle), "pad" or "stretch".
        frame_buffer: frames that enter together; a tick happens when so many were pushed. More frames a second, later.
        shared_noise: whether the frames of a buffer share their noise, so that pictures are those of a buffer of one
            and a video does not flicker; otherwise each has its own.
        add_noise: whether LCM, TCD and ancestral samplers add noise between stages.
        seed: seed of the per-stage noise, one CPU draw ``randn(N * frame_buffer, C, h, w)`` (with ``shared_noise``
            ``randn(N, C, h, w)``), and of text-to-image frames; or several with weights (mapping, or pairs), whose
            noises are blended by slerp.
        feedback: share of the last result in the latents of an entering picture, 0 to 0.95.
        similarity: a SimilarityFilter, or None.
        cache: a method such as DeepCache(3), or a SlotCache, for reuse between frames; or None.
        vae: an autoencoder to use instead of the pipeline's (AutoencoderTiny, ...).
        output_type: "pil", "np" (H, W, 3), "pt" (3, H, W), both in [0, 1], or "latent" (C, h, w).
        blend: "linear" or "slerp".
        sampler: LCM, TCD, Euler, DDIM, EulerAncestral or FlowMatching; None for the pipeline's own, and LCM in place of
            multistep ones (PNDM, DPM-Solver++, ...), which cannot step row by row; `report` names it.
        stream_batch: False for the sequential mode: a frame runs through all stages before the next one enters.
        embedded_guidance_scale: scale that guidance-distilled networks are told (LCM 8.5, FLUX-dev 3.5).
        control: for a pipeline with ControlNets, makes a frame's control image where it is pushed without one:
            "edges", "canny" (needs OpenCV), "identity", or a function that takes the fitted picture ``(3, H, W)`` in
            [0, 1], on the pipeline's device, and returns a picture. Several ControlNets may have one each.
        controlnet_scale: how strongly ControlNets act; one number, or one for each.
        deadline: seconds that a frame may take, as in ``1 / 24``: where frames run late, deep layers are computed more
            rarely, then fewer of them, then fewer stages; all again where there is time. `report` says what was done.
        steadiness: a CrossFrame, by which self-attention sees the frames before: less flicker; or None.
        motion: a MotionNoise, by which pictures begin with less noise where they move, and follow; or None.
        smoothing: a MotionBlend with the picture before, which goes along with what moves (needs OpenCV), or None.
        image_prompt: an ImagePrompt for the IP-Adapters of the pipeline; None leaves them without a say.
        regions: prompts for parts of the picture, each a Region(prompt, mask); each has rows of its own.
        image_guidance_scale: how closely InstructPix2Pix keeps to the picture; above 1 with FullGuidance, a row more.
        lora: this stream's scale of each LoRA of the network, times the pipeline's; None leaves them to the pipeline.
        host: a `StreamHost` on the same pipeline, whose streams share calls; `StreamHost.open` passes itself.

    Raises:
        TypeError: for a pipeline that cannot stream, and arguments of a wrong type.
        ValueError: for values out of range; the message names the valid ones.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        prompt: Prompt | None = None,
        negative_prompt: Prompt = "",
        prompt_embeds: GivenEmbeds = None,
        negative_prompt_embeds: GivenEmbeds = None,
        clip_skip: int | None = None,
        timestep_indices: Sequence[int] | None = None,
        strength: float | None = None,
        num_steps: int | None = None,
        num_inference_steps: int = 50,
        guidance: Guidance | None = None,
        height: int,
        width: int,
        frame_buffer: int = 1,
        shared_noise: bool = False,
        add_noise: bool = True,
        seed: Seed = 0,
        feedback: float = 0.0,
        similarity: SimilarityFilter | None = None,
        cache: Method | SlotCache | None = None,
        vae: Any = None,
        output_type: OutputType = "pil",
        fit: Fit = "crop",
        blend: Interpolation = "linear",
        sampler: Sampler | None = None,
        stream_batch: bool = True,
        embedded_guidance_scale: float | None = None,
        control: Control | Sequence[Control] | None = None,
        controlnet_scale: float | Sequence[float] = 1.0,
        deadline: float | None = None,
        steadiness: CrossFrame | None = None,
        motion: MotionNoise | None = None,
        smoothing: MotionBlend | None = None,
        image_prompt: ImagePrompt | None = None,
        regions: Sequence[Region] = (),
        image_guidance_scale: float = 1.0,
        lora: Mapping[str, float] | None = None,
        host: StreamHost | None = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "pipe", "vae", "host") and v is not None}
        self.pipe = pipe
        self._runner = WorkRunner() if host is None else host.runner(pipe)
        self.config = StreamConfig(**given)
        self._network = network_for(pipe, height, width)
        self._codec = Codec(pipe.vae if vae is None else vae, self._runner)
        shape = latent_shape(self.config, self._network, self._codec)
        self._intake = Intake(self._network, self._codec, shape)
        self._builder = SettingsBuilder(self._network, shape)
        self._course = Course(self._builder.build(self.config))
        with self._runner.room(self.config.most_rows), self._runner.quiet():
            self._denoiser = Denoiser(self._network, self.config, self._runner)
        self._pace, self._runner.deadline = self._paced(self.config), deadline
        self._lock, self._closed = threading.RLock(), False
        self._state = StreamState(self.config, self._network.device)
        if host is not None:
            host.keep(self)

    @property
    def latency(self) -> int:
        """Ticks between the one a frame enters and the one that finishes it: ``N - 1``, or 0 in sequential mode."""
        return len(self._course.settings.stages) - 1 if self.config.stream_batch else 0

    @property
    def next_frame_id(self) -> int:
        """The number that the next frame gets."""
        return self._state.next_id

    @property
    def frames_in_flight(self) -> int:
        """Frames that were accepted and have not come out."""
        return self._state.in_flight

    @property
    def pace(self) -> PaceReport | None:
        """What is done to hold the deadline; None without one."""
        return None if self._pace is None else self._pace.report()

    def push(
        self,
        image: Picture | None = None,
        latents: torch.Tensor | None = None,
        *,
        control: Given | None = None,
        mask: Picture | None = None,
        frame_id: int | None = None,
    ) -> list[StreamOutput]:
        """Put in one frame (or a batch, frame by frame) and get what is finished.

        Args:
            image: PIL image, array ``(H, W, 3)`` or tensor ``(3, H, W)`` in [0, 1] (or uint8), with or without a
                leading dimension of frames; None for text-to-image. What is transparent in a PIL image is laid on
                white; a mask keeps it, and a control image has nothing there.
            latents: initial noise ``(C, h, w)`` or ``(frames, C, h, w)``; None for the seeded one.
            control: control image, as ``image``, fitted like it; for several ControlNets one for all, or a list of one
                for each. None makes it from the picture, as the engine's ``control`` says.
            mask: white where the picture is painted anew, of the picture's size; networks that were trained to inpaint
                need one, with others what is black is put back behind every stage.
            frame_id: number of the (first) frame; None counts on. Numbers must rise.

        Raises:
            RuntimeError: after `close`.
            TypeError, ValueError: for an unusable frame; the stream goes on without it.
        """
        with self._lock:
            self._check_open()
            with self._state.clock.stage("preprocess"):
                inputs = self._intake.accept(image, latents, control, self.config, mask)
            first = self._state.take_ids(len(inputs), frame_id)
            now = time.perf_counter()
            for k, given in enumerate(inputs):
                try:
                    self._push(Frame(first + k, now, *given))
                except BaseException:
                    self._state.drop(len(inputs) - k - 1)
                    raise
            return self._state.take_ready()

    def flush(self) -> list[StreamOutput]:
        """Finish every frame in flight, and return their pictures."""
        with self._lock:
            self._check_open()
            self._drain()
            return self._state.take_ready()

    def stream(self, frames: Iterable[Picture | None]) -> Iterator[StreamOutput]:
        """Push all frames (None: text-to-image), yield what is finished, flush; leaving early drops what flies."""
        try:
            for frame in frames:
                yield from self.push(frame)
            yield from self.flush()
        except GeneratorExit:
            with self._lock:
                self._state.drop()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this StreamEngine is closed: build a new one")

    def update(
        self, *, at: At = "all", transition: int = 0, lora_scale: Mapping[str, float] | None = None, **changes: Any
    ) -> None:
        """Change settings while frames are in flight; any combination, all or nothing.

        Args:
            at: "all" (default) also changes frames in flight, from their next stage on; "new" only frames that enter
                from now on. Frames in flight join new stages at the first one below the noise level they have
                reached.
            transition: number of entering frames over which prompts, scales and delta move from the old to the new
                values. A change of something else does not end a transition.
            lora_scale: scale by adapter name of all LoRAs at work, passed to ``pipe.set_adapters``; this reaches every
                engine on the pipeline, and with LoRAs of text encoders the others' prompts when they are updated next.
            changes: fields of the constructor (but sizes and frame_buffer), and ``scale`` or ``delta`` of the guidance.

        Raises:
            TypeError, ValueError: for unknown fields and invalid values; nothing has changed then.
        """
        with self._lock:
            self._check_open()
            check_way(at, transition)
            self._builder.check_loras({} if lora_scale is None else lora_scale)
            config = self.config.updated(changes)
            pace = self._paced(config)
            standing = config if pace is None else pace.rung.of(config)
            target = self._builder.build(standing)
            self._state.check_guidance(target.guidance, at)
            self._course.require_company(target, transition, at, self._network.ragged)
            with self._runner.room(config.most_rows):
                denoiser = self._denoiser.configured(standing)
                if lora_scale:
                    with self._runner.quiet():
                        self._builder.scale_loras(lora_scale)
                    self._denoiser.forget()
                    target = self._builder.build(standing)
            self._replace(denoiser)
            self._state.reconfigure(self.config, config)
            self.config, self._pace, self._runner.deadline = config, pace, config.deadline
            if self._course.turn(target, transition, at):
                self._state.adopt(self._course.settings)

    def _paced(self, config: StreamConfig) -> Pace | None:
        """How a deadline is held: as before where nothing of it changes."""
        if config.deadline is None:
            return None
        model = unwrapped(self._network.model)
        if self._pace is None:
            return Pace(ladder(model, config), config.deadline)
        same = (config.deadline, len(config.indices)) == (self.config.deadline, len(self.config.indices))
        return self._pace if same else self._pace.turn(ladder(model, config), config.deadline)

    def reset(self) -> None:
        """Forget every frame: in flight, counted, cached. Settings stay; the next frame is number 0."""
        with self._lock:
            self._check_open()
            with self._runner.quiet():
                denoiser = Denoiser(self._network, self._standing(self.config), self._runner)
            self._replace(denoiser)
            self._course.arrive()
            if self._pace is not None:
                self._pace.count_anew()
            self._state = StreamState(self.config, self._network.device)

    def warmup(self) -> None:
        """Run the autoencoder and the network once for every number of rows, so that the first frame is not slow.

        Frames, counts and generators are not touched.
        """
        with self._lock:
            self._check_open()
            state, self._state = self._state, StreamState(self.config, self._network.device)
            course, self._course = self._course, Course(self._course.settings)
            work = self._denoiser.work
            try:
                for _ in range(self.latency + 1):
                    self._state.pending = [self._intake.blank(self.config)]
                    self._tick()
                self._drain()
            finally:
                self._state, self._course = state, course
                self._denoiser.forget()
                self._denoiser.work = work

    def report(self) -> StreamReport:
        """Account of frames and times since the engine was built or reset."""
        with self._lock:
            sampler = self._course.settings.stages.sampler
            return self._state.report(self._denoiser.work, self.latency, sampler, self.pace)

    def discard(self, frames: int) -> None:
        """Account for frames that a queue in front of the engine dropped."""
        with self._lock:
            self._state.counts.discard(frames)

    def close(self) -> None:
        """Let go of the frames in flight; pushing raises from now on. Closing twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._state.drop()
                self._denoiser.close()
                self._runner.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
