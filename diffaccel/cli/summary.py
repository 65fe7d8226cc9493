"""What `diffaccel generate` says at its end: one line for people, or one JSON object for programs."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.options import Request
from diffaccel.cli.planning import GenerateWork
from diffaccel.cli.said import told_once
from diffaccel.cli.survey import Survey
from diffaccel.config.words import counted

if TYPE_CHECKING:
    from diffaccel.batch.summary import Calls, Summary

LINES = 1000  # printed at once


def print_survey(request: Request, found: Survey) -> int:
    """Print what a run would do, with all bad rows and what there is to say about others; how many are bad."""
    if request.layout == "json":
        counts = {"jobs": found.pictures, "todo": found.todo, "bad": len(found.bad), "duplicates": found.duplicates}
        bad = [{"where": where, "error": error} for where, error in found.bad]
        click.echo(f'{json.dumps({**counts, "bad_rows": bad})[:-1]}, "notes": [', nl=False)
        notes = (json.dumps({"where": where, "note": note}) for where, note in found.notes)
        for place, block in enumerate(_blocks(notes, ", ")):
            click.echo(", " * bool(place) + block, nl=False)
        click.echo("]}")
        return len(found.bad)
    if not request.quiet:
        rows = f"{counted(len(found.bad), 'bad row')}, {found.duplicates:,} repeated"
        click.echo(f"{counted(found.pictures, 'picture')}, {found.todo:,} to render; {rows}")
    lines = chain(told_once(found.bad), () if request.quiet else told_once(found.notes))
    for block in _blocks(lines, "\n"):
        click.echo(block, err=True)
    return len(found.bad)


def _blocks(lines: Iterator[str], between: str) -> Iterator[str]:
    """Lines joined to be printed at once, where there may be one for each of a million rows."""
    while block := list(islice(lines, LINES)):
        yield between.join(block)


def print_summary(request: Request, work: GenerateWork, summary: "Summary", calls: "Calls", left: int | None) -> None:
    """Print what a run did.

    Args:
        left: of a part of a run, how many pictures of the whole are not there yet.
    """
    skipped = len(work.plan.jobs) - len(work.todo)
    if request.layout == "json":
        click.echo(json.dumps(_figures(work, summary, calls) | ({} if left is None else {"left_of_all": left})))
        return
    if summary.failed:
        click.echo(f"{summary.failed} failed; all reasons are in {request.output / 'manifest*.jsonl'}", err=True)
    if request.quiet:
        return
    if left:
        of_all = f"of the {counted(len(work.whole), 'picture')} of all shards"
        click.echo(f"{left:,} {of_all} are not there yet: they need the same rows, options and --batch-size", err=True)
    if not work.todo:
        there = f": {counted(skipped, 'picture is', 'pictures are')} there already" if skipped else ""
        if request.retry_failed:
            there = f": of {counted(skipped, 'picture')} none failed before"
        click.echo(f"Nothing to render{there}. See {request.output / 'index.html'}")
        return
    parts = [
        f"{counted(summary.done, 'picture')} in {summary.seconds:.1f} s ({summary.images_per_second:.2f} images/s)"
    ]
    if skipped:
        why = "left, which did not fail before" if request.retry_failed else "there already"
        parts.append(f"{counted(skipped, 'was', 'were')} {why}")
    if calls.replayed:
        parts.append(f"{counted(calls.computed, 'network call')} computed, {calls.replayed:,} replayed")
        parts.append(f"{calls.macs_saved:.0%} of MACs saved")
    if summary.psnr:
        speedup = summary.plain_seconds / summary.cached_seconds
        parts.append(f"{speedup:.2f}x as fast as without caching, PSNR {sum(summary.psnr) / len(summary.psnr):.1f} dB")
    elif request.compare and summary.done:
        parts.append("nothing was cached, so there is nothing to compare")
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
