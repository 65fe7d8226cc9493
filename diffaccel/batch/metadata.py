"""The settings inside the picture: the `parameters` text that image tools know, and a `diffaccel` JSON chunk.

Nothing that changes from run to run (a date, a duration) is stored, so equal settings give equal files.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import TypeAdapter, ValidationError

from diffaccel import __version__
from diffaccel.batch.foreign import ForeignSettings, read_foreign
from diffaccel.batch.jobs import UNPAINTED, Job
from diffaccel.batch.pictures import recognized
from diffaccel.batch.readers import InputError, explain
from diffaccel.sampling.schedulers import shown

SUFFIXES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
_EXIF_IFD, _USER_COMMENT, _IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
_UNICODE = b"UNICODE\0"
_JPEG_SEGMENT = 65_533


def parameters(job: Job, size: tuple[int, int]) -> str:
    """The settings as AUTOMATIC1111's web UI writes them, readable by the tools that read its pictures."""
    values = {
        "Steps": job.steps,
        "Sampler": shown(job.scheduler),
        "CFG scale": job.guidance_scale,
        "Seed": job.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": job.model,
        "VAE": job.vae,
        "Denoising strength": job.strength,
        "Lora": job.lora,
        "Cache": job.cache,
        "Guidance": None if job.guidance == "full" else job.guidance,
        "Version": f"diffaccel {__version__}",
    }
    listed = ", ".join(f"{name}: {_quote(value)}" for name, value in values.items() if value is not None)
    negative = [f"Negative prompt: {job.negative_prompt}"] if job.negative_prompt else []
    return "\n".join([job.prompt, *negative, listed])


def _quote(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if any(char in text for char in ',:\n"') else text


def encode(image: Image.Image, job: Job, suffix: str = "png") -> bytes:
    """The picture as file contents, with its settings inside.

    PNG uses compression level 1: four times as fast as level 6 and hardly larger on photographs.
    """
    settings = {name: value for name, value in asdict(job).items() if name not in UNPAINTED}
    text, chunk = parameters(job, image.size), json.dumps({"version": __version__, **settings})
    buffer = BytesIO()
    if suffix == "png":
        info = PngInfo()
        info.add_itxt("parameters", text)
        info.add_itxt("diffaccel", chunk)
        image.save(buffer, "PNG", pnginfo=info, compress_level=1)
    else:
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = chunk
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + text.encode("utf-16-be")
        if suffix == "jpg" and len(exif.tobytes()) > _JPEG_SEGMENT:
            raise ValueError("the prompts are longer than a JPEG's metadata may be (64 KB): use png or webp")
        image.save(buffer, SUFFIXES[suffix], exif=exif, quality=95)
    return buffer.getvalue()


def read_settings(path: Path) -> Job | ForeignSettings:
    """What the picture at `path` was painted with: the job, or what another tool wrote into it.

    Raises `InputError` where there is neither.
    """
    texts = _read_texts(path)
    values = own_values(texts)
    if values is not None:
        return _job(values, path)
    foreign = read_foreign(texts)
    if foreign is None:
        raise InputError(f"{path} holds no settings of diffaccel, AUTOMATIC1111 or ComfyUI")
    return foreign


def own_values(texts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `encode` wrote into a picture, of its texts."""
    try:
        values = json.loads(texts.get("diffaccel") or texts.get("description") or "")
    except (ValueError, TypeError, RecursionError):
        return None
    return values if isinstance(values, dict) and ("version" in values or "diffaccel" in texts) else None


def _job(values: dict[str, Any], path: Path) -> Job:
    values.pop("version", None)
    try:
        return _checked().validate_python(asdict(Job(**values)))
    except (TypeError, ValidationError) as error:
        words = explain(error) if isinstance(error, ValidationError) else error
        raise InputError(f"the settings in {path} are not those of this version: {words}") from error


@lru_cache
def _checked() -> TypeAdapter[Job]:
    """Checks a job's values; it takes longer to build than to read a picture."""
    return TypeAdapter(Job)


def _read_texts(path: Path) -> dict[str, Any]:
    """A picture's texts by their keywords, with EXIF's description and user comment among them."""
    try:
        with path.open("rb") as stream, recognized(stream, tuple(SUFFIXES.values())) as image:
            image.load()
            return texts_of(image)
    except FileNotFoundError as error:
        raise InputError(f"no such picture: {path}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder: name its pictures, as in {path}/*.png") from error
    except UnidentifiedImageError as error:
        raise InputError(f"cannot read {path}: it is no PNG, JPEG or WebP picture") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def texts_of(image: Image.Image) -> dict[str, Any]:
    """An open picture's texts by their keywords, with EXIF's description and user comment among them."""
    exif = image.getexif()
    texts = {"description": exif.get(_IMAGE_DESCRIPTION)}
    comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        texts["parameters"] = _comment(comment.removeprefix(_UNICODE))
    return texts | {str(name): text for name, text in image.info.items() if isinstance(text, str)}


def _comment(data: bytes) -> str:
    """UTF-16 of either order: the standard leaves it open, and every other byte of "Steps:" is zero."""
    return data.decode("utf-16-be" if data[:1] == b"\0" else "utf-16-le", "replace")
