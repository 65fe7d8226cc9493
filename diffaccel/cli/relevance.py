"""`diffaccel relevance`: what each residual of a ControlNet is worth to pictures and control."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import Grouped, HomePath
from diffaccel.cli.model_options import MODEL_NAMES
from diffaccel.cli.result_files import check_result, folder_of, write_drawing
from diffaccel.cli.subject import RUN_OPTIONS, Subject, with_subject
from diffaccel.config.words import counted

if TYPE_CHECKING:
    from diffaccel.methods import Relevance

DEFAULT_NET = "emoji-control"


@click.command(
    "relevance",
    cls=Grouped,
    groups={
        "The model": MODEL_NAMES,
        "What to measure": RUN_OPTIONS,
        "Control": ("--controlnet", "--control-image", "--control-scale"),
        "The result": ("--output", "--plot", "--quiet", "--help"),
    },
    examples={
        "The model": "diffaccel relevance --model sd15.safetensors --controlnet path/to/net --prompts 'a cat' "
        "--control-image cat-edges.png",
        "What to measure": "diffaccel relevance --prompts 'a red heart' --control-image heart.png --steps 20",
        "Control": "diffaccel relevance --controlnet path/to/net --prompts 'a cat' --control-image cat-edges.png",
        "The result": "diffaccel relevance --prompts 'a red heart' --control-image heart.png --plot relevance.svg",
    },
    short_help="Measure what each residual of a ControlNet is worth.",
)
@with_subject
@click.option(
    "--controlnet",
    metavar="NET",
    help="ControlNet: bundled name, folder, .safetensors file or Hub id.  [default: emoji-control]",
)
@click.option(
    "--control-image",
    "images",
    multiple=True,
    type=HomePath(exists=True, dir_okay=False, path_type=Path),
    help="Picture of white lines on black; one for each prompt, or one for all.",
)
@click.option("--control-scale", "scale", type=float, default=1.0, show_default=True, help="Strength of the control.")
@click.option(
    "-o", "--output", type=HomePath(path_type=Path), default="relevance.json", show_default=True, help="File to write."
)
@click.option("--plot", type=HomePath(path_type=Path), help="Draw the result to this SVG file, too.")
def relevance(
    subject: Subject, controlnet: str | None, images: tuple[Path, ...], scale: float, output: Path, plot: Path | None
) -> None:
    """Leave out each residual of a ControlNet in turn, and all behind it, and measure what is lost.

    The result is for ControlCache(relevance="relevance.json"), which then runs the ControlNet as deep as is worth it:
    diffaccel generate --cache controlcache:interval=2,relevance=relevance.json.
    """
    from diffaccel.config.checks import number
    from diffaccel.measure.relevance import relevance as measure
    from diffaccel.measure.relevance_chart import chart
    from diffaccel.stream.control import MOST_SCALE

    check_result("--output", output, "relevance.json")
    if plot is not None:
        check_result("--plot", plot, "relevance.svg", beside=output)
    number("--control-scale", scale, 1e-6, MOST_SCALE)
    prompts, settings = subject.texts(len(images) or 1), subject.settings()
    lines = _lines(images, len(prompts), settings)
    pipe = subject.load(prompts, controlnet or DEFAULT_NET)
    found = measure(pipe, lines, prompts, scale=scale, seed=subject.seed, progress=subject.say, **settings)
    click.echo("\n".join(_table(found)))
    with folder_of(output):
        found.save(output)
    if plot is not None:
        write_drawing(plot, chart(found))


def _lines(images: tuple[Path, ...], count: int, settings: dict[str, Any]) -> list[Any]:
    """The control images as every viewer shows them, at the pictures' size. Raises `click.UsageError`."""
    from diffaccel.batch.pictures import PictureError, open_picture

    if len(images) not in (1, count):
        raise click.UsageError(
            f"{counted(count, 'prompt')}: give one --control-image for all, or as many; got {len(images)}"
        )
    try:
        size = settings.get("width"), settings.get("height")
        found = [open_picture(str(path), size, background="black") for path in images]
    except PictureError as error:
        raise click.UsageError(f"--control-image: {error}") from error
    if len({image.size for image in found}) > 1:
        raise click.UsageError("--control-image: the pictures differ in size: give --size")
    return found * (count if len(found) == 1 else 1)


def _table(found: "Relevance") -> list[str]:
    """The scores, the most relevant first, and where to cut."""
    pairs = sorted(zip(found.scores, found.each, strict=True), key=lambda pair: -pair[0])
    width = max(len(loss.name) for loss in found.each)
    rows = [
        f"{loss.name:<{width}}  {score:9.2f}  {loss.psnr:8.1f}  {loss.ssim:5.3f}  {loss.agreement:9.3f}"
        for score, loss in pairs
    ]
    worth, count = found.worth(), len(found.each)
    return [
        f"edge agreement: {found.agreement:.3f} with all, {found.without:.3f} without any control",
        f"{'without':<{width}}  relevance  PSNR, dB   SSIM  agreement",
        *rows,
        f"worth keeping: the first {worth} of {count}; ControlCache(keep={worth}) drops the others",
    ]
