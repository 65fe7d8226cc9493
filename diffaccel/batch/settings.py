"""What can be asked of a picture: the settings that a row or the command line may give, checked once."""

import math
from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from diffaccel.batch.names import check_id
from diffaccel.config.words import did_you_mean
from diffaccel.models.lora import parse_loras, write_loras
from diffaccel.sampling.schedulers import canonical

MAX_PROMPT_CHARACTERS = 10_000
SEEDS = 2**64  # as many as there are
EXACT = 2**53  # below which floating point holds every whole number
DRAWN_SEED = -1  # asks for a seed that is drawn, and recorded
PICTURES = ("init_image", "mask_image", "control_image")

Pixels = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]
PromptText = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_PROMPT_CHARACTERS)]
Identifier = Annotated[str, AfterValidator(check_id)]


class PictureSettings(BaseModel):
    """Settings of one picture; `None` leaves a setting to the next in line.

    A row's settings come first, then the command line's, the LoRA's, the bundled model's, and the pipeline's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    negative_prompt: PromptText | None = None
    seed: int | None = Field(None, ge=DRAWN_SEED, lt=SEEDS)
    steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    width: Pixels | None = None
    height: Pixels | None = None
    scheduler: str | None = None
    cache: str | None = None
    guidance: str | None = None
    lora: str | None = None
    init_image: str | None = None
    strength: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    mask_image: str | None = None
    control_image: str | None = None
    control_scale: float | None = Field(None, ge=0, le=10, allow_inf_nan=False)
    resize: Literal["crop", "pad", "stretch"] | None = None
    background: str | None = None
    long_prompts: bool | None = None
    prompt_weights: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _split_size(cls, values: Any) -> Any:
        """Accept `size` ("128", "128x96" or 128) in place of width and height."""
        if isinstance(values, dict) and values.get("size") is not None:
            values = dict(values)
            width, height = parse_size(str(values.pop("size")))
            if values.get("width") is not None or values.get("height") is not None:
                raise ValueError("width or height is given, too: leave one of them out")
            values.update(width=width, height=height)
        return values

    @field_validator("seed", "steps", "guidance_scale", "width", "height", "strength", "control_scale", mode="before")
    @classmethod
    def _exact(cls, value: Any) -> Any:
        """Refuse `true`, which is 1 to Python, and a fraction's number too large to hold each whole one."""
        if isinstance(value, bool):
            raise ValueError("must be a number, not true or false")
        if isinstance(value, float) and EXACT <= abs(value) < math.inf:
            raise ValueError("has lost its last digits, as large numbers with a point do: write it without, or as text")
        return value

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, name: str | None) -> str | None:
        return None if name is None else canonical(name)

    @field_validator("lora", mode="before")
    @classmethod
    def _readable_lora(cls, value: Any) -> Any:
        """Accept a list of LoRAs, too, and write what is given in one way."""
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = " + ".join(value)
        return write_loras(parse_loras(value)) if isinstance(value, str) else value

    @field_validator("cache", "guidance", "background")
    @classmethod
    def _parsable(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None:
            _PARSERS[str(info.field_name)](text)
        return text

    @field_validator("negative_prompt", "prompt", check_fields=False)
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        if text is not None and "\0" in text:
            raise ValueError("holds a NUL character")
        return text

    @property
    def names_pictures(self) -> bool:
        """Whether it names a picture."""
        return not self.model_fields_set.isdisjoint(PICTURES) and any(getattr(self, name) for name in PICTURES)

    def given(self) -> dict[str, Any]:
        """The settings that were given, without those left open."""
        values = vars(self)
        return {name: value for name in self.model_fields_set if (value := values[name]) is not None}


class PromptRow(PictureSettings):
    """One row of a prompt file."""

    prompt: Annotated[PromptText, Field(min_length=1)]
    custom_id: Identifier | None = None

    @field_validator("custom_id", mode="before")
    @classmethod
    def _numbers_are_names(cls, value: Any) -> Any:
        """Accept 7, and the 7.0 that a table with gaps or a database makes of it, as the name "7"."""
        if isinstance(value, float | Decimal) and value % 1 == 0:
            value = int(value)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


@lru_cache
def parse_cache(spec: str) -> tuple[Any, ...]:
    """What `diffaccel.methods.parse_all` reads, which takes torch to import unless it is `"none"`."""
    if spec == "none":
        return ()
    from diffaccel.methods import parse_all

    return parse_all(spec)


def write_cache(methods: Iterable[Any]) -> str:
    """The text that `parse_cache` reads as `methods`; the files that they name are written out."""
    return " + ".join(method.written_out().to_text() for method in methods) or "none"


def without_files(spec: str) -> str:
    """The same caching with no need of the files that it names, or of the folder that they are named from.

    Raises `ValueError` where one cannot be read.
    """
    methods = parse_cache(spec)
    try:
        written = tuple(method.written_out() for method in methods)
        return spec if methods == written else write_cache(written)
    except OSError as error:
        raise ValueError(f"cache: cannot read {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"cache: {error}") from error


@lru_cache
def parse_guidance(spec: str) -> tuple[Any, ...]:
    """The method behind `"one-time"` or `"self"`, also as `"one-time:delta=0.8"`; none for `"full"`.

    Raises `ValueError` that names the valid ones.
    """
    from diffaccel.methods import Method
    from diffaccel.methods.residual_guidance import NEGATIVES

    name, _, rest = spec.partition(":")
    if spec == "full":
        return ()
    if name not in NEGATIVES:
        hint = did_you_mean(name, ("full", *NEGATIVES))
        raise ValueError(
            f"unknown guidance {spec!r}{hint}; one of full, {', '.join(NEGATIVES)} (guidance_scale sets its strength)"
        )
    return (Method.parse(f"residualguidance:negative={name!r}{',' if rest else ''}{rest}"),)


@lru_cache
def parse_colour(name: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour as CSS names it. Raises `ValueError` for what is none."""
    from PIL import ImageColor

    try:
        red, green, blue, *alpha = ImageColor.getrgb(name)
    except ValueError as error:
        raise ValueError(f"unknown colour {name!r}: write white, #ffffff or rgb(255, 255, 255)") from error
    if alpha not in ([], [255]):
        raise ValueError(
            f"{name!r} is a transparent colour, and a background hides what is behind it: write {name[:7]}"
        )
    return red, green, blue


_PARSERS = {"cache": parse_cache, "guidance": parse_guidance, "background": parse_colour}


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels from `"128"` or `"128x96"`. Raises `ValueError` for anything else."""
    parts = [part.strip().removesuffix(".0") for part in text.lower().split("x")]  # of a table with gaps, 64 is 64.0
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{text!r} is neither a number of pixels nor WIDTHxHEIGHT, as in 128x96")
    return int(parts[0]), int(parts[-1])
