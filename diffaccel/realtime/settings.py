"""What a live run is asked to do, the same for every front end: a model, its controls, and the stream of both."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffaccel import models
from diffaccel.media.errors import MediaError
from diffaccel.media.repaint import size_like
from diffaccel.methods import ControlCache, DeepCache, IntervalCache
from diffaccel.models.placement import Placement, open_pipeline
from diffaccel.models.text_parts import read_in_parts
from diffaccel.realtime.controls import NO_CONTROLNET, ControlNetControls, Controls
from diffaccel.reuse.forecast import Taylor
from diffaccel.reuse.schedule import Threshold
from diffaccel.sampling.guidance import FullGuidance, Guidance, NoGuidance, OneTimeNegative, SelfNegative
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.host import StreamHost
from diffaccel.stream.images import Fit
from diffaccel.stream.similarity import SimilarityFilter
from diffaccel.stream.slot_cache import SlotCache
from diffaccel.stream.smoothing import MotionBlend

DEFAULT_MODEL = "emoji-sd"
COMPANIONS = {"emoji-sd": ("emoji-lcm-lora", "emoji-vae-small")}
"""The LoRA and autoencoder that go with a bundled model in streams."""

LINES = {"emoji-sd": "emoji-control"}
"""The ControlNet that lets a bundled model follow lines, where the page's switch is on."""
DREAMS = {"emoji-sd": "emoji-video"}
"""The causal video model that makes clips beside a bundled model."""
CACHE_BRANCH = 3
SHAPES = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))
MOST_PIXELS = 4
"""Pictures may grow to so many times the pixels that the server was started with: its memory is shared."""
IN_ENGINE = 0.9
"""What a frame's time in the engine may take of its time in all: JPEG and the way to the page need the rest."""
MOTION = 0.15
"""Relative change of the latents after which deep layers compute: over 40 dB from the uncached stream at any motion."""


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """A model, how it is loaded, and the controls to begin with.

    Attributes:
        model: bundled name, local folder or Hub id.
        config: configurations of a model in a single file, as `diffaccel.models.resolve` takes them.
        lora: as `diffaccel.models.parse_loras` reads it, merged into the weights; None for the model's own companion,
            "none" for none. With `lora_partial`, parts that do not fit are left out.
        embeddings: learned words, as `diffaccel.models.parse_embeddings` reads them.
        long_prompts, prompt_weights: prompts beyond the encoder's limit are read in up to `MOST_PARTS` parts; weights
            such as `(word:1.3)` are read.
        vae: another autoencoder; None for the model's own companion, "none" for the one it was saved with.
        controlnet: bundled names, local folders or Hub ids of ControlNets, put before the UNet.
        dtype, device, compiled: as `diffaccel.models.load` and `torch.compile` take them.
        width, height: of the pictures, in pixels; None for the model's size.
        fit: how an input of another shape gets into that size.
        fps: frames a second to hold, by painting more cheaply where they would come late; None for as many as can be.
        controls: what can change later.
        offers: other models, by bundled name, local folder or Hub id, that a person may change to.
        offered_loras: names and places of LoRAs that a person may choose.
    """

    model: str = DEFAULT_MODEL
    config: str | None = None
    lora: str | None = None
    lora_partial: bool = False
    embeddings: str | None = None
    long_prompts: bool = False
    prompt_weights: bool = False
    vae: str | None = None
    controlnet: tuple[str, ...] = ()
    dtype: str | None = None
    device: str | None = None
    compiled: bool = False
    width: int | None = None
    height: int | None = None
    fit: Fit = "crop"
    fps: float | None = None
    controls: Controls = field(default_factory=Controls)
    offers: tuple[str, ...] = ()
    offered_loras: tuple[tuple[str, str], ...] = ()

    def located(self) -> LiveSettings:
        """The same where another folder is the current one: local paths in full."""
        files = {token: models.located(file) for token, file in models.parse_embeddings(self.embeddings).items()}
        loras = {each.name: models.located(each.name) for each in models.parse_loras(self.lora)}
        return replace(
            self,
            model=models.located(self.model),
            config=self.config and models.located(self.config),
            lora=self.lora and models.rebased(self.lora, loras),
            embeddings=models.write_embeddings(files),
            vae=self.vae and models.located(self.vae),
            controlnet=tuple(map(models.located, self.controlnet)),
            offers=tuple(map(models.located, self.offers)),
            offered_loras=tuple((name, models.located(place)) for name, place in self.offered_loras),
        )


def quickest(settings: LiveSettings) -> LiveSettings:
    """The settings in the type that this machine is quickest in, where none is asked for."""
    device = models.choose_device(settings.device)
    if settings.dtype is None and models.multiplies_bfloat16(device):
        return replace(settings, dtype="bfloat16")
    return settings


def offered_loras(places: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Names and places of LoRAs: bundled ones, files, and those of folders. Raises `ModelError` where there is none."""
    found: list[tuple[str, str]] = []
    for place in places:
        files = sorted(Path(place).glob("*.safetensors")) if Path(place).is_dir() else []
        if not files:
            models.find_lora(place)
        found += [(file.stem, str(file)) for file in files] or [(Path(place).stem, place)]
    return tuple(found)


def load_pipeline(settings: LiveSettings) -> Any:
    """Load the pipeline, merge its LoRAs into the weights, and put in the other autoencoder and the ControlNets.

    Raises:
        ModelError: something cannot be loaded or does not fit.
    """
    own_lora, own_vae = COMPANIONS.get(settings.model, (None, None))
    pipe = open_pipeline(
        models.resolve(settings.model, settings.config),
        settings.dtype,
        settings.vae or own_vae,
        Placement(device=settings.device, compiled=settings.compiled),
        embeddings=settings.embeddings,
        lora=own_lora if settings.lora is None else settings.lora,
        lora_partial=settings.lora_partial,
        nets=settings.controlnet,
    )
    return reading(pipe, settings)


def reading(pipe: Any, settings: LiveSettings) -> Any:
    """A pipeline that reads its prompts as asked. Raises `ModelError` where it cannot."""
    read_in_parts(pipe, long=settings.long_prompts, weights=settings.prompt_weights)
    return pipe


def picture_size(pipe: Any, settings: LiveSettings) -> tuple[int, int]:
    """Width and height in pixels: what was asked for, else the size that the model was trained at.

    Raises:
        ValueError: where the controls ask for more than `MOST_PIXELS` times the size that was asked for at the start.
    """
    start = own_size(pipe, settings)
    if not settings.controls.picture_size:
        return start
    width, height = (int(side) for side in settings.controls.picture_size.split("x"))
    most = MOST_PIXELS * start[0] * start[1]
    if width * height > most:
        raise ValueError(f"{width} x {height} is too large here: at most {most} pixels, {MOST_PIXELS} times the start")
    return width, height


def own_size(pipe: Any, settings: LiveSettings) -> tuple[int, int]:
    """Width and height in pixels that a stream begins with."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    sample = denoiser.config.get("sample_size") or 64
    own = (sample if isinstance(sample, int) else max(sample)) * getattr(pipe, "vae_scale_factor", 8)
    return settings.width or settings.height or own, settings.height or settings.width or own


def sizes(width: int, height: int) -> list[str]:
    """Sizes to offer, as in "640x384": the one given, and other shapes of about its area, larger ones last."""
    native, most = math.sqrt(width * height), MOST_PIXELS * width * height
    shapes = [size_like(*ratio, round(native * scale)) for scale in (1, 1.5, 2) for ratio in SHAPES]
    return list(dict.fromkeys(f"{w}x{h}" for w, h in [(width, height), *shapes] if w * h <= most))


def open_engine(
    pipe: Any,
    settings: LiveSettings,
    *,
    frame_buffer: int = 1,
    host: StreamHost | None = None,
) -> StreamEngine:
    """A new stream on a pipeline of `load_pipeline`; any number of them share its weights.

    A larger ``frame_buffer`` is faster and gives the same pictures later. Streams of one ``host`` share calls.

    Raises:
        ValueError: for settings that this model cannot follow; the message names the valid ones.
        HostFull: where the host has no room.
    """
    width, height = picture_size(pipe, settings)
    arguments = stream_arguments(pipe, settings.controls)
    arguments |= {"frame_buffer": frame_buffer, "shared_noise": True}
    arguments |= {"width": width, "height": height, "fit": settings.fit}
    deadline = None if settings.fps is None else IN_ENGINE / settings.fps
    engine = StreamEngine(pipe, host=host, deadline=deadline, **arguments)
    if lacking := [need for need in engine.needs if need != "picture"]:
        engine.close()
        raise ValueError(
            f"{type(pipe).__name__} needs a {lacking[0]} with every frame, which nobody gives here: use another model"
        )
    return engine


def open_alone(pipe: Any, settings: LiveSettings, *, frame_buffer: int = 1) -> StreamEngine:
    """As `open_engine`, for a stream of its own. Raises `MediaError` for settings that the model cannot follow."""
    try:
        return open_engine(pipe, settings, frame_buffer=frame_buffer)
    except ValueError as error:
        raise MediaError(str(error)) from error


def controls_for(pipe: Any, controls: Controls) -> Controls:
    """The controls with those of a ControlNet, where the pipeline has one.

    Raises:
        ValueError: for controls of a ControlNet where there is none.
    """
    has, asks = getattr(pipe, "controlnet", None) is not None, isinstance(controls, ControlNetControls)
    if asks and not has:
        raise ValueError(NO_CONTROLNET)
    return ControlNetControls(**controls.model_dump()) if has and not asks else controls


def stream_arguments(pipe: Any, controls: Controls) -> dict[str, Any]:
    """The controls as `StreamEngine` takes them, at construction and in `update`."""
    controls = controls_for(pipe, controls)
    guidance = _guidance(controls)
    return {
        **(_control(controls) if isinstance(controls, ControlNetControls) else {}),
        "prompt": blended(controls),
        "negative_prompt": controls.negative_prompt if guidance.reads_negative_prompt else "",
        "strength": controls.strength,
        "num_steps": controls.steps,
        "seed": _seeds(controls),
        "feedback": controls.feedback,
        "smoothing": MotionBlend(controls.smoothing) if controls.smoothing else None,
        "guidance": guidance,
        "cache": _cache(pipe, controls.cache),
        "similarity": SimilarityFilter(controls.similarity_threshold) if controls.similarity else None,
    }


def _control(controls: ControlNetControls) -> dict[str, Any]:
    """What ControlNets see and how closely it is followed: at 0 they do not run."""
    return {
        "control": controls.control,
        "controlnet_scale": controls.controlnet_scale if controls.follow_lines else 0.0,
    }


def _seeds(controls: Controls) -> int | list[tuple[int, float]]:
    if controls.seed_blend == 0:
        return controls.seed
    return [(controls.seed, 1 - controls.seed_blend), (controls.second_seed, controls.seed_blend)]


def blended(controls: Controls) -> str | list[tuple[str, float]]:
    """The prompt, or both prompts by their weights."""
    if not controls.second_prompt or controls.blend == 0:
        return controls.prompt
    return [(controls.prompt, 1 - controls.blend), (controls.second_prompt, controls.blend)]


def _guidance(controls: Controls) -> Guidance:
    scale = controls.guidance_scale
    kinds = {"self": SelfNegative(scale), "one-time": OneTimeNegative(scale), "full": FullGuidance(scale)}
    return kinds.get(controls.guidance, NoGuidance())


def _cache(pipe: Any, interval: int) -> SlotCache | None:
    """DeepCache for UNets, FORA for transformers; both extrapolate, and compute more often where much moves.

    ControlNets compute in every n-th frame while their image is still.
    """
    if interval == 1:
        return None
    schedule, forecast = Threshold(MOTION, max_reuse=interval - 1), Taylor(2)
    unet = getattr(pipe, "unet", None)
    if unet is None:
        return SlotCache(IntervalCache(schedule=schedule, forecast=forecast))
    depth = len(unet.config.block_out_channels) - 1
    control = None if getattr(pipe, "controlnet", None) is None else ControlCache(interval)
    method = DeepCache(schedule=schedule, branch=min(CACHE_BRANCH, depth), forecast=forecast)
    return SlotCache(method, control=control)
