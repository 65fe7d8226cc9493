"""Files that are whole or absent, written under a temporary name, synced and renamed; and JSON that is read."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from diffaccel.config.checks import require_once


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream for what `path` shall hold: all of it, or else what `path` held before, whatever happens meanwhile."""
    temporary = path.with_name(f".{path.name[:40]}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that was asked for
        raise


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write `data`, text as UTF-8: `path` holds all of it or what it held before, whatever happens meanwhile."""
    with atomic_file(Path(path)) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: if it is no JSON, or an object in it gives a name twice.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require_once(name for name, _ in pairs)
    return dict(pairs)
