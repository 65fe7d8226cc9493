"""`diffaccel models`: what ships in the package, with its measured figures."""

import json
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import Grouped
from diffaccel.config.words import counted

if TYPE_CHECKING:
    from diffaccel.models import Bundled

HEAD = ("name", "size", "use", "what it is")
USE = {
    "pipeline": "--model",
    "video": "in video",
    "lora": "--lora",
    "autoencoder": "--vae",
    "controlnet": "--controlnet",
    "adapter": "in Python",
    "classifier": "in bench",
}
DRAWS = ("pipeline", "lora")  # kinds whose accuracy is that of what they draw
WIDEST = 120  # characters


@click.command(
    cls=Grouped,
    groups={"How to print": ("--format", "--help")},
    examples={"How to print": "diffaccel models --format json"},
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How to print; json has all figures.",
)
def models(layout: str) -> None:
    """List the bundled models with their figures."""
    from diffaccel import models as library

    rows = [(library.BUNDLED[name], library.figures(name)) for name in library.names()]
    if layout == "json":
        click.echo(json.dumps([_values(row, figures) for row, figures in rows], indent=2))
    elif rows:
        _print_table([(_cells(row), _quality(row, figures)) for row, figures in rows])
        click.echo("\nUse one by the option beside it: diffaccel generate 'a red heart' --model emoji-sd")
    else:
        click.echo("No bundled models in this installation.")


def _values(row: "Bundled", figures: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known of a model, for programs."""
    known = {"name": row.name, "kind": row.kind, "summary": row.summary, "defaults": dict(row.defaults)}
    return {**known, "path": str(row.folder), "figures": figures}


def _cells(row: "Bundled") -> tuple[str, str, str, str]:
    return row.name, f"{_megabytes(row.folder):.1f} MB", USE[row.kind], row.summary


def _print_table(rows: list[tuple[tuple[str, ...], list[str]]]) -> None:
    """Names, sizes and options in columns; in the last one, what a model is and, below that, how good."""
    widths = [max(len(cells[column]) for cells in (HEAD, *(cells for cells, _ in rows))) for column in range(3)]
    indent = sum(widths) + 2 * len(widths)
    width = max(40, min(shutil.get_terminal_size().columns, WIDEST) - indent)
    click.echo(click.style(_line(HEAD, widths), bold=True))
    for cells, quality in rows:
        first, *rest = [line for text in (cells[3], *quality) for line in textwrap.wrap(text, width)]
        click.echo(_line((*cells[:3], first), widths))
        for line in rest:
            click.echo(" " * indent + line)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    name, size, use = widths
    return f"{cells[0]:{name}}  {cells[1]:>{size}}  {cells[2]:{use}}  {cells[3]}"


def _quality(row: "Bundled", figures: Mapping[str, Any]) -> list[str]:
    """What was measured, in words; nothing of what was not."""
    found = []
    if "switch_until" in figures:
        shares = (f"{figures[f'switch_{name}']:.0%}" for name in ("until", "macs", "top1"))
        words = (
            "for the first {} of emoji-sd's calls: {} of the multiply-accumulates, {} of captions drawn recognisably"
        )
        found.append(words.format(*shares))
    if "top1" in figures:
        done = "of captions drawn recognisably" if row.kind in DRAWS else "of drawings recognised at the first guess"
        found.append(f"{'alone ' if found else ''}{figures['top1']:.0%} {done}")
    if "seconds_per_picture" in figures:
        steps = counted(int(figures["steps"]), "step")
        found.append(f"{figures['seconds_per_picture']:.1f} s a picture in {steps} on two processor cores")
    if "psnr" in figures:
        own = figures.get("psnr_of_the_large_one")
        compared = f" (emoji-sd's own: {own:.1f} dB)" if own else ""
        found.append(f"drawings come back at a PSNR of {figures['psnr']:.1f} dB{compared}")
    if "edge_agreement" in figures:
        without = figures["edge_agreement_without"]
        found.append(f"edges agree with the lines at F1 {figures['edge_agreement']:.2f} ({without:.2f} without)")
    if "text_top1_frames_5_24" in figures:
        text, given = (f"{figures[f'{kind}_top1_frames_5_24']:.0%}" for kind in ("text", "given"))
        moves = f"{figures['text_motion_right']:.0%} and {figures['given_motion_right']:.0%}"
        found.append(f"{text} of frames recognised from words alone, {given} with four given; {moves} move as told")
    return ["; ".join(found)] if found else []


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
