"""`diffaccel generate`: prompts in, a finished folder of pictures out."""

import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.options import Request, with_options
from diffaccel.cli.signals import interruptible
from diffaccel.cli.summary import Work, print_plan, print_summary
from diffaccel.cli.text import one_line

if TYPE_CHECKING:
    from diffaccel.batch.jobs import Plan
    from diffaccel.batch.readers import BadRow
    from diffaccel.batch.settings import Row, Settings
    from diffaccel.batch.store import OutputFolder, Record
    from diffaccel.batch.summary import Calls, Summary

DEFAULT_MODEL = "emoji-sd"
SHOWN_BAD_ROWS = 20
IN_A_HURRY = 100  # pictures on the contact sheet of a run that was interrupted, which has seconds to end
DEFAULT_CACHE = "deepcache:interval=3,branch=0,forecast=taylor(1)"


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
    with interruptible():
        request = _ranked(request)
        check_output(request.output)
        work = _plan(request)
        if request.dry_run:
            print_plan(request, work)
            return
        summary, calls = _render(request, work)
        print_summary(request, work, summary, calls)
    if summary.failed:
        raise click.exceptions.Exit(3)


def _ranked(request: Request) -> Request:
    """Under `accelerate launch` or torchrun, this rank's shard and device."""
    from diffaccel.batch.distribute import rank

    place = rank()
    if place is None:
        return request
    if request.shard or request.processes > 1 or "-" in request.prompts:
        raise click.UsageError("a launcher's ranks share the work already: no --shard, --processes or standard input")
    shard, device = place
    return replace(request, shard=shard, device=request.device or device)


def _plan(request: Request) -> Work:
    """Read and check everything that can be checked without loading the model."""
    from diffaccel import models
    from diffaccel.batch.jobs import Source, plan_jobs, shard
    from diffaccel.batch.store import to_render

    options = _settings(request)
    rows, request = _rows(request, options)
    source = models.resolve(request.model or DEFAULT_MODEL)
    common = Source(source.name, _check(request, options), request.vae)
    cache = DEFAULT_CACHE if source.denoiser == "unet" else "none"
    plan = plan_jobs(rows, options, common, cache=cache, num_images=request.num_images)
    _require_prompts(plan, request)
    jobs = shard(plan.jobs, *request.shard, request.batch_size) if request.shard else plan.jobs
    jobs = jobs[: request.limit]
    todo = to_render(
        jobs,
        request.output,
        suffix=request.suffix,
        overwrite=request.overwrite or request.compare,
        retry_failed=request.retry_failed,
    )
    return Work(plan, jobs, todo, source)


def _check(request: Request, options: "Settings") -> str:
    """Check that everything is there that the command line names; the dtype of the weights."""
    from diffaccel import models
    from diffaccel.batch.export import require_pyarrow
    from diffaccel.batch.readers import InputError

    if options.init_image and not models.expanded(options.init_image).is_file():
        raise InputError(f"no such picture to start from: {options.init_image}")
    if options.lora:
        models.find_lora(options.lora)
    if request.vae:
        models.find_vae(request.vae)
    if request.parquet:
        require_pyarrow()
    device = models.choose_device(request.device)
    models.check_device_map(request.device_map, device)
    return str(models.choose_dtype(request.dtype, device)).removeprefix("torch.")


def _rows(request: Request, options: "Settings") -> "tuple[Iterable[Row | BadRow], Request]":
    """The rows of all arguments; with `--from`, the picture's own row, and its model, dtype and autoencoder."""
    from pydantic import ValidationError

    from diffaccel.batch.metadata import read_job
    from diffaccel.batch.readers import InputError, explain, read_rows
    from diffaccel.batch.settings import Row

    rows = read_rows(request.prompts, sys.stdin)
    if request.source_picture is None:
        return rows, request
    if request.prompts:
        raise InputError("give either prompts or --from PICTURE, not both")
    values = {key: value for key, value in asdict(read_job(request.source_picture)).items() if value is not None}
    fixed = {name: getattr(request, name) or values.pop(name, None) for name in ("model", "dtype", "vae")}
    own = {name: value for name, value in values.items() if name not in ("id", *fixed)}
    try:
        row = Row(**{**own, "custom_id": values["id"], **options.given()})
    except ValidationError as error:
        raise InputError(f"the settings in {request.source_picture} cannot be used: {explain(error)}") from error
    return [row], replace(request, **fixed)


def _settings(request: Request) -> "Settings":
    """The command line's settings, checked. Raises `click.UsageError` that names the option."""
    from pydantic import ValidationError

    from diffaccel.batch.settings import Settings

    try:
        return Settings(**(request.settings | _profile(request)))
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0]) if problem["loc"] else "size"
        name = "--size" if field in ("width", "height") else "--" + field.replace("_", "-")
        message = str(problem["msg"]).removeprefix("Value error, ")
        got = f" (got {problem['input']!r})" if problem["loc"] else ""
        raise click.UsageError(f"{name}: {message}{got}") from error


def _profile(request: Request) -> dict[str, Any]:
    """The caching that `--profile` asks for, written out, so that pictures and manifest do without the file."""
    if request.profile is None:
        return {}
    if "cache" in request.settings:
        raise click.UsageError("--profile and --cache both say what is reused: give one of them")
    from diffaccel.batch.settings import write_cache
    from diffaccel.methods import load_methods

    try:
        return {"cache": write_cache(load_methods(request.profile))}
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--profile: {error}") from error


def _require_prompts(plan: "Plan", request: Request) -> None:
    """Refuse a command line without a usable prompt; a bad row of a file only costs itself."""
    from diffaccel.batch.readers import COMMAND_LINE, InputError

    for bad in plan.bad:
        if bad.where == COMMAND_LINE or not plan.jobs:
            raise InputError(f"{bad.where}: {bad.error}")
    if not plan.jobs:
        asked = ", ".join(request.prompts)
        raise InputError(f"no prompts in {asked}" if asked else "no prompts; try: diffaccel generate 'a red heart'")


def _render(request: Request, work: Work) -> "tuple[Summary, Calls]":
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


def _run(request: Request, work: Work, folder: "OutputFolder") -> "tuple[Summary, Calls]":
    from diffaccel.batch.distribute import Part, Processes, render_part
    from diffaccel.batch.energy import EnergyMeter
    from diffaccel.batch.pipeline import Placement, devices
    from diffaccel.batch.summary import Calls, Summary

    if not work.todo:
        return Summary(), Calls()
    part = Part(
        work.todo,
        work.source,
        Placement(request.device, request.device_map, request.compiled),
        batch_size=request.batch_size,
        suffix=request.suffix,
        compare=request.compare,
        fail_fast=request.fail_fast,
    )
    with _progress(request, work) as bar:
        show = partial(_show, bar)
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


def _record_bad_rows(folder: "OutputFolder", plan: "Plan") -> "list[Record]":
    """Record the rows that cannot be used, and tell of the first ones."""
    from diffaccel.batch.store import Record

    records = [Record(bad.where, "failed", error=bad.error) for bad in plan.bad]
    folder.append(records)
    for record in records[:SHOWN_BAD_ROWS]:
        click.echo(one_line(f"{record.id}: {record.error}"), err=True)
    if len(records) > SHOWN_BAD_ROWS:
        click.echo(f"... and {len(records) - SHOWN_BAD_ROWS} more rows that cannot be used", err=True)
    return records


def _write_sheet(request: Request, work: Work, bad: "list[Record]", most: int | None = None) -> None:
    """The contact sheet of all that is in the folder; failures are shown where this command asked for them."""
    from diffaccel.batch.sheet import MAX_PICTURES, write_sheet
    from diffaccel.batch.store import read_manifest

    asked = {job.id for job in work.plan.jobs} | {record.id for record in bad}
    records = read_manifest(request.output).values()
    shown = [record for record in records if record.status == "done" or record.id in asked]
    write_sheet(request.output, shown, most or MAX_PICTURES)


def _export(request: Request, work: Work) -> None:
    """Pack the pictures, once all of the input has ended; of several shards, the last one to end does it for all."""
    from diffaccel.batch.export import finished, write_parquet, write_tars
    from diffaccel.batch.store import read_manifest

    if not (request.tar_size or request.parquet):
        return
    asked = work.plan.jobs if request.shard else work.jobs
    records = finished(asked, read_manifest(request.output), request.output, request.suffix)
    if records is None:
        return
    if request.tar_size:
        write_tars(request.output, records, request.tar_size)
    if request.parquet:
        write_parquet(request.output, records)


def _progress(request: Request, work: Work) -> Any:
    """A bar with rate, ETA and failures."""
    from tqdm import tqdm

    return tqdm(total=len(work.todo), unit="img", disable=True if request.quiet else None, smoothing=0.1)


def _show(bar: Any, record: "Record") -> None:
    if record.error:
        bar.write(one_line(f"{record.id}: {record.error}"), file=sys.stderr)
        bar.failed = getattr(bar, "failed", 0) + 1
        bar.set_postfix(failed=bar.failed, refresh=False)
    bar.update()
