"""What `diffaccel generate` says at its end: one line for people, or one JSON object for programs."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.options import Request
from diffaccel.cli.planning import GenerateWork
from diffaccel.config.words import counted, one_line

if TYPE_CHECKING:
    from diffaccel.batch.summary import Calls, Summary


def print_plan(request: Request, work: GenerateWork, problems: Mapping[str, str]) -> int:
    """Print what a run would do, with all bad rows; how many there are.

    Args:
        problems: why jobs cannot be rendered, by their ids.
    """
    bad = [{"where": row.where, "error": row.error} for row in work.plan.bad]
    found = dict.fromkeys((work.plan.places[job], problem) for job, problem in problems.items())
    bad = sorted([*bad, *({"where": where, "error": error} for where, error in found)], key=_in_order)
    pictures, todo = len(work.plan.jobs) - len(problems), len(work.todo) - len(problems)
    if request.layout == "json":
        counts = {"jobs": pictures, "todo": todo, "bad": len(bad), "duplicates": work.plan.duplicates}
        click.echo(json.dumps({**counts, "bad_rows": bad}))
        return len(bad)
    if not request.quiet:
        rows = f"{counted(len(bad), 'bad row')}, {work.plan.duplicates:,} repeated"
        click.echo(f"{counted(pictures, 'picture')}, {todo:,} to render; {rows}")
    for row in bad:
        click.echo(one_line(f"{row['where']}: {row['error']}"), err=True)
    return len(bad)


def _in_order(bad: Mapping[str, str]) -> tuple[str, int]:
    """Sorts bad rows by file and line."""
    file, _, line = bad["where"].rpartition(":")
    return file, int(line) if line.isdecimal() else 0


def print_summary(request: Request, work: GenerateWork, summary: "Summary", calls: "Calls") -> None:
    """Print what a run did."""
    skipped = len(work.plan.jobs) - len(work.todo)
    if request.layout == "json":
        click.echo(json.dumps(_figures(work, summary, calls)))
        return
    if summary.failed:
        click.echo(f"{summary.failed} failed; all reasons are in {request.output / 'manifest*.jsonl'}", err=True)
    if request.quiet:
        return
    if not work.todo:
        there = f": {counted(skipped, 'picture is', 'pictures are')} there already" if skipped else ""
        click.echo(f"Nothing to render{there}. See {request.output / 'index.html'}")
        return
    parts = [
        f"{counted(summary.done, 'picture')} in {summary.seconds:.1f} s ({summary.images_per_second:.2f} images/s)"
    ]
    if skipped:
        parts.append(f"{counted(skipped, 'was', 'were')} there already")
    if calls.replayed:
        parts.append(f"{counted(calls.computed, 'network call')} computed, {calls.replayed:,} replayed")
        parts.append(f"{calls.macs_saved:.0%} of MACs saved")
    if summary.psnr:
        speedup = summary.plain_seconds / summary.cached_seconds
        parts.append(f"{speedup:.2f}x as fast as without caching, PSNR {sum(summary.psnr) / len(summary.psnr):.1f} dB")
    if summary.joules is not None and summary.done:
        parts.append(f"{summary.joules:.0f} J ({summary.joules / summary.done:.1f} J a picture)")
    click.echo(f"{'; '.join(parts)}. See {request.output / 'index.html'}")


def _figures(work: GenerateWork, summary: "Summary", calls: "Calls") -> dict[str, Any]:
    figures = {
        **asdict(summary),
        "skipped": len(work.plan.jobs) - len(work.todo),
        "duplicates": work.plan.duplicates,
        "images_per_second": summary.images_per_second,
        "calls": {**asdict(calls), "macs_saved": calls.macs_saved},
    }
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
