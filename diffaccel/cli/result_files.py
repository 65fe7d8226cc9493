"""The files that a long command ends with: checked before it works, written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


def check_result(option: str, file: Path, example: str) -> None:
    """Raise where `file` cannot be written, so that nobody waits for a result that cannot be kept.

    Args:
        option: that names the file.
        file: the file.
        example: a name for it.
    """
    from diffaccel.batch.store import check_writable

    if file.is_dir():
        raise click.UsageError(f"{option}: {file} is a folder; name a file in it, as {file / example}")
    check_writable(file.parent)


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
