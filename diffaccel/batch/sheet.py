"""`index.html`: every picture of an output folder on one page that needs no other file and no network.

Thumbnails are embedded, so that the page can be mailed as it is; a click opens the full picture beside it. Prompts are
strangers' text, and jinja2 escapes every one of them.
"""

import base64
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from diffaccel.batch.store import SHEET, Record, explained
from diffaccel.config.files import write_atomically
from diffaccel.config.pages import filled
from diffaccel.config.words import counted

MAX_PICTURES = 1000
THUMBNAIL = 384
MARKS = {
    "flagged": "The model's safety checker blackened this picture.",
    "stale": "This picture shows earlier settings: the command that asks for it has not rendered it again.",
}
LONG = 40  # characters of a setting above which it is folded
_QUIET = ("prompt", "seed", "init_image")


def write_sheet(
    folder: Path,
    records: Iterable[Record],
    most: int = MAX_PICTURES,
    is_stale: Callable[[Record], bool] = lambda _: False,
) -> Path:
    """Write the contact sheet of the first `most` of `records`, whose pictures lie in `folder`, and return its path.

    Args:
        is_stale: whether a picture shows other settings than are asked for now.

    Raises `StoreError` where it cannot be written.
    """
    records = [record for record in records if record.error or _exists(folder, record)]
    shown = records[:most]
    common = _common([record.settings for record in shown if not record.error])
    page = filled(
        "diffaccel.batch",
        "sheet.html",
        title=_title(records),
        common=" · ".join(_label(key, value) for key, value in common.items() if len(str(value)) <= LONG),
        common_folded=[_label(key, value) for key, value in common.items() if len(str(value)) > LONG],
        cards=[_card(folder, record, common, is_stale(record)) for record in shown],
        MARKS=MARKS,
        column=420 if any(record.compare for record in shown) else 200,
        footer=f"The first {most:,} of {len(records):,} pictures." if len(records) > most else "",
    )
    path = folder / SHEET
    with explained(folder):
        write_atomically(path, page.encode("utf-8", "replace"))
    return path


def _exists(folder: Path, record: Record) -> bool:
    return record.file_name is not None and (folder / record.file_name).is_file()


def _title(records: Sequence[Record]) -> str:
    failed = sum(record.error is not None for record in records)
    done = len(records) - failed
    title = counted(done, "picture")
    return f"{title}, {failed:,} failed" if failed else title


def _common(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all pictures share: said once at the top, not under every picture."""
    first = settings[0] if settings else {}
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in settings)}
    return {key: value for key, value in shared.items() if key not in _QUIET}


def _label(key: str, value: Any) -> str:
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{key.replace('_', ' ')} {shown}"


def _card(folder: Path, record: Record, common: dict[str, Any], stale: bool) -> dict[str, Any]:
    settings = record.settings
    card = {"id": record.id, "prompt": settings.get("prompt", ""), "error": record.error, "detail": record.detail}
    if record.error:
        return card
    compare = record.compare or {}
    large = str(compare.get("file_name", record.file_name))
    try:
        thumbnail, size = _thumbnail(folder / large)
    except (OSError, SyntaxError, ValueError):  # what Pillow makes of damaged files
        return card | {"error": "The file is damaged; the command that made it, given again, renders it anew."}
    own = {key: value for key, value in settings.items() if key not in common and key != "prompt"}
    figures = [f"PSNR {compare['psnr']:.1f} dB"] if compare else []
    return card | {
        "file": quote(str(record.file_name)),
        "large": quote(large),
        "notes": record.notes,
        "thumbnail": thumbnail,
        "width": size[0],
        "height": size[1],
        "marks": [mark for mark, holds in (("flagged", record.flagged), ("stale", stale)) if holds],
        "chips": figures + [_label(key, value) for key, value in own.items() if len(str(value)) <= LONG],
        "folded": [_label(key, value) for key, value in own.items() if len(str(value)) > LONG],
        "remarks": record.remarks,
        "details": "\n".join(_label(key, value) for key, value in settings.items() if key != "prompt"),
    }


def _thumbnail(path: Path) -> tuple[str, tuple[int, int]]:
    """A small WebP of the picture as a data URI, and its size in pixels."""
    with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
        picture = image.convert("RGB")
    picture.thumbnail((3 * THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), picture.size
