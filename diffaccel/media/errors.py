"""What a person at the keyboard can mend, a sentence each; light to import, so that the command line can catch it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO})
"""What a disk answers that cannot take more."""
_MADE = "make one of pictures with ffmpeg -framerate 24"


class MediaError(ValueError):
    """A camera, a screen, a window or a video file that cannot be used; the message says why and what to do."""


class DiskError(MediaError):
    """A file that was being written when the disk refused: nothing is wrong with what was asked for."""


def need(module: str, *, extra: str, purpose: str) -> Any:
    """Import an optional library.

    Raises:
        MediaError: where it is not installed (naming the extra that brings it), or where it cannot be loaded.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MediaError(f"{purpose} needs {module}: pip install 'diffaccel[{extra}]'") from error
    except ImportError as error:
        raise MediaError(
            f"{purpose} needs {module}, which is installed but cannot be loaded: {error}; "
            "if a lib*.so is missing on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0"
        ) from error


def pyav() -> Any:
    """The PyAV library. Raises `MediaError` that names the extra."""
    return need("av", extra="video", purpose="a video file")


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turn errors of FFmpeg and of files into a `MediaError` that names the file; `DiskError` for a full disk."""
    from av.error import FFmpegError, InvalidDataError

    try:
        yield
    except (FFmpegError, OSError) as error:
        kind = DiskError if error.errno in FULL else MediaError
        why = error.strerror or error
        if isinstance(error, InvalidDataError):
            why = f"it is cut off, damaged or of a kind that is not known ({why})"
        raise kind(f"cannot {action} {path}: {why}") from error


def no_clip(path: Path) -> str:
    """Why a path is no video file; where it means pictures, how a file is made of them."""
    if path.is_dir():
        return f"{path} is a folder, not a video file: {_MADE} -pattern_type glob -i '{path / '*.png'}' clip.mp4"
    return f"no video file at {path}" + (f": {_MADE} -i '{path}' clip.mp4" if "%" in path.name else "")
