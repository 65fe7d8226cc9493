"""The rows that the command line asks for: of its arguments, or of the picture that `--from` names."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, TextIO

import click

from diffaccel.cli.options import Request
from diffaccel.config.words import one_line

if TYPE_CHECKING:
    from diffaccel.batch.foreign import ForeignSettings
    from diffaccel.batch.readers import BadRow, PlacedRow
    from diffaccel.batch.settings import PictureSettings


def rows_of(
    request: Request, options: "PictureSettings", stdin: TextIO
) -> "tuple[Iterable[PlacedRow | BadRow], Request]":
    """The rows of all arguments; with `--from`, the picture's own row, and its model, dtype and parts."""
    from pydantic import ValidationError

    from diffaccel.batch.foreign import ForeignSettings
    from diffaccel.batch.jobs import UNPAINTED
    from diffaccel.batch.metadata import read_settings
    from diffaccel.batch.readers import InputError, PlacedRow, explain, read_rows
    from diffaccel.batch.settings import PromptRow

    rows = read_rows(request.prompts, stdin, keep_columns=request.keep_columns)
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
        for name in ("model", "dtype", "vae", "config", "embeddings", "controlnet")
    }
    own = {name: value for name, value in values.items() if name not in ("id", *UNPAINTED, *fixed)}
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
        called = f"calls its model {found.model}" if found.model else "does not name its model"
        raise InputError(f"{request.source_picture} is of {found.tool}, which {called}: give --model")
    for name in found.without_equivalent:
        click.echo(one_line(f"{request.source_picture}: not carried over: {name}"), err=True)
    given = options.given()
    own = {name: value for name, value in found.settings.items() if name != "size" or "width" not in given}
    try:
        return [PlacedRow(str(request.source_picture), PromptRow(**{**own, **given}))]
    except ValidationError as error:
        raise InputError(f"the settings in {request.source_picture} cannot be used: {explain(error)}") from error
