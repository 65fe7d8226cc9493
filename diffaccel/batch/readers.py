"""Rows out of prompts, text, tables, JSON, YAML grids and standard input: what each argument of the command line means.

A file is read as its suffix says. Standard input, which has none, shows what it is in its first line. What is not
understood is never taken for a prompt.
"""

import codecs
import glob
import itertools
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import yaml

from diffaccel.batch.rows import (
    SETTINGS,
    BadRow,
    InputError,
    PlacedRow,
    RowStream,
    explain,
    given_once,
    make_row,
    setting_name,
)
from diffaccel.batch.settings import PICTURES
from diffaccel.batch.tables import header_delimiter, parquet_rows, table_rows
from diffaccel.batch.text_lines import COMMENT, text_values
from diffaccel.models import expanded, is_there, parse_loras, rebased

__all__ = ["COMMAND_LINE", "SETTINGS", "BadRow", "InputError", "PlacedRow", "RowStream", "explain", "read_rows"]

COMMAND_LINE = "command line"
_ENCODING, _ERRORS = "utf-8-sig", "surrogateescape"
_decode = json.JSONDecoder(object_pairs_hook=given_once).decode
_JSON_ROW, _JSON_DOCUMENT = re.compile(r'\s*\{\s*("|\}|$)'), re.compile(r'\s*(\[\s*([{"\]]|$)|\{\s*("|\}|$))')
_NO_PROMPTS = re.compile(
    r"\S+\.(xlsx?|ods|numbers|md|docx?|odt|rtf|pdf|html?|xml|toml|ini|log|zip|gz|tar|py|sh|png|jpe?g|webp|gif|bmp|tiff?"
    r"|avif|heic|safetensors|ckpt|pth?|bin)",
    re.IGNORECASE,
)


def read_rows(arguments: Iterable[str], stdin: TextIO, *, keep_columns: bool = False) -> RowStream:
    """Rows of all arguments in order: prompt files by their suffix, `-` for standard input, everything else a prompt.

    Args:
        keep_columns: columns that are no settings go along with their rows instead of being refused.

    Raises `InputError` for a file that is missing, unreadable or not of the kind its suffix says.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            if isinstance(stdin, TextIOWrapper):
                stdin.reconfigure(encoding=_ENCODING, errors=_ERRORS)
            yield from _lines(stdin, "-", keep_columns)
        elif path.suffix.lower() in _READERS:
            yield from _file(expanded(argument), keep_columns)
        else:
            _require_prompt(argument, path)
            yield _text_row(argument, COMMAND_LINE, keep_columns)


def _require_prompt(argument: str, path: Path) -> None:
    """Raise `InputError` for an argument that is no prompt but a file or a folder, there or not."""
    kinds = ", ".join(_READERS)
    if path.suffix and _there(path, Path.is_file):
        raise InputError(f"{path} is a file, and prompts are read from {kinds}: name it so, or pipe it into -")
    if re.search(r"[/\\]", argument) and _there(path, Path.is_dir):
        raise InputError(f"{path} is a folder: to start from its pictures, give a prompt and --init-image {path}")
    if _NO_PROMPTS.fullmatch(argument):
        raise InputError(f"no such file: {path}, and prompts are read from {kinds}")


def _there(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
    except (OSError, ValueError):  # a prompt may be longer than a name may be, or hold what no name holds
        return False


def _file(path: Path, keep: bool) -> RowStream:
    folder = path.parent
    try:
        for row in _READERS[path.suffix.lower()](path, keep):
            yield _beside(folder, row)
    except FileNotFoundError as error:
        raise InputError(f"no such prompt file: {path}") from error
    except (yaml.parser.ParserError, yaml.scanner.ScannerError) as error:
        line = error.problem_mark and error.problem_mark.line + 1
        remedy = "put text with any of { } [ ] : # in it in quotes"
        raise InputError(f"cannot read {path}: line {line}: {error.problem}; {remedy}") from error
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def _beside(folder: Path, placed: PlacedRow | BadRow) -> PlacedRow | BadRow:
    """The row with its files looked for beside the prompt file that names them, before the working folder."""
    if isinstance(placed, BadRow) or not (placed.row.lora or placed.row.names_pictures):
        return placed
    row, pictures = placed.row, ((name, getattr(placed.row, name)) for name in PICTURES)
    found = {name: str(folder / file) for name, file in pictures if file and _found(folder, file)}
    if row.lora:
        names = [lora.name for lora in parse_loras(row.lora)]
        found["lora"] = rebased(row.lora, {name: str(folder / name) for name in names if is_there(folder / name)})
    return replace(placed, row=row.model_copy(update=found)) if found else placed


def _found(folder: Path, file: str) -> bool:
    """Whether there is a file of this name, or pictures that it stands for, in the folder."""
    with suppress(ValueError):  # of a pattern with what no name holds
        return is_there(folder / file) or (glob.has_magic(file) and bool(glob.glob(file, root_dir=folder)))  # noqa: PTH207
    return False


def _open(path: Path) -> TextIO:
    """UTF-8, whose undecodable bytes survive as lone surrogates, which a row's check then refuses by name; or UTF-16.

    UTF-16 is what PowerShell and spreadsheets write, with a mark at its beginning.
    """
    with path.open("rb") as stream:
        marked = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if marked:
        return path.open(encoding="utf-16", newline="")
    return path.open(encoding=_ENCODING, errors=_ERRORS, newline="")


def _text_row(line: str, where: str, keep: bool) -> PlacedRow | BadRow:
    try:
        return make_row(text_values(line), where, keep=keep)
    except ValueError as error:
        return BadRow(where, str(error))


def _text(path: Path, keep: bool) -> RowStream:
    with _open(path) as stream:
        yield from _lines(stream, str(path), keep)


def _lines(stream: Iterable[str], name: str, keep: bool) -> RowStream:
    """Rows of a text: a table where the first line is a header, a JSON document, or a row a line.

    A line that begins like a JSON object is a JSON row, any other a prompt.
    """
    lines = iter(stream)
    begin = list(_to_first(lines))
    first = begin[-1] if begin else ""
    if header_delimiter(first):
        yield from table_rows(itertools.chain(begin, lines), name, keep=keep)
    elif _JSON_DOCUMENT.match(first) and not _is_json_line(first):
        yield from _json_document("".join([*begin, *lines]), name, keep)
    else:
        for number, line in enumerate(itertools.chain(begin, lines), 1):
            where = f"{name}:{number}"
            if number == len(begin) and setting_name(line) == "prompt":  # the header of a table of one column
                continue
            if _JSON_ROW.match(line):
                yield _json_row(line, where, keep)
            elif line.strip() and not line.lstrip().startswith(COMMENT):
                yield _text_row(line, where, keep)


def _to_first(lines: Iterator[str]) -> Iterator[str]:
    """The lines up to the first that is not blank."""
    for line in lines:
        yield line
        if line.strip():
            return


def _is_json_line(line: str) -> bool:
    """Whether the line is a whole JSON object, so that each line may be one."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(path: Path, keep: bool) -> RowStream:
    name = str(path)
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _json_row(line, f"{name}:{number}", keep)


def _json_row(line: str, where: str, keep: bool) -> PlacedRow | BadRow:
    try:
        values = _decode(line)
    except (ValueError, RecursionError) as error:
        return BadRow(where, f"not JSON: {error}")
    return make_row(values, where, keep=keep)


def _json_file(path: Path, keep: bool) -> RowStream:
    with _open(path) as stream:
        text = stream.read()
    if _is_json_line(text.partition("\n")[0]) and len(text.split("\n", 2)) > 2:  # lines, in spite of the name
        yield from _json_lines(path, keep)
    else:
        yield from _json_document(text, str(path), keep)


def _json_document(text: str, name: str, keep: bool) -> RowStream:
    """A list of rows or prompts, or one row; rows are numbered from 1. Raises `InputError` for anything else."""
    try:
        values = _decode(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}") from error
    for number, row in enumerate(values if isinstance(values, list) else [values], 1):
        yield make_row({"prompt": row} if isinstance(row, str) else row, f"{name}:{number}", keep=keep)


def _table(path: Path, keep: bool) -> RowStream:
    with _open(path) as stream:
        yield from table_rows(stream, str(path), keep=keep)


class _Grid(yaml.SafeLoader):
    """YAML in which no key is given twice, and 010 is no number to the base of 8, nor 1:30 one to that of 60."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping. Raises `ConstructorError` for one of a key that is given twice."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)

    def integer(self, node: yaml.ScalarNode) -> int | str:
        """A whole number in decimal digits; others stay as they are written."""
        text = str(self.construct_scalar(node))
        return int(text) if re.fullmatch(r"-?(0|[1-9]\d*)", text) else text


_Grid.add_constructor("tag:yaml.org,2002:int", _Grid.integer)


def _yaml_grid(path: Path, keep: bool) -> RowStream:
    """A mapping of lists (or a list of such mappings): every combination of their values is a row."""
    with _open(path) as stream:
        grids = yaml.load(stream.read(), _Grid)
    numbers = itertools.count(1)
    for grid in grids if isinstance(grids, list) else [grids]:
        if not isinstance(grid, dict) or "prompt" not in grid:
            raise InputError(
                f"{path} is not a grid: need a mapping with the key prompt, each value one setting or a list"
            )
        axes = [value if isinstance(value, list) else [value] for value in grid.values()]
        for values in itertools.product(*axes):
            yield make_row(dict(zip(grid, values, strict=True)), f"{path}:{next(numbers)}", keep=keep)


_READERS: Mapping[str, Callable[[Path, bool], RowStream]] = {
    ".txt": _text,
    ".csv": _table,
    ".tsv": _table,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".parquet": parquet_rows,
    ".yaml": _yaml_grid,
    ".yml": _yaml_grid,
}
