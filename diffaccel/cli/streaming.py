"""From the command line to the settings of a live run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from diffaccel.cli.help import of_option
from diffaccel.cli.model_options import ModelChoice
from diffaccel.config.words import what_is_wrong

if TYPE_CHECKING:
    from diffaccel.realtime.controls import Controls
    from diffaccel.realtime.settings import LiveSettings


LEAST_SIDE, MOST_SIDE = 8, 8192
CONTROLNET_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option(
        "--controlnet",
        multiple=True,
        help="A ControlNet: bundled name, folder, .safetensors file or Hub id; repeat.",
    ),
    click.option(
        "--control",
        type=click.Choice(["edges", "canny", "identity"]),
        help="What the ControlNet sees of a frame: soft edges, sharp ones, or all of it.  [default: edges]",
    ),
    click.option("--controlnet-scale", type=float, help="How closely the ControlNet is followed, to 2.  [default: 1]"),
)


CONTROLNET_NAMES = ("--controlnet", "--control", "--controlnet-scale")
FIT = "fit"
"""The size that asks for the input's shape."""
FIT_OPTION = click.option(
    "--fit",
    type=click.Choice(["crop", "pad", "stretch"]),
    help="How an input of another shape gets in: cut off, with black bars, or distorted.  [default: crop]",
)

GUIDANCE_OPTION = click.option(
    "--guidance",
    type=click.Choice(["self", "one-time", "full", "none"]),
    help="What pictures are pushed away from: the input (self), or the negative prompt, once a frame (one-time) or in "
    "every step (full).  [default: self]",
)
SMOOTHING_OPTION = click.option(
    "--smoothing",
    type=float,
    help="How much of the picture before stays, along with what moves, to 0.95: less flicker.  [default: 0.0]",
)
COMPILE_OPTION = click.option(
    "--compile", "compiled", is_flag=True, help="Compile the network first: slow start, faster frames."
)


@contextmanager
def memory_explained(message: str) -> Iterator[None]:
    """Turn an error of memory into a `MediaError` with this message, which names the remedy."""
    from diffaccel.media.errors import MediaError
    from diffaccel.models.placement import is_out_of_memory

    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MediaError(message) from error


def parse_size(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | str | None:
    """Width and height of ``"512"`` or ``"640x384"``, or `FIT`, for click's ``callback``."""
    if text is None or text == FIT:
        return text
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and (height or width).isdecimal()):
        raise click.BadParameter(f"{text!r} is not a size in pixels, as in 512 or 640x384")
    sides = int(width), int(height or width)
    if not all(LEAST_SIDE <= side <= MOST_SIDE for side in sides):
        raise click.BadParameter(f"{text!r}: a side has {LEAST_SIDE} to {MOST_SIDE} pixels")
    return sides


def require_extras(given: Mapping[str, Any]) -> None:
    """Import what options need that is not always installed, before a model loads.

    Raises:
        MediaError: it is not there; the message names the extra that brings it.
    """
    from diffaccel.media.errors import need

    source = (given.get("source") or "").partition(":")[0]
    for asked, purpose, module, extra in (
        (given.get("webrtc"), "--webrtc", "aiortc", "webrtc"),
        (given.get("osc") is not None, "--osc", "pythonosc", "osc"),
        (source == "screen", "--source screen", "mss", "screen"),
        (source == "camera", "--source camera", "cv2", "camera"),
        (given.get("control") == "canny", "--control canny", "cv2", "camera"),
        (given.get("smoothing"), "--smoothing", "cv2", "camera"),
    ):
        if asked:
            need(module, extra=extra, purpose=purpose)


def live_settings(given: Mapping[str, Any], start: Mapping[str, Any]) -> "LiveSettings":
    """The model and the controls: what was given on the command line, else ``start``, else the library's defaults.

    Raises:
        click.UsageError: for a value out of range; the message names the option.
    """
    checked = controls(given, start)  # before torch is imported, which takes seconds
    from diffaccel.realtime.settings import LiveSettings

    values = {each.name: given[each.name] for each in fields(ModelChoice) if given[each.name] is not None}
    width, height = given["size"] if given["size"] not in (None, FIT) else (None, None)
    return LiveSettings(
        **values,
        controlnet=given["controlnet"],
        compiled=given["compiled"],
        width=width,
        height=height,
        fit=given["fit"] or "crop",
        fps=given.get("fps"),
        controls=checked,
    )


def controls(given: Mapping[str, Any], start: Mapping[str, Any]) -> "Controls":
    """The controls, checked; with those of a ControlNet where one is asked for."""
    from pydantic import ValidationError

    from diffaccel.realtime.controls import OFFERED, ControlNetControls, Controls

    names = ControlNetControls.model_fields.keys() - OFFERED
    named = {name: given[name] for name in names if given.get(name) is not None}
    kind = Controls if named.keys() <= Controls.model_fields.keys() and not given["controlnet"] else ControlNetControls
    try:
        return kind.model_validate({**start, **named})
    except ValidationError as error:
        problem = error.errors()[0]
        raise of_option(f"{problem['loc'][0]}: {what_is_wrong(problem)} (got {problem['input']!r})") from error


def fitted(pipe: Any, settings: "LiveSettings", shape: tuple[int, int], *, quiet: bool = False) -> "LiveSettings":
    """The settings in the size next to an input's shape, with the area that the model was made for; says it."""
    from dataclasses import replace

    from diffaccel.media.repaint import size_like
    from diffaccel.realtime.settings import picture_size

    width, height = size_like(*shape, max(picture_size(pipe, settings)))
    if not quiet:
        click.echo(f"Pictures have {width} x {height} pixels, next to the shape of the input, {shape[0]} x {shape[1]}")
    return replace(settings, width=width, height=height)


def tell_unread(pipe: Any, checked: "Controls") -> None:
    """Say what of the prompts is not read: by the model, or under the guidance at hand."""
    from diffaccel.realtime.remarks import unread_negative

    tell_remark(pipe, {"--prompt": checked.prompt, "--negative-prompt": checked.negative_prompt})
    if words := unread_negative(checked):
        tell(words)


def tell_remark(pipe: Any, prompts: Mapping[str, str]) -> None:
    """Say what of prompts the model does not read, by their titles."""
    from diffaccel.realtime.remarks import remark

    if words := remark(pipe, prompts, remedies=("--prompt-weights", "--lora")):
        tell(words)


def tell(words: str) -> None:
    """Say what a person should know, on standard error."""
    click.echo(f"Note: {words}", err=True)
