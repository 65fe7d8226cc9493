"""`diffaccel generate`: prompts in, a finished folder of pictures out."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.arriving import RunCourse, arrives, own_input
from diffaccel.cli.help import Grouped
from diffaccel.cli.model_options import MODEL_NAMES
from diffaccel.cli.options import Request, with_options
from diffaccel.cli.planning import GenerateWork, Preparation, plan_work, prepare, ranked
from diffaccel.cli.said import told_once
from diffaccel.cli.signals import interruptible
from diffaccel.cli.summary import print_summary, print_survey
from diffaccel.cli.survey import survey
from diffaccel.config.words import counted, one_line

if TYPE_CHECKING:
    from diffaccel.batch.distribute import Share
    from diffaccel.batch.jobs import Job
    from diffaccel.batch.rows import BadRow
    from diffaccel.batch.store import OutputFolder, Record
    from diffaccel.batch.summary import Calls, Summary
    from diffaccel.models import ModelSource
    from diffaccel.models.placement import Placement

SOME_FAILED = 3
SHOWN_ROWS = 20
IN_A_HURRY = 100  # pictures on the contact sheet of a run that was interrupted, which has seconds to end


_GROUPS = {
    "What to paint": (
        *("--steps", "--guidance-scale", "--negative-prompt", "--seed", "--size", "--scheduler", "--num-images"),
    ),
    "The model": (*MODEL_NAMES, "--device-map", "--controlnet"),
    "From pictures": (
        *("--init-image", "--strength", "--mask-image", "--control-image", "--control-scale", "--resize"),
        *("--background", "--from"),
    ),
    "Prompts and tables": (
        *("--long-prompts", "--prompt-weights", "--dynamic-prompts", "--wildcards", "--keep-columns", "--limit"),
    ),
    "Faster": (*("--cache", "--guidance", "--profile", "--compare", "--batch-size", "--compile"),),
    "The folder": (
        *("--output", "--image-format", "--tar", "--parquet", "--overwrite", "--retry-failed", "--allow-flagged"),
        *("--fail-fast", "--dry-run", "--format", "--quiet", "--help"),
    ),
    "More processes and machines": ("--shard", "--processes", "--engine", "--address"),
}
_EXAMPLES = {
    "What to paint": "diffaccel generate 'a red heart' --steps 20 --scheduler 'dpm++ 2m karras' --num-images 4",
    "The model": "diffaccel generate 'a red heart' --model sd15.safetensors --lora style=0.7",
    "From pictures": "diffaccel generate 'a red heart' --init-image photo.jpg --strength 0.6",
    "Prompts and tables": "diffaccel generate prompts.csv --keep-columns --limit 10",
    "Faster": "diffaccel generate prompts.csv --cache deepcache:interval=3 --compare",
    "The folder": "diffaccel generate prompts.csv -o out --dry-run",
    "More processes and machines": "diffaccel generate prompts.csv --shard 2/8",
}


@click.command(
    "generate",
    cls=Grouped,
    groups=_GROUPS,
    examples=_EXAMPLES,
    short_help="Render prompts into a folder of pictures.",
)
@with_options
def generate(request: Request) -> None:
    """Render PROMPTS into a folder of pictures with a contact sheet.

    PROMPTS are texts, or files of them: .txt (one a line), .csv, .tsv, .json, .jsonl, .parquet (a column named prompt,
    and columns named like the options below for settings of single rows), .yaml (lists of settings, of which every
    combination is rendered), or - for standard input. The same command again goes on where it was stopped.
    """
    from diffaccel.batch.store import PARQUET, SHEET, TARS, check_output

    logging.basicConfig(format="%(message)s")
    with interruptible("the same command goes on where this one stopped"):
        request = ranked(request)
        check_output(
            request.output, [SHEET, *([TARS] if request.tar_size else []), *([PARQUET] if request.parquet else [])]
        )
        failed = _look(request) if request.dry_run else _generate(request)
    if failed:
        raise click.exceptions.Exit(SOME_FAILED)


def _look(request: Request) -> int:
    """Say what a run would do; how many rows are bad."""
    found = survey(prepare(request, sys.stdin))  # whose ledger is no longer needed then
    return print_survey(request, found)


def _generate(request: Request) -> int:
    """Render what is left to do, and say what was done; how many pictures and rows failed."""
    if arrives(request):
        prepared = prepare(request, own_input())
        work, summary, calls = _render_course(prepared.request, prepared)
    else:
        prepared = prepare(request, sys.stdin)
        work = plan_work(prepared)
        summary, calls = _render(prepared.request, work)
    print_summary(request, work, summary, calls, _left_to_others(request, work))
    return summary.failed


def _left_to_others(request: Request, work: GenerateWork) -> int | None:
    """How many pictures of the whole run are not there yet, where this is one of its parts."""
    from diffaccel.batch.export import unfinished
    from diffaccel.batch.store import read_manifest

    if request.shard is None:
        return None
    return unfinished(work.whole, read_manifest(request.output), request.output, request.suffix)


def _render(request: Request, work: GenerateWork) -> "tuple[Summary, Calls]":
    """Render work that is known beforehand."""
    from diffaccel.batch.store import OutputFolder

    with OutputFolder(request.output, request.shard) as folder:
        told: set[str] = set()
        _record_bad_rows(folder, told, work.plan.bad)
        _tell_notes(request, told, [(work.plan.places[job.id], job) for job in work.todo])
        with _finished(request, folder, lambda: work):
            summary, calls = _run(request, work, folder)
    return _with_bad_rows(summary, work), calls


def _render_course(request: Request, prepared: Preparation) -> "tuple[GenerateWork, Summary, Calls]":
    """Render rows as they come."""
    from diffaccel.batch.distribute import render_parts
    from diffaccel.batch.store import OutputFolder
    from diffaccel.measure.energy import EnergyMeter
    from diffaccel.models.placement import devices

    with OutputFolder(request.output) as folder, _progress(request, None) as bar:
        share, told = partial(_share, request, prepared.source), set[str]()
        course = RunCourse(
            prepared, share, partial(_record_bad_rows, folder, told), partial(_tell_notes, request, told)
        )
        with _finished(request, folder, course.work), EnergyMeter(devices(_placement(request), 1)) as meter:
            summary, calls = render_parts(course.parts(), folder, partial(_show, bar, course.places))
    summary.joules = meter.joules
    work = course.work()
    return work, _with_bad_rows(summary, work), calls


@contextmanager
def _finished(request: Request, folder: "OutputFolder", work: Callable[[], GenerateWork]) -> Iterator[None]:
    """Write the contact sheet in the end, also when interrupted, and pack what there is to pack."""
    from diffaccel.batch.store import StoreError, read_manifest, with_other_columns

    try:
        yield
    except BaseException as error:
        with suppress(StoreError):
            _write_sheet(request, work(), IN_A_HURRY if isinstance(error, KeyboardInterrupt) else None)
        raise
    if request.keep_columns:
        records = read_manifest(request.output)
        folder.append(with_other_columns(work().plan.jobs, records, request.output, request.suffix))
    _write_sheet(request, work())
    _export(request, work())


def _with_bad_rows(summary: "Summary", work: GenerateWork) -> "Summary":
    """The summary with the rows that cannot be used among what failed."""
    bad = work.plan.bad
    summary.failed += len(bad)
    summary.first_error = summary.first_error or (f"{bad[0].where}: {bad[0].error}" if bad else None)
    return summary


def _placement(request: Request) -> "Placement":
    from diffaccel.models.placement import Placement

    return Placement(request.device, request.device_map, request.compiled)


def _share(request: Request, source: "ModelSource", jobs: "tuple[Job, ...]") -> "Share":
    """Jobs, and everything that rendering them takes."""
    from diffaccel.batch.distribute import Share

    return Share(
        jobs,
        source,
        _placement(request),
        batch_size=request.batch_size,
        suffix=request.suffix,
        compare=request.compare,
        fail_fast=request.fail_fast,
        lora_partial=request.lora_partial,
        allow_flagged=request.allow_flagged,
    )


def _run(request: Request, work: GenerateWork, folder: "OutputFolder") -> "tuple[Summary, Calls]":
    from diffaccel.batch.distribute import Processes, render_parts
    from diffaccel.batch.summary import Calls, Summary
    from diffaccel.measure.energy import EnergyMeter
    from diffaccel.models.placement import devices

    if not work.todo:
        return Summary(), Calls()
    part = _share(request, work.source, work.todo)
    with _progress(request, len(work.todo)) as bar:
        show = partial(_show, bar, work.plan.places)
        if request.engine == "ray":
            from diffaccel.batch.ray_engine import render_on_ray

            return render_on_ray(part, folder, show, actors=request.processes, address=request.address)
        with EnergyMeter(devices(part.placement, request.processes)) as meter:
            if request.processes > 1:
                summary, calls = Processes(folder, show)(part, request.processes)
            else:
                summary, calls = render_parts([part], folder, show)
    summary.joules = meter.joules
    return summary, calls


def _record_bad_rows(folder: "OutputFolder", told: set[str], bad: "Sequence[BadRow]") -> None:
    """Record rows that cannot be used, and tell of them."""
    from diffaccel.batch.store import Record

    if bad:
        folder.append([Record(row.where, "failed", error=row.error) for row in bad])
    _tell([(row.where, row.error) for row in bad], told)


def _tell_notes(request: Request, told: set[str], jobs: "Sequence[tuple[str, Job]]") -> None:
    """Tell what there is to say about jobs, each with the place of its row."""
    if not request.quiet:
        _tell([(where, note) for where, job in jobs for note in job.notes], told)


def _tell(said: "Sequence[tuple[str, str]]", told: set[str]) -> None:
    """Tell what there is to say of rows, each thing once; `told` has what was told of rows that came before."""
    lines = list(told_once([(where, text) for where, text in said if text not in told]))
    told.update(text for _, text in said)
    for line in lines[:SHOWN_ROWS]:
        click.echo(line, err=True)
    if len(lines) > SHOWN_ROWS:
        click.echo(f"... and {counted(len(lines) - SHOWN_ROWS, 'more line')}; all are in the manifest", err=True)


def _write_sheet(request: Request, work: GenerateWork, most: int | None = None) -> None:
    """The contact sheet of all that is in the folder; failures are shown where this command asked for them.

    Where it holds less than that, what this command asked for comes first.
    """
    from diffaccel.batch.sheet import MAX_PICTURES, write_sheet
    from diffaccel.batch.store import read_manifest, shows

    jobs, most = {job.id: job for job in work.plan.jobs}, most or MAX_PICTURES
    asked = jobs.keys() | {row.where for row in work.plan.bad}
    records = read_manifest(request.output).values()
    shown = [record for record in records if record.status == "done" or record.id in asked]
    if len(shown) > most:
        shown.sort(key=lambda record: record.id not in asked)
    write_sheet(request.output, shown, most, lambda record: record.id in jobs and not shows(record, jobs[record.id]))


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


def _progress(request: Request, total: int | None) -> Any:
    """A bar with rate and failures, and ETA where the total is known."""
    from tqdm import tqdm

    return tqdm(total=total, unit="img", disable=True if request.quiet else None, smoothing=0.1)


def _show(bar: Any, places: Mapping[str, str], record: "Record") -> None:
    """Move the bar on; a failure is told with the place of its row and the picture's name."""
    if record.error:
        bar.write(one_line(f"{places[record.id]}: {record.id}: {record.error}"), file=sys.stderr)
        bar.failed = getattr(bar, "failed", 0) + 1
        bar.set_postfix(failed=bar.failed, refresh=False)
    bar.update()
