"""`diffaccel video` without an input: a video from words, or one that goes on from a clip."""

import math
from collections import deque
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import HomePath, Number
from diffaccel.cli.model_options import ModelChoice
from diffaccel.cli.streaming import FIT, memory_explained, tell, tell_remark
from diffaccel.config.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from diffaccel.video.engine import VideoEngine
    from diffaccel.video.report import ChunkReport

DEFAULT_MODEL = "emoji-video"
FPS, SECONDS = 8.0, 8.0
MOST_PICTURES = 8
"""Of a latent frame, in any network."""
SAME_SHAPE = 0.02
"""Difference of two shapes, or rates, that nobody sees, as a logarithm."""
TIME_BASE = Fraction(1, 90_000)
"""Unit of the times in the file, in seconds; it divides all usual frame rates."""
OPTIONS = (
    click.option("--seconds", type=Number(0, min_open=True), help="Length of what is made.  [default: 8]"),
    click.option(
        "--continue", "clip", type=HomePath(path_type=Path), help="A video file, or a picture, to go on from."
    ),
    click.option(
        "--then",
        type=(Number(0), str),
        multiple=True,
        metavar="SECOND PROMPT",
        help="Another prompt from there on; repeat.",
    ),
    click.option("--fps", type=Number(1, 240), help="Pictures a second.  [default: 8]"),
    click.option("--chunk", type=click.IntRange(1), help="Frames made together.  [default: 4]"),
    click.option("--window", type=click.IntRange(1), help="Frames before the chunk that it sees.  [default: 4]"),
    click.option(
        "--refresh",
        type=click.Choice(["never", "prompt", "chunk"]),
        help="When frames before the chunk are computed anew: under a new prompt, or always.  [default: never]",
    ),
)
NAMES = ("seconds", "clip", "then", "fps", "chunk", "window", "refresh")
"""Options that only make sense here, as click knows them."""
TYPED = {"CausalContext(refresh='chunk', window=...)": "--refresh chunk", "leave cache out": "leave --cache out"}
"""Remedies in Python, and as they are typed."""
PAINTING = (
    *("guidance", "batch_size", "similarity", "controlnet", "control", "controlnet_scale", "compiled", "no_audio"),
    *("side_by_side", "smoothing"),
)
"""Options that need an input."""


def film(target: Path, given: dict[str, Any], *, overwrite: bool, quiet: bool, bar: Any) -> None:
    """Make a video, and say what became of it."""
    from diffaccel.cli.signals import interruptible
    from diffaccel.media.errors import MediaError
    from diffaccel.media.video_writer import check_target

    clip, fps = given["clip"], Fraction(given["fps"] or FPS).limit_denominator(1001)
    if given["size"] == FIT:
        raise click.UsageError("--size fit needs an INPUT to paint anew: give pixels, as in --size 192x128")
    if clip is not None and target.exists() and clip.exists() and target.samefile(clip):
        raise MediaError(f"{target} is the clip itself: give the output another name")
    check_target(target, overwrite=overwrite)
    count = max(1, _pictures(given["seconds"] or SECONDS, fps))
    for second, prompt in given["then"]:
        if _pictures(second, fps) >= count:
            tell(f"--then {second:g} is not before the end: {prompt!r} is never reached.")
    with interruptible(f"{target} was not written"), bar:
        begun, seconds, report = _write(target, given, count, fps, overwrite=overwrite, bar=bar)
    if not quiet:
        click.echo(summary(target, begun, count, seconds, report))


def _pictures(seconds: float, fps: Fraction) -> int:
    """How many pictures begin before a time; decimals count as they are written, 1.1 as 11/10."""
    return math.ceil(Fraction(seconds).limit_denominator(1_000_000) * fps)


def _write(
    target: Path, given: dict[str, Any], count: int, fps: Fraction, *, overwrite: bool, bar: Any
) -> "tuple[int, float, ChunkReport]":
    """Write the file: pictures of the clip, if there is one, and those that are made, whose time is measured."""
    import time

    from diffaccel.media.repaint import to_pixels
    from diffaccel.media.video_writer import VideoWriter
    from diffaccel.video.film import made

    prompts = [(_pictures(second, fps), prompt) for second, prompt in given["then"]]
    with (
        _opened(given, fps) as engine,
        VideoWriter(target, rate=fps, time_base=TIME_BASE, overwrite=overwrite) as writer,
    ):
        writer.start(engine.config.width, engine.config.height)
        for pixels in _clip(given["clip"], fps, engine):
            writer.write(pixels, writer.written / fps, 1 / fps)
        begun, start = writer.written, time.perf_counter()
        with _explained():
            for picture in made(engine, count, prompts):
                writer.write(to_pixels(picture), writer.written / fps, 1 / fps)
                bar.advance(count)
        return begun, time.perf_counter() - start, engine.report()


@contextmanager
def _explained() -> "Iterator[None]":
    """Turn what stops a video on its way, and a person can mend, into a `MediaError` that names the remedy."""
    from diffaccel.media.errors import MediaError
    from diffaccel.video.report import FramesNotFinite

    remedy = "use a smaller --size, --chunk or --window, or --dtype bfloat16"
    try:
        with memory_explained(f"out of memory: {remedy}"):
            yield
    except MediaError:
        raise
    except FramesNotFinite as error:
        raise MediaError("the network overflows: its frames are not finite; use --dtype float32 or bfloat16") from error
    except ValueError as error:  # prompts that cannot follow each other
        raise MediaError(str(error)) from error


def _clip(clip: Path | None, fps: Fraction, engine: "VideoEngine") -> "Iterator[np.ndarray]":
    """The clip's pictures in the size of those to come."""
    from diffaccel.media.clip import sampled
    from diffaccel.media.repaint import fitted

    config = engine.config
    for pixels in () if clip is None else sampled(clip, fps):
        yield fitted(pixels, config.width, config.height, config.fit)


def _opened(given: dict[str, Any], fps: Fraction) -> "VideoEngine":
    """The engine, on the last pictures of the clip, as many as it may see."""
    from diffaccel.media.clip import sampled
    from diffaccel.media.errors import MediaError

    chunk = given["chunk"] or 4
    window = given["window"] or max(4, chunk)
    tail = None
    if given["clip"] is not None:
        tail = deque(sampled(given["clip"], fps), maxlen=window * MOST_PICTURES)
        if not tail:
            raise MediaError(f"{given['clip']} has no picture to go on from")
        _tell_clip(given["clip"], fps, chosen=given["fps"] is not None)
    pipe = _load(given)
    each = int(getattr(pipe.vae.config, "scale_factor_temporal", None) or 1)
    pictures = None if tail is None else list(tail)[-(1 + (window - 1) * each) :]
    try:
        engine = _open(pipe, pictures, window, chunk, given)
    except (TypeError, ValueError, MemoryError) as error:
        raise MediaError(_as_typed(str(error))) from error
    if pictures is not None:
        _tell_shape(pictures[-1].shape, engine, given["fit"])
    return engine


def _as_typed(text: str) -> str:
    """A remedy in which options are named as they are typed."""
    for name, typed in TYPED.items():
        text = text.replace(name, typed)
    return text


def _tell_clip(clip: Path, fps: Fraction, *, chosen: bool) -> None:
    """Say what of a clip is not kept: its sound, and its rate where nobody chose another."""
    from diffaccel.media.video_reader import VideoReader

    with VideoReader(clip) as reader:
        sound, rate, still = bool(reader.audio), reader.rate, reader.still
    if sound:
        tell(f"the sound of {clip} is left out.")
    if not (chosen or still) and abs(math.log(rate / fps)) > SAME_SHAPE:
        tell(f"{clip} has {float(rate):.4g} pictures a second, and the video {float(fps):g}; --fps gives another rate.")


def _tell_shape(shape: tuple[int, ...], engine: "VideoEngine", fit: str | None) -> None:
    """Say that a clip of another shape loses something, where nobody said how it shall get in."""
    (height, width, _), config = shape, engine.config
    if fit is None and abs(math.log(width * config.height / (height * config.width))) > SAME_SHAPE:
        tell(
            f"the clip is {width}x{height}, and the video {config.width}x{config.height}: it is cropped; --size gives "
            "another shape, --fit pad black bars."
        )


def _load(given: dict[str, Any]) -> Any:
    from diffaccel import models

    if given["model"] is None and DEFAULT_MODEL not in models.names("video"):
        raise click.UsageError("no video model is bundled with this installation: name one, --model FOLDER")
    choice = ModelChoice.of(given)
    source = choice.find(DEFAULT_MODEL, video=True)
    texts = {"--prompt": given["prompt"], "--negative-prompt": given["negative_prompt"] or ""}
    texts |= {f"--then {second:g}": prompt for second, prompt in given["then"]}
    choice.check_reading(source.index["_class_name"], texts.values())
    pipe = choice.open(source, list(texts.values()))
    tell_remark(pipe, texts)
    return pipe


def _open(pipe: Any, pictures: Any, window: int, chunk: int, given: dict[str, Any]) -> "VideoEngine":
    """The engine, with the model's settings where nothing else was said."""
    from diffaccel import models
    from diffaccel.methods import DeepCache, IntervalCache
    from diffaccel.runtime.causal_context import CausalContext
    from diffaccel.sampling.guidance import FullGuidance, NoGuidance
    from diffaccel.video.engine import VideoEngine

    best = models.defaults(given["model"] or DEFAULT_MODEL)
    scale = _first(given["guidance_scale"], best.get("guidance_scale"), 1.0)
    if given["negative_prompt"] and scale <= 1:
        tell(f"--negative-prompt changes nothing at --guidance-scale {scale:g}: raise it above 1.")
    every = given["cache"] or 1
    method: Any = DeepCache(interval=every) if hasattr(pipe, "unet") else IntervalCache(interval=every)
    width, height = given["size"] if isinstance(given["size"], tuple) else (None, None)
    return VideoEngine(
        pipe,
        prompt=given["prompt"],
        negative_prompt=(given["negative_prompt"] or "") if scale > 1 else "",
        chunk=chunk,
        num_steps=_first(given["steps"], best.get("steps"), 8),
        strength=_first(given["strength"], 1.0),
        guidance=FullGuidance(scale) if scale > 1 else NoGuidance(),
        context=CausalContext(window=window, refresh=given["refresh"] or "never"),
        cache=method if every > 1 else None,
        width=width,
        height=height,
        seed=given["seed"] or 0,
        given=pictures,
        fit=given["fit"] or "crop",
    )


def _first(*values: Any) -> Any:
    """The first that is given."""
    return next(value for value in values if value is not None)


def summary(target: Path, begun: int, count: int, seconds: float, report: "ChunkReport") -> str:
    """What became of a video, in one line."""
    behind = f" behind {begun} of the clip" if begun else ""
    made = counted(count, "picture")
    return f"{target}: {made}{behind}, {count / max(seconds, 1e-9):.1f} per second; {report.sampler}"
