"""`diffaccel inspect`: the settings inside a picture."""

import json
from pathlib import Path
from typing import Any

import click

from diffaccel.cli.help import Grouped, HomePath
from diffaccel.config.words import one_line

SOME_FAILED, NONE_READ = 3, 2


@click.command(
    cls=Grouped,
    groups={"How to print": ("--format", "--help")},
    examples={"How to print": "diffaccel inspect out/*.png --format json"},
)
@click.argument("pictures", nargs=-1, required=True, type=HomePath(path_type=Path))
@click.option("--format", "layout", type=click.Choice(["text", "json"]), default="text", help="How to print.")
def inspect(pictures: tuple[Path, ...], layout: str) -> None:
    """Print the settings in pictures of `diffaccel generate`, AUTOMATIC1111 and ComfyUI.

    A picture without any is told, and the next one follows; the exit code is then 3, or 2 where none has any.
    """
    from diffaccel.batch.readers import InputError

    failed = 0
    for path in pictures:
        try:
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
        raise click.exceptions.Exit(SOME_FAILED if failed < len(pictures) else NONE_READ)


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
