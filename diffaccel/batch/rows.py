"""What a row of any kind of input becomes: a checked `PlacedRow`, or a `BadRow` that says what is wrong with it.

A row that cannot be used is yielded as a `BadRow`, so that one bad line never costs the other nine thousand.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from diffaccel.batch.settings import PromptRow
from diffaccel.config.words import did_you_mean, what_is_wrong

SETTINGS = ("size", *PromptRow.model_fields)
_PLAIN = frozenset(SETTINGS)
_HALVES = re.compile("[\ud800-\udfff]")
_NO_TEXT = "is not written in UTF-8: save it so"
_NAMELESS = "a column without a name, such as a row's number: --keep-columns takes it along"
Columns = tuple[tuple[str, Any], ...]


class InputError(ValueError):
    """Input that cannot be used at all; the message says what is wrong with which file."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be rendered: where it came from (`prompts.jsonl:17`) and why."""

    where: str
    error: str


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A row that can be used, where it came from, as a `BadRow` says it, and columns of its own that go along."""

    where: str
    row: PromptRow
    columns: Columns = ()


WEB_UI: Mapping[str, str] = MappingProxyType(
    {"cfg_scale": "guidance_scale", "sampler_name": "scheduler", "sampler": "scheduler"}
)
"""What settings are called in AUTOMATIC1111's web UI."""
RowStream = Iterator[PlacedRow | BadRow]


@lru_cache(maxsize=10_000)
def setting_name(column: str) -> str:
    """The name of a setting as a header may spell it: `Negative Prompt` is `negative_prompt`."""
    return re.sub(r"[\s_-]+", "_", column.strip().lower())


@lru_cache(maxsize=1000)
def no_such_setting(column: str) -> str:
    """What to say of a column that is no setting."""
    name = setting_name(column)
    own = f", it is called {WEB_UI[name]} here" if name in WEB_UI else did_you_mean(name, SETTINGS)
    hint = own or "; settings are " + ", ".join(SETTINGS)
    return f"{column}: no such setting{hint}; --keep-columns takes other columns along"


def check_columns(names: Iterable[str], file: str, *, keep: bool) -> None:
    """Raise `InputError` for a table whose columns cannot be told apart, lack prompts or, unless kept, are unknown."""
    names = list(names)
    spelled = [setting_name(name) for name in names]
    if "prompt" not in spelled:
        hint = did_you_mean("prompt", names)
        raise InputError(f"{file} has no column named prompt{hint}; columns: {', '.join(names) or 'none'}")
    twice = sorted({name for name in spelled if spelled.count(name) > 1})
    if twice:
        raise InputError(f"{file} has the column {twice[0] or 'without a name'} twice")
    if any(not _is_text(name) for name in names):
        raise InputError(f"{file}: its header {_NO_TEXT}")
    unknown = [name for name, setting in zip(names, spelled, strict=True) if setting not in _PLAIN]
    if unknown and not keep:
        shown = no_such_setting(unknown[0]) if unknown[0].strip() else _NAMELESS
        raise InputError(f"{file}: {shown}" + (f" (so are {', '.join(unknown[1:])})" if unknown[1:] else ""))


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """What stands in place of an object that gives the key `name` twice."""

    name: str


def given_once(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Ambiguous:
    """A JSON object, for `json`'s `object_pairs_hook`, which by itself keeps the last of values with one key."""
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    keys = [key for key, _ in pairs]
    return Ambiguous(next(key for key in keys if keys.count(key) > 1))


def make_row(values: Any, where: str, *, keep: bool) -> PlacedRow | BadRow:
    """A checked row; settings that are empty count as absent, but for a negative prompt.

    Args:
        keep: columns that are no settings go along instead of being refused.
    """
    if isinstance(values, Ambiguous):
        return BadRow(where, f"{values.name} is given twice")
    if not isinstance(values, dict):
        return BadRow(where, "not an object with a prompt")
    try:
        given, columns = _sorted_out(values, keep)
        return PlacedRow(where, PromptRow.model_validate(given), columns)
    except ValidationError as error:
        return BadRow(where, explain(error))
    except (TypeError, ValueError) as error:
        return BadRow(where, str(error))


def _sorted_out(values: Mapping[Any, Any], keep: bool) -> tuple[dict[str, Any], Columns]:
    """Settings that are given, and the other columns. Raises `ValueError` where a setting is given twice."""
    if _PLAIN.issuperset(values):
        return {key: value for key, value in values.items() if _is_given(key, value)}, ()
    given: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for key, value in values.items():
        name = setting_name(key) if isinstance(key, str) else str(key)
        if name in given:
            raise ValueError(f"{name} is given twice")
        if name in _PLAIN or not keep:
            if _is_given(name, value):
                given[name if name in _PLAIN else str(key)] = value
        else:
            columns[str(key)] = _along(str(key), value)
    return given, tuple(columns.items())


def _along(name: str, value: Any) -> str | int | float | None:
    """What goes along of another column's value. Raises `ValueError` for text that no file can hold."""
    if isinstance(value, float) and not math.isfinite(value):  # which JSON has no numbers for
        return None if math.isnan(value) else str(value)
    if isinstance(value, list | dict):
        value = json.dumps(value, default=partial(_told, name))
    plain = value if isinstance(value, int | float | None) else _told(name, value)
    if not (_is_text(name) and _is_text(plain)):
        raise ValueError(f"{ascii(name)[1:-1]}: {_NO_TEXT}")
    return plain


def _told(name: str, value: Any) -> str:
    """A value as text, a date as such. Raises `ValueError` for one that is none."""
    if isinstance(value, Ambiguous):
        raise ValueError(f"{name}: {value.name} is given twice")
    if isinstance(value, bytes):
        raise ValueError(f"{name}: bytes cannot go along: leave the column out")
    return str(value)


def _is_text(value: Any) -> bool:
    """Whether a value holds no half of a character, as what is not UTF-8 is read."""
    return not isinstance(value, str) or value.isascii() or not _HALVES.search(value)


def _is_given(name: str, value: Any) -> bool:
    """Whether a value counts. An empty negative prompt does, where no table left it out: it says that there is none."""
    return value is not None and (value != "" or name == "negative_prompt")


def explain(error: ValidationError) -> str:
    """What is wrong with which settings, on one line."""
    return "; ".join(_explain(problem) for problem in error.errors())


def _explain(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"]) or "size"  # the one check of a whole row
    if problem["type"] == "extra_forbidden":
        return no_such_setting(field)
    message = what_is_wrong(problem)
    shown = repr(problem["input"])
    return f"{field}: {message}" + (f" (got {shown[:60]})" if problem["loc"] and problem["type"] != "missing" else "")
