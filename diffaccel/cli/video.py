"""`diffaccel video`: a video file in, the same video painted anew out; or a video from words."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli import film
from diffaccel.cli.help import Grouped, HomePath, Number, declared, refuse
from diffaccel.cli.model_options import MODEL_NAMES, READING_NAMES, ModelChoice, model_options
from diffaccel.cli.streaming import (
    COMPILE_OPTION,
    CONTROLNET_NAMES,
    CONTROLNET_OPTIONS,
    FIT,
    FIT_OPTION,
    GUIDANCE_OPTION,
    SMOOTHING_OPTION,
    fitted,
    live_settings,
    memory_explained,
    parse_size,
    require_extras,
    tell_unread,
)
from diffaccel.config.words import counted
from diffaccel.media.errors import pyav

if TYPE_CHECKING:
    from diffaccel.media.repaint import VideoReport
    from diffaccel.realtime.settings import LiveSettings
    from diffaccel.stream.engine import StreamEngine


_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.argument("source", metavar="[INPUT", required=False, type=HomePath(path_type=Path)),
    click.argument("target", metavar="OUTPUT]", required=False, type=HomePath(path_type=Path)),
    click.option("-o", "--output", type=HomePath(path_type=Path), help="The file to write, where there is no INPUT."),
    click.option("--prompt", required=True, help="What the video should become, or be."),
    *film.OPTIONS,
    click.option("--negative-prompt", help="What should not be seen; one-time and full guidance read it."),
    click.option(
        "--strength",
        type=Number(),
        help="How much of each frame is painted anew, in [0.05, 1].  [default: 0.5; without INPUT, 1]",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1),
        help="Steps of each frame: more are finer and slower.  [default: 2; without INPUT, 8]",
    ),
    GUIDANCE_OPTION,
    click.option(
        "--guidance-scale",
        type=Number(1),
        help="How hard guidance pushes, from 1.  [default: 1.2; without INPUT, the model's]",
    ),
    click.option("--seed", type=int, help="Seed of the noise: another number, another video.  [default: 0]"),
    click.option(
        "--batch-size", type=click.IntRange(1), default=4, help="Frames that share a network call.  [default: 4]"
    ),
    click.option(
        "--cache",
        type=click.IntRange(1),
        metavar="N",
        help="Compute deep layers in every n-th batch, and where much moves.  [default: 1, always]",
    ),
    click.option(
        "--similarity/--no-similarity",
        default=None,
        help="Repeat the picture while frames hardly change.  [default: no]",
    ),
    click.option(
        "--size",
        callback=parse_size,
        help="Pixels, as in 640x384.  [default: fit, the video's shape; without INPUT, the model's]",
    ),
    FIT_OPTION,
    SMOOTHING_OPTION,
    *model_options("emoji-sd; without INPUT, emoji-video"),
    *CONTROLNET_OPTIONS,
    COMPILE_OPTION,
    click.option("--no-audio", is_flag=True, help="Leave the sound out."),
    click.option("--side-by-side", is_flag=True, help="Show the input to the left of each picture."),
    click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
)
_GROUPS = {
    "What to paint": (
        *("--prompt", "--negative-prompt", "--strength", "--steps", "--guidance", "--guidance-scale", "--seed"),
        *("--size", "--fit", "--smoothing", *READING_NAMES),
    ),
    "The model": (*MODEL_NAMES, *CONTROLNET_NAMES),
    "A video from words": ("--seconds", "--continue", "--then", "--fps", "--chunk", "--window", "--refresh"),
    "Speed": ("--cache", "--similarity", "--batch-size", "--compile"),
    "The file": ("--output", "--no-audio", "--side-by-side", "--overwrite", "--quiet", "--help"),
}
_EXAMPLES = {
    "What to paint": "diffaccel video in.mp4 out.mp4 --prompt 'a green apple' --strength 0.6",
    "The model": "diffaccel video in.mp4 out.mp4 --prompt 'a cat' --model sd15.safetensors --lora style=0.7",
    "A video from words": "diffaccel video -o out.mp4 --prompt 'a red heart' --seconds 10 --then 5 'a rocket'",
    "Speed": "diffaccel video in.mp4 out.mp4 --prompt 'a green apple' --cache 3 --batch-size 8",
    "The file": "diffaccel video in.mp4 out.mkv --prompt 'a green apple' --side-by-side --overwrite",
}


@click.command(
    "video",
    cls=Grouped,
    groups=_GROUPS,
    examples=_EXAMPLES,
    short_help="Paint a video file anew, or make one from words.",
)
@declared(_OPTIONS)
@click.pass_context
def video(
    context: click.Context,
    /,
    source: Path | None,
    target: Path | None,
    output: Path | None,
    overwrite: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Paint every frame of INPUT into OUTPUT (.mp4, .mov, .m4v or .mkv), or make a video: --prompt "..." -o OUTPUT.

    Frames keep their number and times. Sound is copied, or encoded anew as AAC where OUTPUT cannot hold it. OUTPUT
    appears when it is complete; after an error or an interrupt there is none.
    """
    if target and output:
        raise click.UsageError(f"{target} and --output {output}: give one of them")
    target = check_way(context, source, target or output)
    pyav()
    require_extras(given)
    if source is None:
        film.film(target, given, overwrite=overwrite, quiet=quiet, bar=_Progress(quiet))
        return
    paint(source, target, given, overwrite=overwrite, quiet=quiet)


def check_way(context: click.Context, source: Path | None, target: Path | None) -> Path:
    """The output; refuses what is missing, and options of the other way."""
    if target is None:
        raise click.UsageError(
            "give INPUT and OUTPUT to paint a video anew, or -o OUTPUT to make one from the prompt"
            if source is None
            else "give OUTPUT, too"
        )
    if source is None:
        refuse(context, film.PAINTING, "needs an INPUT to paint anew")
    else:
        refuse(context, film.NAMES, "needs no INPUT: it makes a video from the prompt")
    return target


def paint(source: Path, target: Path, given: dict[str, Any], *, overwrite: bool, quiet: bool) -> None:
    """Paint a video anew, and say what became of it."""
    import logging

    from diffaccel.cli.signals import interruptible
    from diffaccel.media.repaint import repaint

    logging.basicConfig(format="%(message)s")
    choice = ModelChoice.of(given)
    texts = given["prompt"], given["negative_prompt"] or ""
    choice.check_reading(choice.find().index["_class_name"], texts)
    settings = live_settings(given, {"similarity": False, "cache": 1})
    bar, batch_size = _Progress(quiet), given["batch_size"]
    remedy = "a smaller --batch-size" if batch_size > 1 else "a smaller --size or --dtype bfloat16"
    memory = memory_explained(f"out of memory at --batch-size {batch_size}: use {remedy}")
    with interruptible(f"{target} was not written"), bar, memory:
        report = repaint(
            lambda: _open(settings, source, batch_size, quiet=quiet or given["size"] != FIT),
            source,
            target,
            audio=not given["no_audio"],
            overwrite=overwrite,
            side_by_side=given["side_by_side"],
            on_frame=bar.advance,
        )
    if not quiet:
        click.echo(summary(target, report))


def _open(settings: "LiveSettings", source: Path, batch_size: int, *, quiet: bool) -> "StreamEngine":
    """Load the model, and open a stream in the asked size or the video's shape."""
    from diffaccel.media.video_reader import VideoReader
    from diffaccel.realtime.settings import load_pipeline, open_alone

    pipe = load_pipeline(settings)
    tell_unread(pipe, settings.controls)
    if settings.width is None:
        with VideoReader(source, audio=False) as reader:
            settings = fitted(pipe, settings, (reader.width, reader.height), quiet=quiet)
    return open_alone(pipe, settings, frame_buffer=batch_size)


def summary(target: Path, report: "VideoReport") -> str:
    """What became of a video, in one line."""
    facts = [counted(report.frames, "frame"), f"{report.frames / max(report.seconds, 1e-9):.1f} per second"]
    if report.audio_streams:
        facts.append("sound encoded anew as AAC" if report.encoded_streams else "sound copied")
    if report.repeated:
        facts.append(f"{counted(report.repeated, 'picture')} shown again for the next frame")
    if report.stream.frames_not_finite:
        facts.append(f"{counted(report.stream.frames_not_finite, 'picture')} not finite")
    if report.damaged:
        facts.append(f"{counted(report.damaged, 'damaged piece')} of the input left out")
    return f"{target}: {', '.join(facts)}"


class _Progress:
    """A progress bar that appears with the first frame."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None

    def advance(self, total: int | None) -> None:
        """One more frame, of ``total`` or of nobody knows how many."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="frame", disable=True if self._quiet else None, smoothing=0.1)
        self._bar.update()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
