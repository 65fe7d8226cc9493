"""The settings come back out of the picture, in every format, and equal settings give equal bytes."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffaccel.batch.jobs import Job
from diffaccel.batch.metadata import encode, parameters, read_settings
from diffaccel.batch.readers import InputError

JOB = Job(
    id="a",
    prompt='a "red" heart\né 心',
    seed=7,
    model="emoji-sd",
    dtype="float32",
    negative_prompt="blurry",
    steps=20,
    guidance_scale=2.0,
    scheduler="dpm++",
    cache="deepcache:interval=3,branch=0",
)
PICTURE = Image.effect_mandelbrot((32, 24), (-2, -1, 1, 1), 20).convert("RGB")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_job_round_trips(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encode(PICTURE, JOB, suffix))
    assert read_settings(path) == JOB


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_image_tools_find_the_known_text_in_other_formats(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a").write_bytes(encode(PICTURE, JOB, suffix))
    with Image.open(tmp_path / "a") as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + parameters(JOB, (32, 24)).encode("utf-16-be")


def test_png_keeps_every_pixel_and_the_known_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(PICTURE, JOB))
    with Image.open(tmp_path / "a.png") as image:
        assert image.tobytes() == PICTURE.tobytes()
        assert image.info["parameters"] == parameters(JOB, (32, 24))


def test_parameters_text_is_what_image_tools_expect() -> None:
    prompt, _, negative, listed = parameters(JOB, (32, 24)).split("\n")
    assert prompt == 'a "red" heart'
    assert negative == "Negative prompt: blurry"
    assert listed.startswith("Steps: 20, Sampler: DPM++ 2M, CFG scale: 2, Seed: 7, Size: 32x24, Model: emoji-sd, ")
    assert 'Cache: "deepcache:interval=3,branch=0"' in listed


def test_parameters_leave_out_what_is_open() -> None:
    text = parameters(Job(id="a", prompt="p", seed=1, model="m", dtype="float32"), (8, 8))
    assert text.startswith("p\nSeed: 1, Size: 8x8, Model: m")


def test_equal_settings_give_equal_files() -> None:
    assert encode(PICTURE, JOB) == encode(PICTURE, replace(JOB))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_broken_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*a.png: it is no PNG, JPEG or WebP picture$"):
        read_settings(tmp_path / "a.png")


def png(path: Path, settings: str, *, packed: bool = False) -> Path:
    info = PngInfo()
    info.add_itxt("diffaccel", settings, zip=packed)
    PICTURE.save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("[" * 100_000, "no settings of diffaccel"),
        ("[]", "no settings of diffaccel"),
        ('{"id": "a"}', "not those of this version"),
        ('{"id": "a", "prompt": "p", "seed": "abc", "model": "m", "dtype": "float32"}', "not those of this version"),
        ('{"id": "a", "prompt": "p", "seed": 1, "model": ["m"], "dtype": "float32"}', "not those of this version"),
    ],
)
def test_settings_of_strangers_are_checked(tmp_path: Path, settings: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_settings(png(tmp_path / "a.png", settings))


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot read .*too large"):
        read_settings(png(tmp_path / "a.png", "x" * 70_000_000, packed=True))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(InputError, match=r"cannot read .*bomb"):
        read_settings(png(tmp_path / "a.png", "{}"))


def test_a_large_picture_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(PICTURE, JOB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(PICTURE.width * PICTURE.height * 0.7))
    assert read_settings(path).prompt == JOB.prompt


def test_missing_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such picture"):
        read_settings(tmp_path / "a.png")


def test_picture_without_settings_is_refused(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    with pytest.raises(InputError, match="no settings of diffaccel"):
        read_settings(tmp_path / "a.png")


def test_cut_picture_is_refused(tmp_path: Path) -> None:
    data = encode(PICTURE, JOB)
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cannot read|no settings of diffaccel"):
        read_settings(tmp_path / "a.png")
