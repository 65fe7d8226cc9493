"""What `diffaccel generate` is asked to do, read and checked before the model is loaded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm
from typing import TYPE_CHECKING, Any, TextIO

import click

from diffaccel.cli.help import of_option
from diffaccel.cli.model_options import NONE, ModelChoice
from diffaccel.cli.options import Request
from diffaccel.cli.row_input import rows_of
from diffaccel.cli.said import told_once
from diffaccel.config.words import what_is_wrong

if TYPE_CHECKING:
    from diffaccel.batch.fit import Finder
    from diffaccel.batch.jobs import Job, JobPlan, Planner
    from diffaccel.batch.notes import Notes
    from diffaccel.batch.picture_sets import PictureSets
    from diffaccel.batch.readers import BadRow, PlacedRow
    from diffaccel.batch.settings import PictureSettings
    from diffaccel.batch.store import Record
    from diffaccel.models import ModelSource

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


@dataclass(frozen=True)
class Preparation:
    """The command line, checked, with all that turns rows into jobs; nothing is read yet.

    Attributes:
        request: with `--from`, as the picture has it.
        source: the model; `cache`, caching of pictures for which nobody names another.
    """

    request: Request
    options: "PictureSettings"
    rows: "Iterable[PlacedRow | BadRow]"
    planner: "Planner"
    notes: "Notes"
    source: "ModelSource"
    cache: str

    def todo(self, jobs: "Sequence[Job]") -> "tuple[Job, ...]":
        """Those of the jobs that are not done yet, with their notes."""
        from diffaccel.batch.guests import require_own
        from diffaccel.batch.notes import noted
        from diffaccel.batch.store import to_render

        request = self.request
        left = to_render(
            jobs,
            request.output,
            suffix=request.suffix,
            overwrite=request.overwrite or request.compare,
            retry_failed=request.retry_failed,
            records=self._records,
            allow_flagged=request.allow_flagged,
        )
        require_own(left, request.output, request.suffix, self._records)
        return tuple(noted(left, self.notes))

    @cached_property
    def _records(self) -> "Mapping[str, Record]":
        """The manifest as it was before the run."""
        from diffaccel.batch.store import read_manifest

        return read_manifest(self.request.output)


def prepare(request: Request, stdin: TextIO) -> Preparation:
    """Check all that the command line asks for, without reading the input or loading the model."""
    from diffaccel import models
    from diffaccel.batch.check import pixel_multiple
    from diffaccel.batch.drawn_seeds import DrawnSeeds
    from diffaccel.batch.jobs import Ingredients, Planner
    from diffaccel.batch.notes import Notes
    from diffaccel.batch.picture_sets import PictureSets
    from diffaccel.batch.templates import Templates

    options = _without_files(checked_settings(request.settings | _profile(request)))
    sets = PictureSets(options, request.output)
    rows, request = rows_of(request, options, stdin)
    by_row = {"lora": options.lora, "long_prompts": None, "prompt_weights": None}
    source = ModelChoice.of({**vars(request), **by_row}).find()
    common = Ingredients(
        models.located(source.name),
        _check(request, sets, source),
        models.located(request.vae) if request.vae not in (None, NONE) else None,
        request.config and models.located(request.config),
        _embeddings(request),
        request.controlnet and models.located(request.controlnet),
    )
    cache = DEFAULT_CACHE if source.denoiser == "unet" else "none"
    planner = Planner(
        options,
        common,
        cache=cache,
        num_images=request.num_images,
        multiple=lcm(8, pixel_multiple(source)),
        draw_text=Templates(request.wildcards) if request.dynamic_prompts else None,
        draw_seed=DrawnSeeds(request.output, anew=request.overwrite, part=None if request.dry_run else request.shard),
        sets=sets,
    )
    notes = Notes(
        source,
        templates=request.dynamic_prompts,
        controlnet=request.controlnet is not None,
        embeddings=common.embeddings,
    )
    return Preparation(request, options, rows, planner, notes, source, cache)


def plan_work(prepared: Preparation) -> GenerateWork:
    """Read the input, and decide what is to be done."""
    from diffaccel.batch.jobs import plan_jobs

    request = prepared.request
    whole = plan_jobs(prepared.rows, prepared.planner, request.limit)
    require_prompts(whole.bad, len(whole.jobs), request)
    plan = whole.shard(*request.shard, request.batch_size) if request.shard else whole
    todo = prepared.todo(plan.jobs)
    require_fit(request, prepared.options, todo, prepared.source)
    return GenerateWork(plan, whole.jobs, todo, prepared.source, prepared.cache, request.lora_partial)


def _embeddings(request: Request) -> str | None:
    """The learned words, by names that lead to them from any folder."""
    from diffaccel import models

    files = models.parse_embeddings(request.embeddings)
    return models.write_embeddings({token: models.located(file) for token, file in files.items()})


def misfits(jobs: "Sequence[Job]", source: "ModelSource", find: "Finder | None" = None) -> dict[str, str]:
    """As `diffaccel.batch.fit.misfits`; for no jobs without waiting for diffusers."""
    if not jobs:
        return {}
    from diffaccel.models.quiet import quiet_loading

    with quiet_loading():
        from diffaccel.batch import fit

        return fit.misfits(jobs, source, find)


def misfit_finder(source: "ModelSource") -> "Finder":
    """As `diffaccel.batch.fit.misfit_finder`."""
    from diffaccel.models.quiet import quiet_loading

    with quiet_loading():
        from diffaccel.batch import fit

        return fit.misfit_finder(source)


def require_fit(request: Request, options: "PictureSettings", todo: "Sequence[Job]", source: "ModelSource") -> None:
    """Refuse what the command line asks for and fits none of its pictures; rows answer for their own settings."""
    from diffaccel.batch.check import lora_problem, scheduler_problem
    from diffaccel.models import ModelError

    sampled = {(job.scheduler, job.init_image is not None) for job in todo if job.scheduler == options.scheduler}
    problems = {problem for name, started in sampled if (problem := scheduler_problem(name, source, started))}
    if problems and len(problems) == len(sampled):
        raise of_option(problems.pop())
    adapted = any(job.lora == options.lora is not None for job in todo)
    if adapted and (problem := lora_problem(options.lora, source, request.lora_partial)):
        raise ModelError(f"--{problem}")
    _require_task(options, todo, source)
    _require_common(options, todo, source)
    asked = [job for job in todo if job.cache == options.cache != "none"]
    unfit = misfits(asked, source)
    if asked and len(unfit) == len(asked):
        name = f"--profile {request.profile}" if request.profile else f"--cache {request.settings['cache']}"
        raise click.UsageError(f"{name}: {unfit[asked[0].id]}")


def _require_common(options: "PictureSettings", todo: "Sequence[Job]", source: "ModelSource") -> None:
    """Refuse a strength, size or guidance of the command line with which no picture can be painted."""
    from diffaccel.batch.check import find_problems

    given = {"strength": options.strength, "size": options.width or options.height, "guidance": options.guidance}
    kinds = {job.group: job for job in todo} if any(given.values()) else {}
    problems = find_problems(kinds.values(), source)
    first = next(iter(problems.values()), "")
    if problems and len(problems) == len(kinds) and given.get(first.partition(": ")[0]):
        raise of_option(first)


def _require_task(options: "PictureSettings", todo: "Sequence[Job]", source: "ModelSource") -> None:
    """Refuse pictures and ways of reading prompts that the model cannot take."""
    from diffaccel.batch.settings import PICTURES
    from diffaccel.batch.tasks import pictures_problem, task_problem
    from diffaccel.batch.text_rules import text_problem

    pipeline = source.index["_class_name"]
    asked = [job for job in todo if any(getattr(options, name) and getattr(job, name) for name in PICTURES)]
    problems = [pictures_problem(job) or task_problem(pipeline, job) for job in asked]
    if options.long_prompts or options.prompt_weights:
        problems += [text_problem(pipeline, job) for job in todo]
    if problems and all(problems):
        raise of_option(str(problems[0]))


def _check(request: Request, sets: "PictureSets", source: "ModelSource") -> str:
    """Check that everything is there that the command line names; the dtype of the weights."""
    from diffaccel import models
    from diffaccel.batch.export import require_pyarrow

    if request.address and request.engine != "ray":
        raise click.UsageError("--address is that of a Ray cluster: add --engine ray")
    if request.wildcards and not request.dynamic_prompts:
        raise click.UsageError("--wildcards needs --dynamic-prompts")
    sets.check()
    if request.controlnet:
        models.check_controlnet(request.controlnet, source)
    if request.parquet:
        require_pyarrow()
    device = models.choose_device(request.device)
    models.check_device_map(request.device_map, device)
    return str(models.choose_dtype(request.dtype, device)).removeprefix("torch.")


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
    except OSError as error:
        raise click.UsageError(f"--profile: cannot read {request.profile}: {error.strerror}") from error
    except ValueError as error:
        raise click.UsageError(f"--profile: {error}") from error


def _without_files(options: "PictureSettings") -> "PictureSettings":
    """The settings with the files that `--cache` names written out, as those of `--profile` are."""
    from diffaccel.batch.settings import without_files

    if options.cache is None:
        return options
    try:
        return options.model_copy(update={"cache": without_files(options.cache)})
    except ValueError as error:
        raise of_option(str(error)) from error


def require_prompts(bad: "Sequence[BadRow]", jobs: int, request: Request) -> None:
    """Refuse a command line without a usable prompt; a bad row of a file only costs itself.

    Args:
        jobs: how many pictures were asked for.
    """
    from diffaccel.batch.readers import COMMAND_LINE, InputError

    fatal = [(row.where, row.error) for row in bad if row.where == COMMAND_LINE or not jobs]
    if fatal:
        raise InputError("\n".join(told_once(fatal)))
    if not jobs:
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
        name = "size" if field in ("width", "height") else field
        got = f" (got {problem['input']!r})" if problem["loc"] else ""
        raise of_option(f"{name}: {what_is_wrong(problem)}{got}") from error
