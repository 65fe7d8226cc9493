"""The options of `diffaccel generate`, and the parsed command line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from diffaccel.cli.help import HomePath, declared
from diffaccel.cli.model_options import ENGINE_OPTIONS, model_options

RESIZES = ("crop", "pad", "stretch")
SETTINGS = (
    "lora",
    "steps",
    "guidance_scale",
    "negative_prompt",
    "seed",
    "size",
    "scheduler",
    "cache",
    "guidance",
    "init_image",
    "strength",
    "mask_image",
    "control_image",
    "control_scale",
    "resize",
    "background",
    "long_prompts",
    "prompt_weights",
)


def _parse_shard(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise click.BadParameter(f"{text!r} is not I/N with 1 <= I <= N, as in 2/8")
    return int(index), int(count)


def _path(*names: str, **attributes: Any) -> Callable[..., Any]:
    return click.option(*names, type=HomePath(path_type=Path), **attributes)


def _number(*names: str, least: int, help: str, **attributes: Any) -> Callable[..., Any]:
    return click.option(*names, type=click.IntRange(least), help=help, show_default=True, **attributes)


def _flag(*names: str, help: str) -> Callable[..., Any]:
    return click.option(*names, is_flag=True, help=help)


_OPTIONS = (
    click.argument("prompts", nargs=-1),
    _path("-o", "--output", default="out", show_default=True, help="Folder to write to."),
    *model_options(),
    click.option("--steps", type=int, help="Sampling steps.  [emoji-sd: 20]"),
    click.option("--guidance-scale", type=float, help="How closely the prompt is followed.  [emoji-sd: 2]"),
    click.option("--negative-prompt", help="What the pictures should not show."),
    click.option(
        "--seed",
        type=int,
        help="Seed of each prompt's first picture; -1 draws one.  [default: derived from the prompt]",
    ),
    click.option("--size", help="Width and height in pixels, as in 128 or 128x96.  [default: the model's]"),
    click.option(
        "--scheduler",
        help="Sampler: 'dpm++ 2m karras', 'euler a', unipc, ...; default is the model's.  [emoji-sd: dpm++]",
    ),
    click.option(
        "--cache",
        metavar="SPEC",
        help="What to reuse between steps: a method of docs/methods.md, several joined by +, or none.  "
        "[UNets: DeepCache, forecast]",
    ),
    click.option(
        "--guidance",
        metavar="SPEC",
        help="When the negative prompt is computed: in every step (full), in the first (one-time) or never (self).  "
        "[default: full]",
    ),
    _path("--profile", metavar="FILE", help="Take the caching from a JSON file: calibrated, tuned, or methods."),
    click.option("--init-image", metavar="PICTURE", help="Start from this picture, or each of a folder or pattern."),
    click.option("--strength", type=float, help="How far to move away from it, in (0, 1]."),
    click.option("--mask-image", metavar="PICTURE", help="Paint it anew only where this one is white."),
    click.option("--controlnet", metavar="NET", help="ControlNet: bundled name, folder, .safetensors file or Hub id."),
    click.option("--control-image", metavar="PICTURE", help="What the ControlNet follows: edges, depth, ..."),
    click.option("--control-scale", type=float, help="Strength of the ControlNet.  [default: 1]"),
    click.option(
        "--resize",
        type=click.Choice(RESIZES),
        help="How pictures get their size: cut off, with bars, or distorted.  [default: crop]",
    ),
    click.option("--background", metavar="COLOUR", help="Colour behind transparent pictures.  [default: white]"),
    _flag("--dynamic-prompts", help="Draw {a|b} and __wildcards__, by the picture's seed."),
    _path("--wildcards", metavar="FOLDER", help="Folder with name.txt, the lines for __name__.  [default: wildcards]"),
    _flag("--keep-columns", help="Take other columns along to manifest and Parquet."),
    _number("--num-images", least=1, default=1, help="Pictures per prompt; the seed counts up."),
    _number("--batch-size", least=1, default=4, help="Pictures per network call."),
    _flag("--compare", help="Render without caching too, and show both with their difference."),
    click.option(
        "--device-map",
        type=click.Choice(["balanced", "offload"]),
        help="balanced: spread the model over all accelerators; offload: keep it in memory, move parts as they run.",
    ),
    _flag("--compile", "compiled", help="Compile the denoiser; pays off after some hundred pictures."),
    click.option(
        "--image-format",
        "suffix",
        type=click.Choice(["png", "jpg", "webp"]),
        default="png",
        show_default=True,
        help="Kind of the picture files.",
    ),
    _path("--from", "source_picture", metavar="PICTURE", help="Render the settings inside this picture again."),
    click.option(
        "--overwrite/--resume",
        default=False,
        show_default=True,
        help="Render again what is there already, or go on where an earlier run stopped.",
    ),
    _flag("--retry-failed", help="Render only what failed in an earlier run."),
    click.option("--shard", callback=_parse_shard, metavar="I/N", help="Render part I of N, next to other machines."),
    _number(
        "--processes",
        least=1,
        default=1,
        help="Processes that render, or actors of the Ray cluster.",
    ),
    *ENGINE_OPTIONS,
    _number("--tar", "tar_size", least=1, help="Pack the pictures into webdataset shards of this many, too."),
    _flag("--parquet", help="Write them into one Parquet file, too."),
    _number("--limit", least=1, help="Render at most this many pictures."),
    _flag("--allow-flagged", help="Keep pictures that the model's safety checker blackened, marked."),
    _flag("--fail-fast", help="Stop at the first picture that fails."),
    _flag("--dry-run", help="Check the input, say what would be done, and stop."),
    click.option(
        "--format", "layout", type=click.Choice(["text", "json"]), default="text", help="How the summary is printed."
    ),
    _flag("-q", "--quiet", help="Print errors only."),
)


@dataclass(frozen=True)
class Request:
    """The command line, parsed; `settings` are those of its options that a row can override."""

    prompts: tuple[str, ...]
    settings: dict[str, Any]
    output: Path
    model: str | None
    num_images: int
    batch_size: int
    compare: bool
    dtype: str | None
    device: str | None
    device_map: str | None
    compiled: bool
    vae: str | None
    config: str | None
    lora_partial: bool
    embeddings: str | None
    controlnet: str | None
    dynamic_prompts: bool
    wildcards: Path | None
    keep_columns: bool
    profile: Path | None
    tar_size: int | None
    parquet: bool
    suffix: str
    source_picture: Path | None
    overwrite: bool
    retry_failed: bool
    shard: tuple[int, int] | None
    processes: int
    engine: str
    address: str | None
    limit: int | None
    allow_flagged: bool
    fail_fast: bool
    dry_run: bool
    layout: str
    quiet: bool


def with_options(function: Callable[[Request], None]) -> Callable[..., None]:
    """Give a command all options of `generate`; it receives them as one `Request`."""

    def command(**values: Any) -> None:
        given = {name: values.pop(name) for name in SETTINGS}
        function(Request(settings={name: value for name, value in given.items() if value is not None}, **values))

    command.__doc__ = function.__doc__
    return declared(_OPTIONS)(command)
