"""The options that say which model runs, what goes with it, and where: one group for all commands that load one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import of_option

if TYPE_CHECKING:
    from diffaccel.models import ModelSource

DEFAULT_MODEL = "emoji-sd"
NONE = "none"
"""Of autoencoders and LoRAs: those that the model has by itself."""
MODEL_NAMES = (
    *("--model", "--config", "--vae", "--lora", "--lora-partial", "--embedding"),
    *("--dtype", "--device"),
)
"""The options as they are typed, for the help's groups."""
ENGINE_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="Where they run: on this machine, or on a Ray cluster.",
    ),
    click.option("--address", help="Address of the Ray cluster.  [default: one on this machine]"),
)
READING_NAMES = ("--long-prompts", "--prompt-weights")
"""Those of them that say how prompts are read."""


def _joined(_context: click.Context, option: click.Parameter, parts: tuple[str, ...]) -> str | None:
    """What was given, as the one text that the library reads."""
    from diffaccel.models import ModelError, parse_embeddings, parse_loras

    text, parse = " + ".join(parts) or None, parse_loras if option.name == "lora" else parse_embeddings
    try:
        parse(text)
    except ModelError:
        raise
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return text


def model_options(default: str = DEFAULT_MODEL) -> tuple[Callable[..., Any], ...]:
    """The options, for a command whose model is ``default`` where none is named.

    The command receives ``lora`` as `diffaccel.models.parse_loras` reads it, ``embeddings`` as `parse_embeddings` does.
    """
    return (
        click.option(
            "--model", help=f"Model: bundled name, folder, .safetensors file or Hub id.  [default: {default}]"
        ),
        click.option(
            "--config", metavar="FOLDER", help="How the networks in a .safetensors file are built; also sd-2.1, ..."
        ),
        click.option("--vae", help="Another autoencoder: bundled name, folder or file; none for the model's own."),
        click.option(
            "--lora",
            multiple=True,
            callback=_joined,
            metavar="NAME[=WEIGHT]",
            help="LoRA: bundled name, .safetensors file or folder; repeat for several; or none.  [weight: 1]",
        ),
        click.option("--lora-partial", is_flag=True, help="Use a LoRA of which only some parts fit the model."),
        click.option(
            "--embedding",
            "embeddings",
            multiple=True,
            callback=_joined,
            metavar="FILE[=TOKEN]",
            help="Textual inversion: a word for prompts.  [token: the file's name]",
        ),
        click.option(
            "--long-prompts", is_flag=True, default=None, help="Read prompts beyond the encoder's limit in parts."
        ),
        click.option(
            "--prompt-weights", is_flag=True, default=None, help="Read (word:1.3), [word] and BREAK as weights."
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "float16", "bfloat16"]),
            help="Kind of numbers to compute with.  [default: by device]",
        ),
        click.option(
            "--device", help="Where to run: cpu, cuda, cuda:1, mps, ...  [default: the accelerator, if there is one]"
        ),
    )


@dataclass(frozen=True)
class ModelChoice:
    """The model that the command line names, with all that goes with it, as the options say it."""

    model: str | None
    config: str | None
    vae: str | None
    lora: str | None
    lora_partial: bool
    embeddings: str | None
    dtype: str | None
    device: str | None
    long_prompts: bool | None = None
    prompt_weights: bool | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "ModelChoice":
        """The choice among all that a command was given."""
        return cls(**{each.name: given[each.name] for each in fields(cls)})

    def find(self, default: str = DEFAULT_MODEL, *, video: bool = False) -> "ModelSource":
        """The model, once all that goes with it is found, and checked by the headers of its files.

        Args:
            default: the model where none is named.
            video: bundled models of videos count, too.

        Raises:
            ModelError: something is not there, or must not be loaded.
        """
        from diffaccel import models

        if self.model == "":
            raise models.ModelError(f"--model is empty: name one, or leave it out for {default}")
        name = self.model or default
        made = models.video_source if video and name in models.names("video") else None
        source = made(name) if made else models.resolve(name, self.config)
        for lora in models.parse_loras(self.lora):
            models.find_lora(lora.name)
        if self.vae not in (None, NONE):
            models.find_vae(str(self.vae))
        models.check_embeddings(self.embeddings, source)
        self.check_reading(source.index["_class_name"])
        return source

    @property
    def reading(self) -> dict[str, bool]:
        """How prompts are read, as `diffaccel.models.text_parts.read_in_parts` takes it."""
        return {"long": bool(self.long_prompts), "weights": bool(self.prompt_weights)}

    def check_reading(self, pipeline: str, texts: Iterable[str] = ()) -> None:
        """Raise `click.UsageError` where pipelines of a class cannot read texts as asked."""
        from diffaccel.models.weighted_text import reading_problem

        if problem := reading_problem(pipeline, texts, **self.reading):
            raise of_option(problem)

    def open(self, source: "ModelSource", texts: Sequence[str] = (), nets: Sequence[str] = ()) -> Any:
        """The pipeline of a model that was found, its LoRAs merged into its weights. Raises `ModelError`.

        Args:
            source: the model.
            texts: all prompts that it will read.
            nets: names of ControlNets to put before its UNet.
        """
        from diffaccel.models.placement import Placement, open_pipeline
        from diffaccel.models.text_parts import read_in_parts

        pipe = open_pipeline(
            source,
            self.dtype,
            self.vae,
            Placement(device=self.device),
            embeddings=self.embeddings,
            lora=self.lora,
            lora_partial=self.lora_partial,
            nets=nets,
        )
        read_in_parts(pipe, **self.reading, texts=texts)
        pipe.set_progress_bar_config(disable=True)
        return pipe
