"""The files that a long command ends with: checked before it works, written whole or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


def check_result(option: str, file: Path, example: str, beside: Path | None = None) -> None:
    """Raise where `file` cannot be written or would replace what no such command wrote.

    So nobody waits for a result that cannot be kept.

    Args:
        option: that names the file.
        file: the file.
        example: a name for it.
        beside: another file that is written.
    """
    from diffaccel.batch.store import check_writable

    if file.is_dir():
        raise click.UsageError(f"{option}: {file} is a folder; name a file in it, as {file / example}")
    if beside is not None and file.absolute() == beside.absolute():
        raise click.UsageError(f"{option}: {file} is the file of --output, too; name another")
    check_writable(file.parent)
    if _is_of_others(file):
        raise click.UsageError(f"{option}: {file} is there and no earlier result: name another file, or remove it")


def _is_of_others(file: Path) -> bool:
    """Whether a file is there that is neither a drawing nor JSON such as these commands write."""
    from diffaccel.config import StoredConfig
    from diffaccel.methods import Method

    try:
        text = file.read_text(encoding="utf-8").lstrip()
        values = None if text.startswith("<svg") or not text else json.loads(text)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    if values is None:
        return False
    kinds = {*StoredConfig.names(), *Method.names()}
    return not isinstance(values, dict) or (values.get("type") not in kinds and "methods" not in values)


@contextmanager
def folder_of(file: Path) -> Iterator[None]:
    """Make the folder of `file`, and explain what goes wrong with either."""
    from diffaccel.batch.store import explained

    with explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        yield


def write_drawing(file: Path, svg: str) -> None:
    """Write a drawing."""
    from diffaccel.config.files import write_atomically

    with folder_of(file):
        write_atomically(file, svg)
