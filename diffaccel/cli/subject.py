"""The options that `diffaccel bench` and `diffaccel tune` share: which pipeline, which prompts, which settings."""

import random
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import click

from diffaccel.cli.planning import checked_settings

DEFAULT_MODEL = "emoji-sd"
DEFAULT_PROMPTS = 12
RUN_OPTIONS = (
    *("--model", "--prompts", "--steps", "--guidance-scale", "--scheduler", "--size", "--seed", "--dtype"),
    "--device",
)
"""The shared options that say what runs, for the help's groups."""
_CALL_NAMES = {
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "width": "width",
    "height": "height",
}

_OPTIONS = (
    click.option("--model", help="Bundled name, local folder or Hub id.  [default: emoji-sd]"),
    click.option(
        "--prompts", multiple=True, metavar="PROMPT", help="Texts, or files of them.  [bundled models: some captions]"
    ),
    click.option("--steps", type=click.IntRange(2), help="Sampling steps.  [bundled models: 20; else 50]"),
    click.option("--guidance-scale", type=float, help="Classifier-free guidance.  [default: the model's]"),
    click.option("--scheduler", help="ddim, dpm++, euler, ... or default, the model's."),
    click.option("--size", help="Pixels, as in 128 or 128x96.  [default: the model's]"),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise."),
    click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="[default: by device]"),
    click.option("--device", help="cpu, cuda, cuda:1, mps, ...  [default: the accelerator, if there is one]"),
    click.option("-q", "--quiet", is_flag=True, help="Do not say what is being done."),
)


@dataclass(frozen=True)
class Subject:
    """What is to be measured, as the command line says it."""

    model: str | None
    prompts: tuple[str, ...]
    steps: int | None
    guidance_scale: float | None
    scheduler: str | None
    size: str | None
    seed: int
    dtype: str | None
    device: str | None
    quiet: bool

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model or DEFAULT_MODEL

    def say(self, text: str) -> None:
        """Tell what is being done."""
        if not self.quiet:
            click.echo(text, err=True)

    def texts(self, default: int = DEFAULT_PROMPTS) -> tuple[str, ...]:
        """The prompts; a bundled model has some of its own, of which `default` are taken."""
        from diffaccel import models
        from diffaccel.batch.readers import BadRow, InputError, read_rows
        from diffaccel.measure import captions

        rows = list(read_rows(self.prompts, sys.stdin))
        bad = next((row for row in rows if isinstance(row, BadRow)), None)
        if bad is not None:
            raise InputError(f"{bad.where}: {bad.error}")
        texts = [placed.row.prompt for placed in rows if not isinstance(placed, BadRow)]
        if not texts and self.name in models.names("pipeline"):
            texts = random.Random(0).sample(captions(), default)
        if not texts:
            raise InputError("no prompts; try: --prompts 'a red heart' --prompts prompts.txt")
        return tuple(texts)

    def settings(self) -> dict[str, Any]:
        """The pipeline call's settings. Raises `click.UsageError` for an option that is out of range."""
        from diffaccel import models

        options = {name: getattr(self, name) for name in ("steps", "guidance_scale", "size", "seed", "scheduler")}
        values = {"steps": 50, **models.defaults(self.name), **checked_settings(options).given()}
        return {call: values[name] for name, call in _CALL_NAMES.items() if name in values}

    def load(self) -> Any:
        """The pipeline, with its scheduler."""
        from diffaccel import models
        from diffaccel.sampling.schedulers import sampler_named

        name = self.scheduler or models.defaults(self.name).get("scheduler", "default")
        pipe = models.load(self.name, dtype=self.dtype, device=self.device)
        pipe.set_progress_bar_config(disable=True)
        if name != "default":
            pipe.scheduler = sampler_named(name, pipe.scheduler)
        return pipe


def with_subject(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it receives them as one `Subject` before its own."""
    names = [field.name for field in fields(Subject)]

    @wraps(function)  # brings the options that the command has of its own
    def command(**values: Any) -> None:
        subject = Subject(**{name: values.pop(name) for name in names})
        try:
            function(subject, **values)
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    result: Callable[..., None] = command
    for option in reversed(_OPTIONS):
        result = option(result)
    return result


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["diffaccel", *sys.argv[1:]])
