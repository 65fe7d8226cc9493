"""From the command line to the settings of a live run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from diffaccel.realtime.settings import Controls, LiveSettings


def parse_size(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Width and height of ``"512"`` or ``"640x384"``, for click's ``callback``."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and (height or width).isdecimal()):
        raise click.BadParameter(f"{text!r} is not a size in pixels, as in 512 or 640x384")
    return int(width), int(height or width)


def live_settings(given: Mapping[str, Any], start: Mapping[str, Any]) -> "LiveSettings":
    """The model and the controls: what was given on the command line, else ``start``, else the library's defaults.

    Raises:
        click.UsageError: for a value out of range; the message names the option.
    """
    from diffaccel.realtime.settings import LiveSettings

    values = {name: given[name] for name in ("model", "vae", "dtype", "device") if given[name] is not None}
    width, height = given["size"] or (None, None)
    return LiveSettings(
        **values,
        lora=given["lora"] or None,
        compiled=given["compiled"],
        width=width,
        height=height,
        controls=controls(given, start),
    )


def controls(given: Mapping[str, Any], start: Mapping[str, Any]) -> "Controls":
    """The controls, checked."""
    from pydantic import ValidationError

    from diffaccel.realtime.settings import Controls

    named = {name: given[name] for name in Controls.model_fields if given.get(name) is not None}
    try:
        return Controls.model_validate({**start, **named})
    except ValidationError as error:
        problem = error.errors()[0]
        option = "--" + str(problem["loc"][0]).replace("_", "-")
        raise click.UsageError(f"{option}: {problem['msg']} (got {problem['input']!r})") from error
