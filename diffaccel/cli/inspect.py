"""`diffaccel inspect`: the settings inside a picture."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from diffaccel.config.words import one_line


@click.command()
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "layout", type=click.Choice(["text", "json"]), default="text", help="How to print.")
def inspect(pictures: tuple[Path, ...], layout: str) -> None:
    """Print the settings in pictures that `diffaccel generate` wrote."""
    from diffaccel.batch.metadata import read_job

    for path in pictures:
        settings = {key: value for key, value in asdict(read_job(path)).items() if value not in (None, "")}
        if layout == "json":
            click.echo(json.dumps({"file_name": str(path), **settings}))
            continue
        click.echo(click.style(str(path), bold=True))
        for key, value in settings.items():
            click.echo(f"  {key.replace('_', ' ')}: {one_line(value)}")
