"""Rows out of prompts, text, CSV, JSON lines, Parquet, YAML grids and standard input.

A row that cannot be used is yielded as a `BadRow`, so that one bad line never costs the other nine thousand.
"""

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import yaml
from pydantic import ValidationError

from diffaccel.batch.settings import PromptRow
from diffaccel.config.words import did_you_mean
from diffaccel.models import parse_loras, rebased

COMMAND_LINE = "command line"
SETTINGS = ("size", *PromptRow.model_fields)
_ENCODING, _ERRORS = "utf-8-sig", "surrogateescape"


class InputError(ValueError):
    """Input that cannot be used at all; the message says what is wrong with which file."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be rendered: where it came from (`prompts.jsonl:17`) and why."""

    where: str
    error: str


@dataclass(frozen=True)
class PlacedRow:
    """A row that can be used, and where it came from, as a `BadRow` says it."""

    where: str
    row: PromptRow


RowStream = Iterator[PlacedRow | BadRow]


def read_rows(arguments: Iterable[str], stdin: TextIO) -> RowStream:
    """Rows of all arguments in order: prompt files by their suffix, `-` for standard input, everything else a prompt.

    Raises `InputError` for a file that is missing, unreadable or not of the kind its suffix says.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            if isinstance(stdin, TextIOWrapper):
                stdin.reconfigure(encoding=_ENCODING, errors=_ERRORS)
            yield from _lines(stdin, "-")
        elif path.suffix.lower() in _READERS:
            yield from _file(path)
        elif path.suffix and _is_file(path):
            kinds = ", ".join(_READERS)
            raise InputError(f"{path} is a file, and prompts are read from {kinds}: name it so, or pipe it into -")
        else:
            yield _row({"prompt": argument}, COMMAND_LINE)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a prompt may be longer than a name may be, or hold what no name holds
        return False


def _file(path: Path) -> RowStream:
    try:
        for row in _READERS[path.suffix.lower()](path):
            yield _beside(path.parent, row)
    except FileNotFoundError as error:
        raise InputError(f"no such prompt file: {path}") from error
    except (OSError, UnicodeError, csv.Error, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _beside(folder: Path, placed: PlacedRow | BadRow) -> PlacedRow | BadRow:
    """The row with its files looked for beside the prompt file that names them, before the working folder."""
    if isinstance(placed, BadRow) or not (placed.row.init_image or placed.row.lora):
        return placed
    row, found = placed.row, {}
    if row.init_image and (folder / row.init_image).exists():
        found["init_image"] = str(folder / row.init_image)
    if row.lora:
        names = [lora.name for lora in parse_loras(row.lora)]
        found["lora"] = rebased(row.lora, {name: str(folder / name) for name in names if (folder / name).exists()})
    return PlacedRow(placed.where, row.model_copy(update=found))


def _row(values: Any, where: str) -> PlacedRow | BadRow:
    """A checked row; columns that are empty count as absent, as they must in a CSV file."""
    if not isinstance(values, Mapping):
        return BadRow(where, "not an object with a prompt")
    try:
        given = {key: value for key, value in values.items() if value not in (None, "")}
        return PlacedRow(where, PromptRow.model_validate(given))
    except ValidationError as error:
        return BadRow(where, explain(error))
    except TypeError as error:
        return BadRow(where, str(error))


def explain(error: ValidationError) -> str:
    """What is wrong with which settings, on one line."""
    return "; ".join(_explain(problem) for problem in error.errors())


def _explain(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"]) or "row"
    if problem["type"] == "extra_forbidden":
        return f"{field}: no such setting{did_you_mean(field, SETTINGS) or '; settings are ' + ', '.join(SETTINGS)}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch":
        message = "write up to 120 of the letters a to z, digits, _ . and -, the first none of the last two"
    shown = repr(problem["input"])
    return f"{field}: {message}" + (f" (got {shown[:60]})" if problem["type"] != "missing" else "")


def _open(path: Path) -> TextIO:
    """UTF-8, whose undecodable bytes survive as lone surrogates, which a row's check then refuses by name; or UTF-16.

    UTF-16 is what PowerShell and spreadsheets write, with a mark at its beginning.
    """
    with path.open("rb") as stream:
        marked = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if marked:
        return path.open(encoding="utf-16", newline="")
    return path.open(encoding=_ENCODING, errors=_ERRORS, newline="")


def _text(path: Path) -> RowStream:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _row({"prompt": line}, f"{path}:{number}")


def _lines(stream: TextIO, name: str) -> RowStream:
    """Standard input: a line that begins with a brace is a JSON row, any other a prompt."""
    for number, line in enumerate(stream, 1):
        where = f"{name}:{number}"
        if line.lstrip().startswith("{"):
            yield _json_row(line, where)
        elif line.strip():
            yield _row({"prompt": line}, where)


def _json_lines(path: Path) -> RowStream:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _json_row(line, f"{path}:{number}")


def _json_row(line: str, where: str) -> PlacedRow | BadRow:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(where, f"not JSON: {error}")
    return _row(values, where)


def _csv(path: Path) -> RowStream:
    with _open(path) as stream:
        reader = csv.DictReader(stream, restkey="columns beyond the header", strict=True)
        if "prompt" not in (reader.fieldnames or ()):
            raise InputError(_without_prompts(path, reader.fieldnames or ()))
        for values in reader:
            yield _row(values, f"{path}:{reader.line_num}")


def _without_prompts(path: Path, columns: Sequence[str]) -> str:
    """What is wrong with the header of a CSV file."""
    hint = did_you_mean("prompt", columns)
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t"):
        hint = "; columns are separated by commas"
    return f"{path} has no column named prompt{hint}; columns: {', '.join(columns) or 'none'}"


def _parquet(path: Path) -> RowStream:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"reading {path} needs pyarrow: pip install 'diffaccel[parquet]'") from error
    numbers = itertools.count(1)
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for values in batch.to_pylist():
                yield _row(values, f"{path}:{next(numbers)}")
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the last two: values that Python has not
        raise InputError(f"cannot read {path}: {error}") from error


def _yaml_grid(path: Path) -> RowStream:
    """A mapping of lists (or a list of such mappings): every combination of their values is a row."""
    with _open(path) as stream:
        grids = yaml.safe_load(stream.read())
    numbers = itertools.count(1)
    for grid in grids if isinstance(grids, list) else [grids]:
        if not isinstance(grid, dict) or "prompt" not in grid:
            raise InputError(
                f"{path} is not a grid: need a mapping with the key prompt, each value one setting or a list"
            )
        axes = [value if isinstance(value, list) else [value] for value in grid.values()]
        for values in itertools.product(*axes):
            yield _row(dict(zip(grid, values, strict=True)), f"{path}:{next(numbers)}")


_READERS: Mapping[str, Callable[[Path], RowStream]] = {
    ".txt": _text,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".yaml": _yaml_grid,
    ".yml": _yaml_grid,
}
