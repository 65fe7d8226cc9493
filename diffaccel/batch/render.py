"""Jobs in, pictures out: one loaded pipeline that is set up anew only where the next batch asks for it."""

import inspect
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffaccel.attach.handle import Handle, accelerate
from diffaccel.batch.decoding import Decoding, Finish
from diffaccel.batch.jobs import BACKGROUND, RESIZE, Job
from diffaccel.batch.pictures import (
    PictureError,
    RenderError,
    mask_remark,
    open_mask,
    open_picture,
    size_problem,
    strength_problem,
)
from diffaccel.batch.prompt_memory import TextMemory, encode_ahead
from diffaccel.batch.remarks import Remarks
from diffaccel.batch.settings import parse_cache, parse_guidance
from diffaccel.batch.summary import Calls
from diffaccel.batch.tasks import Pipelines, guidance_problem, pictures_problem
from diffaccel.batch.text_calls import TextCalls
from diffaccel.methods import Method
from diffaccel.models import adapters, load_lora
from diffaccel.models.tokenizing import with_own_tokenizers
from diffaccel.sampling.schedulers import sampler_named, seed_noise

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_CALL_NAMES = {"steps": "num_inference_steps"}


@dataclass(frozen=True)
class Rendered:
    """Pictures of one batch in the order of its jobs, whose open settings are filled in, and the seconds it took.

    Attributes:
        flagged: whether the model's safety checker blackened a picture, where it has one.
        remarks: what libraries said of the batch.
    """

    jobs: tuple[Job, ...]
    images: tuple[Image.Image, ...]
    seconds: float
    flagged: tuple[bool, ...] = ()
    remarks: tuple[str, ...] = ()


class Renderer:
    """Renders batches of jobs on one pipeline; use it with `with`, which leaves the pipeline as it was.

    Args:
        overlap: on an accelerator, let `start` leave decoding for later, and `encode_ahead` work; False where the
            pipeline's parts take turns in its memory. On the CPU all parts share the same cores, and overlapping them
            costs more than it gains (measured: a fifth).
        lora_partial: use a LoRA of which only some parts fit.

    Attributes:
        calls: network calls of all batches under caching, complete once the renderer is closed.
    """

    def __init__(self, pipe: "DiffusionPipeline", *, overlap: bool = True, lora_partial: bool = False) -> None:
        pipe.set_progress_bar_config(disable=True)
        self.calls = Calls()
        self._pipe = pipe
        self._before = pipe.scheduler
        self._scheduler = sampler_named("default", pipe.scheduler)  # never put into it: caching watches what is there
        self._lora: str | None = None
        self._methods: tuple[Method, ...] = ()
        self._handle: Handle | None = None
        self._cached_pipe = pipe
        self._lora_partial = lora_partial
        self._overlap = overlap and pipe._execution_device.type != "cpu"
        self._decoding = Decoding(self._overlap)
        self._ahead = with_own_tokenizers(pipe) if self._overlap else pipe
        self._text = TextMemory(pipe)
        self._remarks, self._open = Remarks(), ExitStack()
        self._pipelines, self._text_calls = Pipelines(pipe), TextCalls(pipe)

    def __enter__(self) -> Self:
        self._open.enter_context(self._remarks.installed())
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._detach(count=kind is None)
        if self._lora is not None:
            self._drop_loras()
        self._pipe.scheduler = self._before
        self._text.detach()
        self._open.close()

    def render(self, jobs: Sequence[Job]) -> Rendered:
        """Render one batch. All jobs must have the same `Job.group`.

        Raises:
            RenderError: a setting that this pipeline cannot take, or pictures that are not finite.
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        return self.start(jobs)()

    def start(self, jobs: Sequence[Job]) -> Callable[[], Rendered]:
        """Render one batch as far as the decoder; the returned function does the rest, on whatever thread.

        Both may raise what `render` raises.
        """
        first, begin = jobs[0], time.perf_counter()
        self._remarks.taken()  # of a batch that broke off
        if problem := guidance_problem(first):
            raise RenderError(problem)
        try:
            pipe = self._pipelines.of(first)
            self._set_lora(first.lora)
            parts = self._text_calls(jobs)
        except ValueError as error:
            raise RenderError(str(error)) from error
        self._set_methods(pipe, parse_cache(first.cache) + parse_guidance(first.guidance))
        calls = [(places, self._call(pipe, [jobs[at] for at in places], text)) for places, text in parts]
        complete, said = tuple(_complete(job, pipe) for job in jobs), self._remarks.taken()

        def finish() -> Rendered:
            found = {
                at: picture for places, decode in calls for at, picture in zip(places, _decoded(decode), strict=True)
            }
            images, flagged = zip(*(found[at] for at in range(len(jobs))), strict=True)
            remarks = tuple(dict.fromkeys([*said, *self._remarks.taken()]))
            return Rendered(complete, images, time.perf_counter() - begin, flagged, remarks)

        return finish

    def _call(self, pipe: "DiffusionPipeline", jobs: Sequence[Job], text: Mapping[str, Any]) -> Finish:
        """One call of the pipeline, up to the decoder.

        Args:
            text: embeddings in place of the prompts, where they were encoded in parts.
        """
        pipe.scheduler = self._new_scheduler(jobs)
        arguments = _arguments(pipe, jobs)
        for job, mask in zip(jobs, arguments.get("mask_image", ()), strict=False):
            if remark := mask_remark(str(job.mask_image), mask):
                self._remarks.keep(remark)
        if text:
            accepted = inspect.signature(pipe.__call__).parameters
            arguments |= {name: None for name in ("prompt", "negative_prompt") if name in accepted}
            arguments |= {name: value for name, value in text.items() if name in accepted}
        with torch.inference_mode():
            return self._decoding(pipe, arguments)

    def encode_ahead(self, jobs: Sequence[Job]) -> None:
        """Encode the prompts of a coming batch, so that `start` finds them encoded; on whatever thread."""
        if self._overlap and jobs[0].lora == self._lora:
            encode_ahead(self._ahead, [job.prompt for job in jobs], _as_asked(self._pipe))

    def _new_scheduler(self, jobs: Sequence[Job]) -> Any:
        """Every batch gets a scheduler of its own, so that nothing is left in it of a batch that broke off."""
        scheduler = sampler_named(jobs[0].scheduler, self._scheduler)
        seed_noise(scheduler, [job.seed for job in jobs])
        return scheduler

    def _set_lora(self, lora: str | None) -> None:
        if lora == self._lora:
            return
        self._detach()
        with self._text.changed_weights():
            self._drop_loras()
            if lora is not None:
                try:
                    load_lora(self._pipe, lora, partial=self._lora_partial)
                except BaseException:
                    self._drop_loras()  # of several, those that came before
                    raise
                self._lora = lora

    def _drop_loras(self) -> None:
        if hasattr(self._pipe, "get_list_adapters") and adapters(self._pipe):
            self._pipe.unload_lora_weights()
        self._lora = None

    def _set_methods(self, pipe: "DiffusionPipeline", methods: tuple[Method, ...]) -> None:
        if methods == self._methods and pipe is self._cached_pipe:
            return
        self._detach()
        self._handle = accelerate(pipe, *methods) if methods else None
        self._methods, self._cached_pipe = methods, pipe

    def _detach(self, count: bool = True) -> None:
        """Take the caching off; counting what it saved takes a moment, which an interrupted run does not have."""
        if self._handle is not None:
            self._handle.detach()
        if self._handle is not None and count:
            report = self._handle.report()
            self.calls += Calls(report.computed, report.replayed, report.macs, report.macs_plain)
        self._handle, self._methods = None, ()


def _decoded(decode: Finish) -> list[tuple[Image.Image, bool]]:
    """Pictures of one call, and whether a safety checker flagged each."""
    decoded = decode()
    images = [_to_image(picture) for picture in decoded.pictures]
    return list(zip(images, map(bool, decoded.flagged or [False] * len(images)), strict=True))


def _arguments(pipe: "DiffusionPipeline", jobs: Sequence[Job]) -> dict[str, Any]:
    """The pipeline call's arguments. Raises `RenderError` for a setting that the pipeline does not know."""
    first, accepted = jobs[0], inspect.signature(pipe.__call__).parameters
    values: dict[str, Any] = {
        _CALL_NAMES.get(name, name): getattr(first, name)
        for name in ("steps", "guidance_scale", "width", "height", "strength")
        if getattr(first, name) is not None
    }
    if pictures := _pictures(jobs, accepted):
        values = {name: value for name, value in values.items() if name in accepted or name not in ("width", "height")}
        values |= pictures
    if first.init_image:
        _require_a_step(pipe, values)
    if any(job.negative_prompt for job in jobs):
        values["negative_prompt"] = [job.negative_prompt for job in jobs]
    values |= _as_asked(pipe)
    if values.get("use_resolution_binning") is False:
        _require_whole_patches(pipe, first)
    unknown = [name for name in values if name not in accepted]
    if unknown:
        remedy = ": it needs a picture to start from (init_image)" if "strength" in unknown else ""
        raise RenderError(f"{type(pipe).__name__} has no setting {', '.join(unknown)}{remedy}")
    generators = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]
    return {**values, "prompt": [job.prompt for job in jobs], "generator": generators, "output_type": "np"}


def _as_asked(pipe: "DiffusionPipeline") -> dict[str, Any]:
    """Arguments that keep a pipeline from changing what was asked for.

    Prompts are taken literally: PixArt and Sana would clean them on machines that have Beautiful Soup. Where a PixArt
    network has no table of standard picture sizes, its pipeline must not look for the nearest one.
    """
    accepted = inspect.signature(pipe.__call__).parameters
    arguments = {"clean_caption": False} if "clean_caption" in accepted else {}
    sample_size = getattr(getattr(getattr(pipe, "transformer", None), "config", None), "sample_size", None)
    if type(pipe).__name__.startswith("PixArt") and sample_size not in (32, 64, 128, 256):
        arguments["use_resolution_binning"] = False
    return arguments


def _require_whole_patches(pipe: "DiffusionPipeline", job: Job) -> None:
    """Raise `RenderError` for a size that PixArt would cut into patches with something left over."""
    multiple = pipe.vae_scale_factor * pipe.transformer.config.patch_size
    if problem := size_problem(job.model, (job.width, job.height), multiple):
        raise RenderError(problem)


def _require_a_step(pipe: "DiffusionPipeline", values: Mapping[str, Any]) -> None:
    """Raise `RenderError` where the strength leaves no step of a run from a picture."""
    defaults = inspect.signature(pipe.__call__).parameters
    known = {name: values.get(name, defaults[name].default) for name in ("num_inference_steps", "strength")}
    if hasattr(pipe, "unet") and (problem := strength_problem(*known.values())):
        raise RenderError(problem)


def _pictures(jobs: Sequence[Job], accepted: Container[str]) -> dict[str, Any]:
    """The pictures that jobs start from, paint within or follow. Raises `RenderError` for one that cannot be used."""
    first = jobs[0]
    if problem := next((problem for job in jobs if (problem := pictures_problem(job))), None):
        raise RenderError(problem)
    values: dict[str, Any] = {}
    if first.init_image:
        values["image"] = [_opened(job, "init_image") for job in jobs]
    if first.mask_image:
        values["mask_image"] = [_opened(job, "mask_image") for job in jobs]
    if first.control_image:
        values["control_image" if "control_image" in accepted else "image"] = [
            _opened(job, "control_image") for job in jobs
        ]
        if first.control_scale is not None:
            values["controlnet_conditioning_scale"] = first.control_scale
    return values


def _opened(job: Job, name: str) -> Image.Image:
    """One of the job's pictures, in the job's size."""
    path, size, resize = str(getattr(job, name)), (job.width, job.height), job.resize or RESIZE
    try:
        if name == "mask_image":
            return open_mask(path, size, resize=resize)
        return open_picture(path, size, resize=resize, background=job.background or BACKGROUND)
    except PictureError as error:
        raise RenderError(f"{name}: {error}") from error


def _complete(job: Job, pipe: "DiffusionPipeline") -> Job:
    """The job with the pipeline's own defaults in place of what it left open, for the picture's metadata."""
    defaults = inspect.signature(pipe.__call__).parameters
    names = {name: _CALL_NAMES.get(name, name) for name in ("steps", "guidance_scale", "strength")}
    if job.control_image:
        names["control_scale"] = "controlnet_conditioning_scale"
    known = {name: defaults[call].default for name, call in names.items() if call in defaults}
    return replace(job, **{name: value for name, value in known.items() if getattr(job, name) is None})


def _to_image(pixels: NDArray[np.floating[Any]]) -> Image.Image:
    """A picture from values in [0, 1], shape `(height, width, 3)`. Raises `RenderError` where one is not finite."""
    if not np.isfinite(pixels).all():
        raise RenderError("the picture has values that are not finite; try --dtype float32")
    return Image.fromarray((pixels * 255).round().astype(np.uint8))
