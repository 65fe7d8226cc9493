"""`diffaccel models`: what ships in the package, with its measured figures."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--format", "layout", type=click.Choice(["text", "json"]), default="text", help="How to print.")
def models(layout: str) -> None:
    """List the bundled models with their figures."""
    from diffaccel import models as library

    rows = [(library.BUNDLED[name], library.figures(name)) for name in library.names()]
    if layout == "json":
        listed = [
            {
                "name": row.name,
                "kind": row.kind,
                "summary": row.summary,
                "defaults": dict(row.defaults),
                "path": str(row.folder),
                "figures": figures,
            }
            for row, figures in rows
        ]
        click.echo(json.dumps(listed, indent=2))
        return
    for row, figures in rows:
        click.echo(f"{click.style(row.name, bold=True)}  {row.kind}, {_megabytes(row.folder):.1f} MB\n  {row.summary}")
        click.echo(f"  defaults: {', '.join(f'{key}={value}' for key, value in row.defaults.items()) or 'none'}")
        for key, value in _flat(figures):
            click.echo(f"  {key}: {value}")
    if not rows:
        click.echo("No bundled models in this installation.")


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested figures as `name / name: value` lines."""
    for key, value in figures.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name} / ")
        else:
            yield name, f"{value:g}" if isinstance(value, float) else str(value)
