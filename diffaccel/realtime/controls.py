"""The controls of a live run: what may change while frames flow; light to import, so that mistakes are told at once."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

EXAMPLES = (
    "a green apple",
    "a burger",
    "a rainbow",
    "a strawberry",
    "a ladybug",
    "a cat",
    "a doughnut",
    "a blue heart",
)
NO_CONTROLNET = "this model has no ControlNet: choose one with --controlnet, as a folder or a Hub id"
LONGEST_TEXT = 500
LONGEST_INTERVAL = 6

SIZE = re.compile(r"^([1-9]\d{1,3}x[1-9]\d{1,3})?$")

PageText = Annotated[str, StringConstraints(strip_whitespace=True, max_length=LONGEST_TEXT)]
GuidanceKind = Literal["self", "one-time", "full", "none"]
READS_NEGATIVE: tuple[GuidanceKind, ...] = ("one-time", "full")
"""Guidances for which a negative prompt changes something."""
ControlKind = Literal["edges", "canny", "identity"]
FOLLOWED_BY_CLIPS = ("prompt", "second_prompt", "blend", "steps", "seed", "picture_size")
"""Controls that count while a clip plays."""
OFFERED = frozenset({"model", "lora", "lora_scale", "dream"})
"""Controls of what a server offers beside the model that it begins with."""
DreamStart = Literal["off", "words", "input"]


def _draw(**hints: Any) -> Any:
    """What the page needs to know beyond JSON schema: ``group``, ``step``, ``labels``, ``placeholder``, ``needs``,
    ``hidden`` where the page has another way to it, ``choices``, the name under which the server's account of itself
    lists values, and ``beside``, the name of such a list without which it is not shown."""
    return hints


class Controls(BaseModel):
    """What can change while frames flow.

    Its JSON schema is the only list of controls: the page is drawn from it, and what clients send is checked by it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` where a number belongs, which is 1 to Python."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("must be a number, not true or false")
        return value

    @field_validator("picture_size", check_fields=False)
    @classmethod
    def _width_and_height(cls, size: str) -> str:
        if not SIZE.fullmatch(size):
            raise ValueError("must be a width and a height in pixels, as in 640x384")
        return size

    prompt: Annotated[PageText, Field(min_length=1)] = Field(
        default="a purple heart",
        title="Prompt",
        description="What the picture should become.",
        examples=list(EXAMPLES),
        json_schema_extra=_draw(group="prompt", main=True, placeholder="What should it become?"),
    )
    blend: float = Field(
        default=0.0,
        ge=0,
        le=1,
        title="Blend",
        description="From the first prompt (0) to the second (1).",
        json_schema_extra=_draw(group="prompt", step=0.01, needs={"second_prompt": True}),
    )
    second_prompt: PageText = Field(
        default="",
        title="Second prompt",
        description="Something to turn it into, bit by bit.",
        json_schema_extra=_draw(group="prompt", placeholder="… and what else?"),
    )
    strength: float = Field(
        default=0.5,
        ge=0.05,
        le=1,
        title="Strength",
        description="How much of the input is painted anew.",
        json_schema_extra=_draw(step=0.01),
    )
    steps: int = Field(default=2, ge=1, le=8, title="Steps", description="More are finer, slower and later.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, title="Seed", description="Another number, another picture.")
    second_seed: int = Field(
        default=1,
        ge=0,
        le=2**32 - 1,
        title="Second seed",
        description="Another picture to move to, bit by bit.",
        json_schema_extra=_draw(needs={"seed_blend": True}),
    )
    seed_blend: float = Field(
        default=0.0,
        ge=0,
        le=1,
        title="Seed blend",
        description="From the first seed (0) to the second (1).",
        json_schema_extra=_draw(step=0.01),
    )
    feedback: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        title="Feedback",
        description="How much of the last picture goes into the next, which then grows out of it.",
        json_schema_extra=_draw(step=0.01),
    )
    smoothing: float = Field(
        default=0.0,
        ge=0,
        le=0.95,
        title="Smoothing",
        description="How much of the last picture stays, along with what moves, where nothing is new: less flicker.",
        json_schema_extra=_draw(step=0.01),
    )
    picture_size: str = Field(
        default="",
        title="Size",
        description="Width and height. Another one begins a new stream.",
        json_schema_extra=_draw(choices="sizes", pattern=SIZE.pattern, labels={"": "the model's own"}),
    )
    dream: DreamStart = Field(
        default="off",
        title="Dream",
        description="Play an endless clip instead of painting: from the words alone, or going on from the input.",
        json_schema_extra=_draw(hidden=True),
    )
    model: str = Field(
        default="",
        max_length=LONGEST_TEXT,
        title="Model",
        description="What paints. One that nobody used yet is loaded first.",
        json_schema_extra=_draw(choices="models", labels={"": "the first"}),
    )
    lora: str = Field(
        default="",
        max_length=LONGEST_TEXT,
        title="LoRA",
        description="A style or a subject that the model learns; it costs time and memory.",
        json_schema_extra=_draw(choices="loras", labels={"": "none"}),
    )
    lora_scale: float = Field(
        default=1.0,
        ge=0,
        le=2,
        title="LoRA scale",
        description="How strongly it counts; 0 is not at all.",
        json_schema_extra=_draw(step=0.05, needs={"lora": True}, beside="loras"),
    )
    guidance: GuidanceKind = Field(
        default="self",
        title="Guidance",
        description="What the picture is pushed away from.",
        json_schema_extra=_draw(
            labels={
                "self": "the input (RCFG, self-negative)",
                "one-time": "the negative prompt, once a frame (RCFG)",
                "full": "the negative prompt, every step (CFG)",
                "none": "nothing",
            }
        ),
    )
    guidance_scale: float = Field(
        default=1.2,
        ge=1,
        le=4,
        title="Guidance scale",
        description="How hard it is pushed; 1 is not at all.",
        json_schema_extra=_draw(step=0.05, needs={"guidance": ["self", "one-time", "full"]}),
    )
    negative_prompt: PageText = Field(
        default="",
        title="Negative prompt",
        description="What should not be seen. Choose the guidance “the negative prompt, once a frame” or “every step”.",
        json_schema_extra=_draw(needs={"guidance": list(READS_NEGATIVE)}),
    )
    cache: int = Field(
        default=4,
        ge=1,
        le=LONGEST_INTERVAL,
        title="Cache interval",
        description="Deep layers are computed in every n-th frame, and whenever much moves; 1 reuses nothing.",
    )
    similarity: bool = Field(
        default=True,
        title="Skip still frames",
        description="Show the last picture again while the input hardly changes.",
    )
    similarity_threshold: float = Field(
        default=0.999,
        ge=0.9,
        le=1,
        title="Similarity",
        description="Frames more alike than this may be skipped.",
        json_schema_extra=_draw(step=0.001, needs={"similarity": True}),
    )


class ControlNetControls(Controls):
    """What can change where the model has a ControlNet."""

    follow_lines: bool = Field(
        default=True,
        title="Follow my lines",
        description="Paint along the lines of the input, as the ControlNet sees them.",
    )
    control: ControlKind = Field(
        default="edges",
        title="Control image",
        description="What the ControlNet sees of the input.",
        json_schema_extra=_draw(
            labels={"edges": "soft edges", "canny": "thin edges (Canny)", "identity": "the input itself"},
            needs={"follow_lines": True},
        ),
    )
    controlnet_scale: float = Field(
        default=1.0,
        ge=0,
        le=2,
        title="ControlNet scale",
        description="How closely the picture follows it; 0 is not at all.",
        json_schema_extra=_draw(step=0.05, needs={"follow_lines": True}),
    )
