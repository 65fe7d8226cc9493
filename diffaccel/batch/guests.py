"""What others put into an output folder, and what they made of pictures in it: neither is replaced."""

from collections.abc import Container, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from diffaccel.batch.jobs import Job
from diffaccel.batch.metadata import SUFFIXES, own_values, texts_of
from diffaccel.batch.pictures import recognized
from diffaccel.batch.store import StoreError
from diffaccel.models import is_there

_FORMATS = tuple(SUFFIXES.values())
_ENDS: Mapping[str | None, bytes] = MappingProxyType({"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"})
_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow makes of damaged files


def require_own(jobs: Iterable[Job], folder: Path, suffix: str, records: Container[str]) -> None:
    """Raise `StoreError` where a job's picture would replace a file that no run made.

    Args:
        records: ids of jobs that an earlier run recorded; one that was killed may have made pictures of others.
    """
    for job in jobs if is_there(folder) else ():
        file = folder / f"{job.file_stem}.{suffix}"
        if job.id not in records and is_there(file) and not _is_own(file):
            raise StoreError(
                f"{file} is there, and no picture of an earlier run: use another folder, or another custom_id"
            )


def _is_own(path: Path) -> bool:
    """Whether the picture holds settings of ours, be it cut short."""
    try:
        with path.open("rb") as stream, recognized(stream, _FORMATS) as image:
            return "diffaccel" in image.info or own_values(texts_of(image)) is not None
    except _DAMAGED:
        return False


def is_changed(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a whole picture is there that somebody changed, or packed smaller, since it was painted.

    Args:
        settings: that it was painted with. It holds them, or none of ours; others are those of a run that was killed
            before it recorded the picture that it put in this one's place.
    """
    try:
        data = path.read_bytes()
        with recognized(BytesIO(data), _FORMATS) as image:
            image.load()
            own, end = own_values(texts_of(image)), _ENDS.get(image.format, b"")
    except _DAMAGED:
        return False
    kept = {name: value for name, value in (own or {}).items() if name not in ("id", "version")}
    same = {name: value for name, value in kept.items() if value not in (None, "")} == settings
    return data.endswith(end) and (own is None or same)
