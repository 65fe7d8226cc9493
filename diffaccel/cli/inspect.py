"""`diffaccel inspect`: the settings inside a picture."""

import json
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import click

from diffaccel.cli.help import Grouped, HomePath
from diffaccel.config.words import one_line

SOME_FAILED, NONE_READ = 3, 2
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp")


@click.command(
    cls=Grouped,
    groups={"How to print": ("--format", "--help")},
    examples={"How to print": "diffaccel inspect out/*.png --format json"},
    short_help="Print the settings inside pictures.",
)
@click.argument("pictures", nargs=-1, required=True, type=HomePath(path_type=Path))
@click.option("--format", "layout", type=click.Choice(["text", "json"]), default="text", help="How to print.")
def inspect(pictures: tuple[Path, ...], layout: str) -> None:
    """Print the settings in pictures of `diffaccel generate`, AUTOMATIC1111 and ComfyUI; of a folder, in all of its.

    A picture without any is told, and the next one follows; the exit code is then 3, or 2 where none has any.
    """
    from diffaccel.batch.readers import InputError

    read = failed = 0
    for path in chain.from_iterable(map(_pictures, pictures)):
        read += 1
        try:
            if path.is_dir():
                raise InputError(f"{path} is a folder without pictures of these kinds: {', '.join(SUFFIXES)}")
            settings = _settings(path)
        except InputError as error:
            click.echo(one_line(error), err=True)
            failed += 1
            continue
        if layout == "json":
            click.echo(json.dumps({"file_name": str(path), **settings}))
            continue
        click.echo(click.style(str(path), bold=True))
        for key, value in settings.items():
            shown = "; ".join(value) if isinstance(value, list) else value
            click.echo(f"  {key.replace('_', ' ')}: {one_line(shown)}")
    if failed:
        raise click.exceptions.Exit(SOME_FAILED if failed < read else NONE_READ)


def _pictures(path: Path) -> list[Path]:
    """The path, or the pictures of the folder that it is, if it has any that are not hidden."""
    from diffaccel.batch.pictures import files_of

    with suppress(OSError):  # what is no folder, or cannot be read, is told as it is opened
        return files_of(path, SUFFIXES) or [path]
    return [path]


def _settings(path: Path) -> dict[str, Any]:
    from diffaccel.batch.foreign import ForeignSettings
    from diffaccel.batch.metadata import read_settings

    found = read_settings(path)
    if isinstance(found, ForeignSettings):
        values = {"tool": found.tool, **found.settings, "model": found.model}
        values["without equivalent"] = found.without_equivalent
    else:
        values = {"id": found.id, **found.settings}
    return {key: value for key, value in values.items() if value not in (None, "", [])}
