"""Tables of rows: CSV and its kin, with commas, semicolons or tabs, and Parquet.

A header may spell settings with capitals and spaces. A stray quotation mark costs its own row: a quoted field
that never ends, or ends in the middle, is given up at its first line, and reading goes on with the next one.
"""

import csv
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffaccel.batch.rows import BadRow, InputError, RowStream, check_columns, make_row, setting_name

_FRACTIONS = ("guidance_scale", "strength", "control_scale")
DELIMITERS = (",", ";", "\t")
_LONGEST_FIELD = 65_536  # characters, and at most so many lines, after which a quotation mark counts as stray
_MOST_LINES = 1000
_STRAY = (
    'a stray quotation mark: quote the whole field, and write "" for one inside it '
    f"(fields end within {_MOST_LINES:,} lines and {_LONGEST_FIELD:,} characters)"
)


def header_delimiter(line: str) -> str | None:
    """What separates the columns of a header, if the line is one with a column named prompt among several."""
    for delimiter in DELIMITERS:
        cells = _cells(line, delimiter)
        if len(cells) > 1 and "prompt" in [setting_name(cell) for cell in cells]:
            return delimiter
    return None


def table_rows(lines: Iterable[str], file: str, *, keep: bool) -> RowStream:
    """Rows of a table whose first line that is not blank is its header. Raises `InputError` where that is no header."""
    numbered = itertools.dropwhile(lambda item: not item[1].strip(), enumerate(lines, 1))
    number, header = next(numbered, (1, ""))
    delimiter = None
    mark = header.rstrip("\r\n")
    if mark.lower().startswith("sep=") and len(mark) == len("sep=;"):  # as Excel writes it
        delimiter = mark[-1]
        number, header = next(numbered, (number + 1, ""))
    names = _cells(header, delimiter or header_delimiter(header) or _likely(header, file))
    while names and not names[-1].strip():  # a spreadsheet's columns with nothing in them
        names.pop()
    check_columns(names, file, keep=keep)
    delimiter = delimiter or header_delimiter(header) or ","
    for first, cells in _records(numbered, delimiter):
        where = f"{file}:{first}"
        if isinstance(cells, str):
            yield BadRow(where, cells)
        elif any(cells[len(names) :]):
            counts = f"{len(cells)} cells where the header has {len(names)}"
            yield BadRow(where, f"{counts}: quote a cell that holds a {delimiter!r}")
        elif any(cells):
            values = {name: cell for name, cell in zip(names, cells, strict=False) if cell or not _is_negative(name)}
            yield make_row(values if delimiter == "," else _with_points(values), where, keep=keep)


def _is_negative(column: str) -> bool:
    """Whether an empty cell must be left out here, as elsewhere it says something."""
    return setting_name(column) == "negative_prompt"


def _with_points(values: dict[str, str]) -> dict[str, str]:
    """Cells whose fractions have points: where commas do not separate cells, spreadsheets write them in fractions."""
    return {
        name: value.replace(",", ".", 1) if setting_name(name) in _FRACTIONS else value
        for name, value in values.items()
    }


def _likely(header: str, file: str) -> str:
    """The delimiter of a header without a column named prompt, for the message about it."""
    return "\t" if file.lower().endswith(".tsv") else max(DELIMITERS, key=header.count)


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter, skipinitialspace=True), [])


def _records(lines: Iterator[tuple[int, str]], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Number of a record's first line, with its cells or what is wrong with it."""
    source = _Lines(lines)
    while (item := source.take()) is not None:
        number, line = item
        if '"' not in line:
            cells = line.rstrip("\r\n")
            if cells:
                yield number, [cell.lstrip(" ") for cell in cells.split(delimiter)]
            continue
        group = [(number, line)]
        found = _quoted(group, source, delimiter)
        if found is None:
            source.give_back(group[1:])
        yield number, _STRAY if found is None else found


class _Lines:
    """Numbered lines, of which the latest can be given back."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._ahead: deque[tuple[int, str]] = deque()

    def take(self) -> tuple[int, str] | None:
        """The next line, if there is one."""
        return self._ahead.popleft() if self._ahead else next(self._lines, None)

    def give_back(self, lines: list[tuple[int, str]]) -> None:
        """Have `take` give these lines once more."""
        self._ahead.extendleft(reversed(lines))


def _quoted(group: list[tuple[int, str]], source: _Lines, delimiter: str) -> list[str] | None:
    """Cells of a record with quotation marks, to which more lines are added as it needs; None if there is no end."""
    length = 0
    while True:
        line = group[-1][1]
        if '"' in line:
            try:
                lines = [text for _, text in group]
                return next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True))
            except csv.Error as error:
                if "unexpected end" not in str(error):
                    return None
        length += len(line)
        following = source.take() if length <= _LONGEST_FIELD and len(group) < _MOST_LINES else None
        if following is None:
            return None
        group.append(following)


def parquet_rows(path: Path, keep: bool) -> RowStream:
    """Rows of a Parquet file. Raises `InputError` where it cannot be used."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"reading {path} needs pyarrow: pip install 'diffaccel[parquet]'") from error
    numbers = itertools.count(1)
    try:
        table = pyarrow.parquet.ParquetFile(path)
        check_columns(table.schema_arrow.names, str(path), keep=keep)
        for batch in table.iter_batches(batch_size=4096):
            for values in batch.to_pylist():
                yield make_row(_without_gaps(values), f"{path}:{next(numbers)}", keep=keep)
    except InputError:
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the last two: values that Python has not
        raise InputError(f"cannot read {path}: {error}") from error


def _without_gaps(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that pandas has for none: a number that is not equal to itself, and empty text."""
    return {key: value for key, value in values.items() if value == value and (value != "" or not _is_negative(key))}
