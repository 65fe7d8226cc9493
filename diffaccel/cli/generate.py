"""`diffaccel generate`: prompts in, a finished folder of pictures out."""

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.options import Request, with_options
from diffaccel.cli.planning import GenerateWork, plan_work, ranked, unusable
from diffaccel.cli.signals import interruptible
from diffaccel.cli.summary import print_plan, print_summary
from diffaccel.config.words import counted, one_line

if TYPE_CHECKING:
    from diffaccel.batch.jobs import JobPlan
    from diffaccel.batch.store import OutputFolder, Record
    from diffaccel.batch.summary import Calls, Summary

SOME_FAILED = 3
SHOWN_BAD_ROWS = 20
IN_A_HURRY = 100  # pictures on the contact sheet of a run that was interrupted, which has seconds to end


@click.command("generate", short_help="Render prompts into a folder of pictures.")
@with_options
def generate(request: Request) -> None:
    """Render PROMPTS into a folder of pictures with a contact sheet.

    PROMPTS are texts, or files of them: .txt (one a line), .csv, .jsonl, .parquet (a column named prompt, and columns
    named like the options below for settings of single rows), .yaml (lists of settings, of which every combination is
    rendered), or - for standard input. The same command again goes on where it was stopped.
    """
    from diffaccel.batch.store import check_output

    logging.basicConfig(format="%(message)s")
    with interruptible("the same command goes on where this one stopped"):
        request = ranked(request)
        check_output(request.output)
        work = plan_work(request)
        if request.dry_run:
            failed = print_plan(request, work, unusable(work))
        else:
            summary, calls = _render(request, work)
            print_summary(request, work, summary, calls)
            failed = summary.failed
    if failed:
        raise click.exceptions.Exit(SOME_FAILED)


def _render(request: Request, work: GenerateWork) -> "tuple[Summary, Calls]":
    """Render what is left to do, and write the contact sheet, also when interrupted."""
    from diffaccel.batch.store import OutputFolder, StoreError

    with OutputFolder(request.output, request.shard) as folder:
        bad = _record_bad_rows(folder, work.plan)
        try:
            summary, calls = _run(request, work, folder)
        except BaseException as error:
            with suppress(StoreError):
                _write_sheet(request, work, bad, IN_A_HURRY if isinstance(error, KeyboardInterrupt) else None)
            raise
        _write_sheet(request, work, bad)
        _export(request, work)
    summary.failed += len(bad)
    summary.first_error = summary.first_error or (f"{bad[0].id}: {bad[0].error}" if bad else None)
    return summary, calls


def _run(request: Request, work: GenerateWork, folder: "OutputFolder") -> "tuple[Summary, Calls]":
    from diffaccel.batch.distribute import Processes, Share, render_part
    from diffaccel.batch.summary import Calls, Summary
    from diffaccel.measure.energy import EnergyMeter
    from diffaccel.models.placement import Placement, devices

    if not work.todo:
        return Summary(), Calls()
    part = Share(
        work.todo,
        work.source,
        Placement(request.device, request.device_map, request.compiled),
        batch_size=request.batch_size,
        suffix=request.suffix,
        compare=request.compare,
        fail_fast=request.fail_fast,
        lora_partial=request.lora_partial,
        allow_flagged=request.allow_flagged,
    )
    with _progress(request, work) as bar:
        show = partial(_show, bar, work.plan.places)
        if request.engine == "ray":
            from diffaccel.batch.ray_engine import render_on_ray

            return render_on_ray(part, folder, show, actors=request.processes, address=request.address)
        with EnergyMeter(devices(part.placement, request.processes)) as meter:
            if request.processes > 1:
                summary, calls = Processes(folder, show)(part, request.processes)
            else:
                summary, calls = render_part(part, folder, show)
    summary.joules = meter.joules
    return summary, calls


def _record_bad_rows(folder: "OutputFolder", plan: "JobPlan") -> "list[Record]":
    """Record the rows that cannot be used, and tell of the first ones."""
    from diffaccel.batch.store import Record

    records = [Record(bad.where, "failed", error=bad.error) for bad in plan.bad]
    folder.append(records)
    for record in records[:SHOWN_BAD_ROWS]:
        click.echo(one_line(f"{record.id}: {record.error}"), err=True)
    if len(records) > SHOWN_BAD_ROWS:
        click.echo(f"... and {counted(len(records) - SHOWN_BAD_ROWS, 'more row')} that cannot be used", err=True)
    return records


def _write_sheet(request: Request, work: GenerateWork, bad: "list[Record]", most: int | None = None) -> None:
    """The contact sheet of all that is in the folder; failures are shown where this command asked for them."""
    from diffaccel.batch.sheet import MAX_PICTURES, write_sheet
    from diffaccel.batch.store import read_manifest

    asked = {job.id for job in work.plan.jobs} | {record.id for record in bad}
    records = read_manifest(request.output).values()
    shown = [record for record in records if record.status == "done" or record.id in asked]
    prints = {job.id: job.fingerprint for job in work.plan.jobs}
    stale = {record.id for record in shown if record.fingerprint != prints.get(record.id, record.fingerprint)}
    write_sheet(request.output, shown, most or MAX_PICTURES, stale)


def _export(request: Request, work: GenerateWork) -> None:
    """Pack the pictures, once all of the input has ended; of several shards, the last one to end does it for all."""
    from diffaccel.batch.export import finished, write_parquet, write_tars
    from diffaccel.batch.store import read_manifest

    if not (request.tar_size or request.parquet):
        return
    records = finished(work.whole, read_manifest(request.output), request.output, request.suffix)
    if records is None:
        return
    if request.tar_size:
        write_tars(request.output, records, request.tar_size)
    if request.parquet:
        write_parquet(request.output, records)


def _progress(request: Request, work: GenerateWork) -> Any:
    """A bar with rate, ETA and failures."""
    from tqdm import tqdm

    return tqdm(total=len(work.todo), unit="img", disable=True if request.quiet else None, smoothing=0.1)


def _show(bar: Any, places: Mapping[str, str], record: "Record") -> None:
    """Move the bar on; a failure is told with the place of its row and the picture's name."""
    if record.error:
        bar.write(one_line(f"{places[record.id]}: {record.id}: {record.error}"), file=sys.stderr)
        bar.failed = getattr(bar, "failed", 0) + 1
        bar.set_postfix(failed=bar.failed, refresh=False)
    bar.update()
