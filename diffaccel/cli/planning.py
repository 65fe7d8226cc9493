"""What `diffaccel generate` is asked to do, read and checked before the model is loaded."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.options import Request
from diffaccel.config.words import one_line

if TYPE_CHECKING:
    from diffaccel.batch.foreign import ForeignSettings
    from diffaccel.batch.jobs import Job, JobPlan
    from diffaccel.batch.readers import BadRow, PlacedRow
    from diffaccel.batch.settings import PictureSettings
    from diffaccel.models import ModelSource

DEFAULT_MODEL = "emoji-sd"
DEFAULT_CACHE = "deepcache:interval=3,branch=0,forecast=taylor(1)"


@dataclass(frozen=True)
class GenerateWork:
    """What is to be done: the plan of this shard, those of its jobs that are not done yet, and the model.

    Attributes:
        whole: the jobs of all shards.
        cache: caching of pictures for which nobody names another.
    """

    plan: "JobPlan"
    whole: "tuple[Job, ...]"
    todo: "tuple[Job, ...]"
    source: "ModelSource"
    cache: str = "none"
    lora_partial: bool = False


def ranked(request: Request) -> Request:
    """Under `accelerate launch` or torchrun, this rank's shard and device."""
    from diffaccel.batch.distribute import rank

    place = rank()
    if place is None:
        return request
    if request.shard or request.processes > 1 or "-" in request.prompts:
        raise click.UsageError("a launcher's ranks share the work already: no --shard, --processes or standard input")
    shard, device = place
    return replace(request, shard=shard, device=request.device or device)


def plan_work(request: Request) -> GenerateWork:
    """Read the input, and check all that the command line asks for, without loading the model."""
    from diffaccel import models
    from diffaccel.batch.check import pixel_multiple
    from diffaccel.batch.jobs import Ingredients, plan_jobs
    from diffaccel.batch.store import to_render

    options = checked_settings(request.settings | _profile(request))
    rows, request = _rows(request, options)
    source = models.resolve(request.model or DEFAULT_MODEL, request.config)
    common = Ingredients(
        models.located(source.name),
        _check(request, options),
        request.vae and models.located(request.vae),
        request.config and models.located(request.config),
        _embeddings(request, source),
    )
    cache = DEFAULT_CACHE if source.denoiser == "unet" else "none"
    plan = plan_jobs(
        rows, options, common, cache=cache, num_images=request.num_images, multiple=lcm(8, pixel_multiple(source))
    )
    _require_prompts(plan, request)
    whole = plan.limited(request.limit)
    plan = whole.shard(*request.shard, request.batch_size) if request.shard else whole
    todo = to_render(
        plan.jobs,
        request.output,
        suffix=request.suffix,
        overwrite=request.overwrite or request.compare,
        retry_failed=request.retry_failed,
    )
    _require_fit(request, options, todo, source)
    return GenerateWork(plan, whole.jobs, todo, source, cache, request.lora_partial)


def _embeddings(request: Request, source: "ModelSource") -> str | None:
    """The learned words, checked, by names that lead to them from any folder."""
    from diffaccel import models

    models.check_embeddings(request.embeddings, source)
    files = models.parse_embeddings(request.embeddings)
    return models.write_embeddings({token: models.located(file) for token, file in files.items()})


def unusable(work: GenerateWork) -> dict[str, str]:
    """Why pictures that are left to do cannot be rendered, by their jobs' ids, as far as that shows without a model."""
    from diffaccel.batch.check import find_problems

    problems = find_problems(work.todo, work.source, lora_partial=work.lora_partial)
    started = [job for job in work.todo if job.init_image and job.id not in problems]
    if problem := _start_problem(started, work.source):
        problems |= {job.id: f"init_image: {problem}" for job in started}
    named = [job for job in work.todo if job.cache not in ("none", work.cache) and job.id not in problems]
    return problems | {name: f"cache: {problem}" for name, problem in _misfits(named, work.source).items()}


def _misfits(jobs: "Sequence[Job]", source: "ModelSource") -> dict[str, str]:
    """As `diffaccel.batch.fit.misfits`; for no jobs without waiting for diffusers."""
    if not jobs:
        return {}
    from diffaccel.models.quiet import quiet_loading

    with quiet_loading():
        from diffaccel.batch.fit import misfits

        return misfits(jobs, source)


def _start_problem(jobs: "Sequence[Job]", source: "ModelSource") -> str | None:
    """As `diffaccel.batch.fit.start_problem`; for no jobs without waiting for diffusers."""
    if not jobs:
        return None
    from diffaccel.models.quiet import quiet_loading

    with quiet_loading():
        from diffaccel.batch.fit import start_problem

        return start_problem(source.index["_class_name"])


def _require_fit(request: Request, options: "PictureSettings", todo: "Sequence[Job]", source: "ModelSource") -> None:
    """Refuse what the command line asks for and fits none of its pictures; rows answer for their own settings."""
    from diffaccel.batch.check import lora_problem, scheduler_problem
    from diffaccel.models import ModelError

    sampled = {(job.scheduler, job.init_image is not None) for job in todo if job.scheduler == options.scheduler}
    problems = {problem for name, started in sampled if (problem := scheduler_problem(name, source, started))}
    if problems and len(problems) == len(sampled):
        raise click.UsageError(f"--{problems.pop()}")
    adapted = any(job.lora == options.lora is not None for job in todo)
    if adapted and (problem := lora_problem(options.lora, source, request.lora_partial)):
        raise ModelError(f"--{problem}")
    started = [job for job in todo if job.init_image == options.init_image is not None]
    if problem := _start_problem(started, source):
        raise click.UsageError(f"--init-image: {problem}")
    asked = [job for job in todo if job.cache == options.cache != "none"]
    misfits = _misfits(asked, source)
    if asked and len(misfits) == len(asked):
        name = f"--profile {request.profile}" if request.profile else f"--cache {options.cache}"
        raise click.UsageError(f"{name}: {misfits[asked[0].id]}")


def _check(request: Request, options: "PictureSettings") -> str:
    """Check that everything is there that the command line names; the dtype of the weights."""
    from diffaccel import models
    from diffaccel.batch.export import require_pyarrow
    from diffaccel.batch.pictures import PictureError, check_picture
    from diffaccel.batch.readers import InputError

    try:
        if options.init_image:
            check_picture(options.init_image)
    except PictureError as error:
        raise InputError(f"--init-image: {error}") from error
    for lora in models.parse_loras(options.lora):
        models.find_lora(lora.name)
    if request.vae:
        models.find_vae(request.vae)
    if request.parquet:
        require_pyarrow()
    device = models.choose_device(request.device)
    models.check_device_map(request.device_map, device)
    return str(models.choose_dtype(request.dtype, device)).removeprefix("torch.")


def _rows(request: Request, options: "PictureSettings") -> "tuple[Iterable[PlacedRow | BadRow], Request]":
    """The rows of all arguments; with `--from`, the picture's own row, and its model, dtype and autoencoder."""
    from pydantic import ValidationError

    from diffaccel.batch.foreign import ForeignSettings
    from diffaccel.batch.metadata import read_settings
    from diffaccel.batch.readers import InputError, PlacedRow, explain, read_rows
    from diffaccel.batch.settings import PromptRow

    rows = read_rows(request.prompts, sys.stdin)
    if request.source_picture is None:
        return rows, request
    if request.prompts:
        raise InputError("give either prompts or --from PICTURE, not both")
    found = read_settings(request.source_picture)
    if isinstance(found, ForeignSettings):
        return _foreign_rows(request, options, found), request
    values = {key: value for key, value in asdict(found).items() if value is not None}
    fixed = {
        name: getattr(request, name) or values.pop(name, None)
        for name in ("model", "dtype", "vae", "config", "embeddings")
    }
    own = {name: value for name, value in values.items() if name not in ("id", *fixed)}
    try:
        row = PromptRow(**{**own, "custom_id": values["id"], **options.given()})
    except ValidationError as error:
        raise InputError(f"the settings in {request.source_picture} cannot be used: {explain(error)}") from error
    return [PlacedRow(str(request.source_picture), row)], replace(request, **fixed)


def _foreign_rows(request: Request, options: "PictureSettings", found: "ForeignSettings") -> "Iterable[PlacedRow]":
    """The row of another tool's picture; what it has and a row has not is told."""
    from pydantic import ValidationError

    from diffaccel.batch.readers import InputError, PlacedRow, explain
    from diffaccel.batch.settings import PromptRow

    if request.model is None:
        raise InputError(
            f"{request.source_picture} is of {found.tool}, which calls its model {found.model}: give --model"
        )
    for name in found.without_equivalent:
        click.echo(one_line(f"{request.source_picture}: not carried over: {name}"), err=True)
    try:
        return [PlacedRow(str(request.source_picture), PromptRow(**{**found.settings, **options.given()}))]
    except ValidationError as error:
        raise InputError(f"the settings in {request.source_picture} cannot be used: {explain(error)}") from error


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


def _require_prompts(plan: "JobPlan", request: Request) -> None:
    """Refuse a command line without a usable prompt; a bad row of a file only costs itself."""
    from diffaccel.batch.readers import COMMAND_LINE, InputError

    fatal = [bad for bad in plan.bad if bad.where == COMMAND_LINE or not plan.jobs]
    if fatal:
        raise InputError("\n".join(one_line(f"{bad.where}: {bad.error}") for bad in fatal))
    if not plan.jobs:
        asked = ", ".join(request.prompts)
        raise InputError(f"no prompts in {asked}" if asked else "no prompts; try: diffaccel generate 'a red heart'")


def checked_settings(given: Mapping[str, Any]) -> "PictureSettings":
    """The settings that options give, those of None aside. Raises `click.UsageError` that names the option."""
    from pydantic import ValidationError

    from diffaccel.batch.settings import PictureSettings

    try:
        return PictureSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0]) if problem["loc"] else "size"
        name = "--size" if field in ("width", "height") else "--" + field.replace("_", "-")
        message = str(problem["msg"]).removeprefix("Value error, ")
        got = f" (got {problem['input']!r})" if problem["loc"] else ""
        raise click.UsageError(f"{name}: {message}{got}") from error
