"""Settings of pictures on the command line, checked as those of a row are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from diffaccel.batch.settings import Settings


def checked_settings(given: Mapping[str, Any]) -> "Settings":
    """The settings that options give, those of None aside. Raises `click.UsageError` that names the option."""
    from pydantic import ValidationError

    from diffaccel.batch.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0]) if problem["loc"] else "size"
        name = "--size" if field in ("width", "height") else "--" + field.replace("_", "-")
        message = str(problem["msg"]).removeprefix("Value error, ")
        got = f" (got {problem['input']!r})" if problem["loc"] else ""
        raise click.UsageError(f"{name}: {message}{got}") from error
