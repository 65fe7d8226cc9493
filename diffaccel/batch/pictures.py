"""Pictures to start from, opened with care because they are input from strangers, and what may be asked of pictures."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from diffaccel.models import expanded

FORMATS = ("PNG", "JPEG", "WEBP")


class RenderError(RuntimeError):
    """A picture that cannot be rendered as asked; the message says why and what to do."""


class PictureError(ValueError):
    """A picture that cannot be read; the message says which one and why."""


def open_picture(path: str, size: tuple[int | None, int | None]) -> Image.Image:
    """The picture as RGB, resized to `(width, height)` in pixels where both are given. Raises `PictureError`."""
    with _explained(path), Image.open(expanded(path), formats=FORMATS) as image:
        picture = image.convert("RGB")
    width, height = size
    return picture.resize((width, height), Image.Resampling.LANCZOS) if width and height else picture


def check_picture(path: str) -> None:
    """Raise `PictureError` where the picture cannot be opened; its pixels are not decoded, so this takes no time."""
    with _explained(path), Image.open(expanded(path), formats=FORMATS) as image:
        image.verify()


def picture_size(path: str) -> tuple[int, int]:
    """Width and height in pixels of the picture as `open_picture` gives it. Raises `PictureError`."""
    with _explained(path), Image.open(expanded(path), formats=FORMATS) as image:
        return image.size


def size_problem(model: str, sides: Iterable[int | None], multiple: int) -> str | None:
    """What is wrong with the sides of a picture, in pixels, for a model that paints multiples of so many of them."""
    wrong = next((side for side in sides if side is not None and side % multiple), None)
    return None if wrong is None else f"size: {model} paints multiples of {multiple} pixels (got {wrong})"


def strength_problem(steps: int, strength: float) -> str | None:
    """What is wrong with starting from a picture where `strength`, in (0, 1], leaves none of a UNet's `steps`."""
    if int(steps * strength) >= 1:  # as Stable Diffusion's and SDXL's pipelines count
        return None
    return f"strength: {strength:g} of {steps} steps is less than one step: raise strength or steps"


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Say which picture an error is about."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise PictureError(f"cannot read {path}: not a PNG, JPEG or WebP picture") from error
    except OSError as error:
        raise PictureError(f"cannot read {path}: {error.strerror or error}") from error
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"cannot read {path}: {error}") from error
