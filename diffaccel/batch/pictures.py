"""Pictures to start from, opened with care because they are input from strangers, and shown as every viewer shows them.

Turned as their EXIF data says, their colours those of sRGB, 16 bits and floating point scaled to 8, and what is
transparent laid on a background. Of an animation, the first picture counts.
"""

import io
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from diffaccel.batch.settings import parse_colour
from diffaccel.models import expanded
from diffaccel.models.source import POINTER, UNFETCHED

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp")
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".tga", ".exr", ".dng", ".cr2", ".nef")
"""Of files that are pictures to those who have them."""
Size = tuple[int | None, int | None]
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that lie on their side
_ORIENTATION = 0x0112
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_BRIGHTEST = 16.0
_TAGS = {"BitsPerSample": 258, "PhotometricInterpretation": 262, "SampleFormat": 339}
_UNSIGNED = 1
_GAMMA = 2.2  # of screens
_PAINTED = 128
"""From this brightness of 255 on, inpainting pipelines paint."""
_SRGB = ImageCms.createProfile("sRGB")


class RenderError(RuntimeError):
    """A picture that cannot be rendered as asked; the message says why and what to do."""


class PictureError(ValueError):
    """A picture that cannot be read; the message says which one and why."""


def files_of(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files of a folder whose names end so and are not hidden, as what macOS leaves beside each (`._photo.jpg`) is."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith("."))
    return sorted(filter(Path.is_file, files))


def open_picture(path: str, size: Size, *, resize: str = "crop", background: str = "white") -> Image.Image:
    """The picture as RGB, brought to `(width, height)` in pixels where both are given. Raises `PictureError`.

    Args:
        resize: `"crop"` fills the size and cuts what is over, `"pad"` shows all of it with `background` beside it,
            `"stretch"` distorts it.
        background: colour behind what is transparent, as CSS names it.
    """
    colour = parse_colour(background)
    with _opened(path) as image:
        picture = _laid_on(ImageOps.exif_transpose(_shallow(image)), colour)
    return fitted(picture, size, resize, colour)


def open_mask(path: str, size: Size, *, resize: str = "crop") -> Image.Image:
    """The picture as a grey mask, white where to paint; what is transparent, or padded, is not painted."""
    with _opened(path) as image:
        mask = _laid_on(ImageOps.exif_transpose(_shallow(image)), (0, 0, 0)).convert("L")
    return fitted(mask, size, resize, 0)


def mask_remark(path: str, mask: Image.Image) -> str | None:
    """What there is to say about a mask that `open_mask` gave, if anything: masks of 0 and 1 are black."""
    _, brightest = cast("tuple[int, int]", mask.getextrema())  # of one channel
    if brightest >= _PAINTED:
        return None
    return f"the mask {path} is nowhere white, so nothing is painted anew (its brightest is {brightest} of 255)"


def picture_size(path: str) -> tuple[int, int]:
    """Width and height in pixels of the picture as `open_picture` gives it, turned upright. Raises `PictureError`."""
    with _opened(path) as image:
        width, height = image.size
        on_its_side = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _SWAPPED  # Pillow turns TIFF
        return (height, width) if on_its_side else (width, height)


def check_picture(path: str) -> None:
    """Raise `PictureError` where the picture cannot be opened; its pixels are not decoded, so this takes no time."""
    with _opened(path) as image:
        if image.format in ("PNG", "JPEG", "WEBP"):  # of the others, verifying says nothing
            image.verify()


def picture_note(path: str) -> str | None:
    """What there is to say about how the picture is read, if anything. Raises `PictureError`."""
    with _opened(path) as image:
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    return f"{path} has {frames} pictures, of which the first is used" if frames > 1 else None


def fitted(picture: Image.Image, size: Size, resize: str, background: Any) -> Image.Image:
    """The picture in `(width, height)` pixels, where both are given."""
    width, height = size
    if not (width and height) or picture.size == (width, height):
        return picture
    if resize == "stretch":
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    if resize == "pad":
        return ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS, color=background)
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def _shallow(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel; what is deeper is scaled, not clipped. Raises `ValueError`."""
    hidden = image.info.get("transparency")  # of a PNG the colour that is transparent, in the depth of the file
    if image.mode == "RGB" and isinstance(hidden, tuple) and max(hidden) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    if image.mode not in _DEEP:
        return image
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    if values.min() < 0:
        raise ValueError(f"it has negative values, down to {values.min():g}: scale them to 0..1")
    white = _white(image, float(values.max()))
    light = white - values if _tag(image, "PhotometricInterpretation", 1) == 0 else values
    shallow = Image.fromarray((light / white * 255).round().astype(np.uint8))
    if hidden is not None:
        shallow.putalpha(Image.fromarray((values != hidden).astype(np.uint8) * 255))
    shallow.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return shallow


def _tag(image: Image.Image, name: str, default: int) -> int:
    """A number in a TIFF picture's header; `default` where there is none."""
    found = getattr(image, "tag_v2", {}).get(_TAGS[name], default)
    return int(found[0] if isinstance(found, tuple) else found)


def _white(image: Image.Image, largest: float) -> float:
    """What value stands for white in a deep picture whose largest value is given.

    Up to 16 bits it is the largest that they hold. Wider numbers have no rule: floating point is 0 to 1 by custom, 0 to
    255 or 65535 what programs write that keep to integers, and a picture that goes a little beyond 1 has lights that
    are brighter than white.
    """
    bits = _tag(image, "BitsPerSample", 16)
    if image.mode != "F" and bits <= 16:
        return 2.0 ** (bits - (_tag(image, "SampleFormat", _UNSIGNED) != _UNSIGNED)) - 1
    if image.mode == "F" and 1 < largest < _BRIGHTEST:
        return largest
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**32 - 1)
    return next((white for white in whites if largest <= white), largest)


def _laid_on(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The picture as RGB in the colours of sRGB, on a background."""
    transparent = image.has_transparency_data
    if image.mode == "P" or (transparent and image.mode not in ("RGBA", "LA")):
        image = image.convert("RGBA" if transparent else "RGB")
    alpha = image.getchannel("A") if transparent else None
    picture = _srgb(image.convert({"RGBA": "RGB", "LA": "L"}.get(image.mode, image.mode)))
    if alpha is None:
        return picture
    laid = Image.new("RGB", picture.size, colour)
    laid.paste(picture, mask=alpha)
    return laid


def _srgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, by its colour profile where it has one that fits it, or else by a PNG's gamma."""
    profile = image.info.get("icc_profile")
    if profile:
        # A profile that is damaged, or of another colour space, is passed over, as viewers do.
        with suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if converted := ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB"):
                return converted
    plain = image.convert("RGB")
    gamma = 0.0 if profile or "srgb" in image.info else float(image.info.get("gamma") or 0)  # of a PNG
    if gamma > 0 and abs(gamma * _GAMMA - 1) > 0.05:
        return plain.point([round((value / 255) ** (1 / (gamma * _GAMMA)) * 255) for value in range(256)] * 3)
    return plain


def size_problem(model: str, sides: Iterable[int | None], multiple: int) -> str | None:
    """What is wrong with the sides of a picture, in pixels, for a model that paints multiples of so many of them."""
    wrong = next((side for side in sides if side is not None and side % multiple), None)
    return None if wrong is None else f"size: {model} paints multiples of {multiple} pixels (got {wrong})"


def strength_problem(steps: int, strength: float) -> str | None:
    """What is wrong with starting from a picture where `strength`, in (0, 1], leaves none of a UNet's `steps`."""
    if int(steps * strength) >= 1:  # as Stable Diffusion's and SDXL's pipelines count
        return None
    return f"strength: {strength:g} of {steps} steps is less than one step: raise strength or steps"


def recognized(stream: BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open a picture without Pillow's warning of large ones; those beyond twice its limit are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(stream, formats=formats)


def _unknown(path: str) -> str:
    """Why a file is taken for no picture, by how it begins."""
    with expanded(path).open("rb") as stream:
        begin = stream.read(len(POINTER))
    if not begin:
        return "it is empty; save or fetch it again"
    if begin.startswith(POINTER):
        return f"it {UNFETCHED}"
    if begin.startswith((b"II*\0", b"MM\0*")):
        return "a TIFF or raw picture of a kind that is not read; convert it to PNG"
    return "not a PNG, JPEG, WebP, GIF, TIFF or BMP picture; convert it to one"


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """The picture, not decoded yet; an error says which one it is about."""
    if path.startswith("data:"):
        raise PictureError(f"{path[:30]}... is a picture itself: save it, and give its path")
    if "://" in path:
        raise PictureError(f"{path} is an address, and nothing is fetched: save the picture, and give its path")
    try:
        # Given a name, Pillow maps an uncompressed TIFF into memory, and garbles one that lies on its side.
        with expanded(path).open("rb") as stream, recognized(stream) as image:
            yield image
    except UnidentifiedImageError as error:
        raise PictureError(f"cannot read {path}: {_unknown(path)}") from error
    except OSError as error:
        raise PictureError(f"cannot read {path}: {error.strerror or error}") from error
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"cannot read {path}: {error}") from error
