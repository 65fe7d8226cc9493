"""The options that `diffaccel bench` and `diffaccel tune` share: which pipeline, which prompts, which settings."""

import random
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import declared, of_option
from diffaccel.cli.model_options import DEFAULT_MODEL, READING_NAMES, ModelChoice, model_options
from diffaccel.cli.planning import checked_settings
from diffaccel.cli.said import told_once

if TYPE_CHECKING:
    from diffaccel.batch.readers import PlacedRow
    from diffaccel.models import ModelSource

DEFAULT_PROMPTS = 12
REMEDIES = ("--prompt-weights", "--lora")
TWO_OR_MORE = click.IntRange(2)
RUN_OPTIONS = ("--prompts", *READING_NAMES, "--steps", "--guidance-scale", "--scheduler", "--size", "--seed")
"""The shared options that say what is drawn, for the help's groups."""
_CALL_NAMES = {
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "width": "width",
    "height": "height",
}

_OPTIONS = (
    click.option(
        "--prompts",
        multiple=True,
        metavar="PROMPT",
        help="A text, or a file of them; repeat.  [bundled models: some captions]",
    ),
    click.option("--guidance-scale", type=float, help="How closely the prompt is followed.  [default: the model's]"),
    click.option("--scheduler", help="Sampler: ddim, dpm++, euler, ...; default is the model's."),
    click.option("--size", help="Width and height in pixels, as in 128 or 128x96.  [default: the model's]"),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the noise."),
    click.option("-q", "--quiet", is_flag=True, help="Do not say what is being done."),
)


@dataclass(frozen=True)
class Subject:
    """What is to be measured, as the command line says it."""

    choice: ModelChoice
    prompts: tuple[str, ...]
    steps: int | None
    guidance_scale: float | None
    scheduler: str | None
    size: str | None
    seed: int
    quiet: bool

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.choice.model or ""

    def say(self, text: str) -> None:
        """Tell what is being done."""
        if not self.quiet:
            click.echo(text, err=True)

    @cached_property
    def source(self) -> "ModelSource":
        """The model, found with all that goes with it. Raises `ModelError`."""
        return self.choice.find()

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Settings with which the model looks best, and its LoRAs."""
        from diffaccel import models

        found = dict(models.defaults(self.name))
        for lora in models.parse_loras(self.choice.lora):
            found |= models.defaults(lora.name)
        return found

    def texts(self, default: int = DEFAULT_PROMPTS) -> tuple[str, ...]:
        """The prompts; a bundled model has some of its own, of which `default` are taken."""
        from diffaccel import models
        from diffaccel.batch.readers import BadRow, InputError, read_rows
        from diffaccel.measure import captions

        rows = list(read_rows(self.prompts, sys.stdin, keep_columns=True))
        bad = next((row for row in rows if isinstance(row, BadRow)), None)
        if bad is not None:
            raise InputError(f"{bad.where}: {bad.error}")
        placed = [row for row in rows if not isinstance(row, BadRow)]
        if not self.prompts and self.name in models.names("pipeline"):
            return tuple(random.Random(0).sample(captions(), default))
        if not placed:
            given = f" in {', '.join(self.prompts)}" if self.prompts else ""
            raise InputError(f"no prompts{given}; try: --prompts 'a red heart' --prompts prompts.txt")
        self.choice.check_reading(self.source.index["_class_name"], [each.row.prompt for each in placed])
        self._tell(placed)
        return tuple(each.row.prompt for each in placed)

    def _tell(self, rows: "Sequence[PlacedRow]") -> None:
        """Say what of the rows is not used, and what there is to say about their prompts."""
        from diffaccel.batch.jobs import Job
        from diffaccel.batch.notes import Notes

        names = {name for each in rows for name in (*each.row.given(), *dict(each.columns))}
        extra = sorted(names - {"prompt", "custom_id", ""})
        if extra:
            self.say(f"not used: {', '.join(extra)} of single rows; all prompts are drawn as the options say")
        fixed: dict[str, Any] = {"seed": self.seed, "model": self.name, "dtype": ""}
        fixed |= {name: getattr(self.choice, name) for name in ("long_prompts", "prompt_weights")}
        jobs = [Job(id=each.where, prompt=each.row.prompt, **fixed) for each in rows]
        notes = zip(jobs, Notes(self.source, remedies=REMEDIES, embeddings=self.choice.embeddings)(jobs), strict=True)
        for line in told_once([(job.id, note) for job, said in notes for note in said]):
            self.say(line)

    def settings(self) -> dict[str, Any]:
        """The pipeline call's settings. Raises `click.UsageError` for an option that is out of range."""
        options = {name: getattr(self, name) for name in ("steps", "guidance_scale", "size", "seed", "scheduler")}
        values = {"steps": 50, **self.defaults, **checked_settings(options).given()}
        return {call: values[name] for name, call in _CALL_NAMES.items() if name in values}

    def load(self, texts: Sequence[str], *nets: str) -> Any:
        """The pipeline for these prompts, with its scheduler and ControlNets.

        Raises:
            ValueError: for a scheduler that does not go with the model.
        """
        from diffaccel.batch.check import scheduler_problem
        from diffaccel.sampling.schedulers import sampler_named

        name = self.scheduler or self.defaults.get("scheduler", "default")
        if problem := scheduler_problem(name, self.source, from_picture=False):
            raise of_option(problem)
        pipe = self.choice.open(self.source, texts, nets)
        if name != "default":
            pipe.scheduler = sampler_named(name, pipe.scheduler)
        return pipe


def with_subject(
    function: Callable[..., None], default: str = DEFAULT_MODEL, steps: click.IntRange = TWO_OR_MORE
) -> Callable[..., None]:
    """Give a command the shared options; it receives them as one `Subject` before its own.

    Args:
        function: the command.
        default: the model where none is named.
        steps: how many it takes.
    """
    names = [field.name for field in fields(Subject) if field.name != "choice"]

    @wraps(function)  # brings the options that the command has of its own
    def command(**values: Any) -> None:
        choice = ModelChoice(**{each.name: values.pop(each.name) for each in fields(ModelChoice)})
        choice = choice if choice.model is not None else replace(choice, model=default)
        subject = Subject(choice=choice, **{name: values.pop(name) for name in names})
        try:
            function(subject, **values)
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    steps_option = click.option("--steps", type=steps, help="Sampling steps.  [bundled models: 20; else 50]")
    return declared((*model_options(default), steps_option, *_OPTIONS))(command)


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["diffaccel", *sys.argv[1:]])
