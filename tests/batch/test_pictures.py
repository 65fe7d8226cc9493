"""Pictures to start from look as every viewer shows them, and what is wrong with one is said in words."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw
from PIL.PngImagePlugin import PngInfo

from diffaccel.batch.pictures import (
    PictureError,
    check_picture,
    open_mask,
    open_picture,
    picture_note,
    picture_size,
)

ANY = (None, None)
RED, BLUE, WHITE, GREEN = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 128, 0)


def two_halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right, 40 x 20."""
    picture = Image.new("RGB", (40, 20), RED)
    picture.paste(BLUE, (20, 0, 40, 20))
    return picture.convert(mode)


def corners(picture: Image.Image) -> tuple[Any, Any, Any]:
    """Colours at the top left, top right and bottom left."""
    return tuple(picture.getpixel(at) for at in ((0, 0), (picture.width - 1, 0), (0, picture.height - 1)))


def near(colours: Any, expected: Any, tolerance: int = 2) -> bool:
    return np.abs(np.array(colours, dtype=int) - np.array(expected, dtype=int)).max() <= tolerance


def opened(path: Path, **how: Any) -> Image.Image:
    picture = open_picture(str(path), ANY, **how)
    assert picture.mode == "RGB"
    assert picture.size == picture_size(str(path))
    return picture


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_are_turned_as_their_exif_says(tmp_path: Path, suffix: str, mode: str) -> None:
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    left, right = (RED, BLUE) if mode == "RGB" else ((76,) * 3, (29,) * 3)
    for orientation, expected in {1: (left, right, left), 3: (right, left, right), 6: (left, left, right)}.items():
        exif[0x0112] = orientation
        two_halves(mode).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
        picture = opened(path)
        assert picture.size == ((20, 40) if orientation == 6 else (40, 20))
        assert near(corners(picture), expected), (suffix, orientation)


def test_what_is_transparent_lies_on_a_background(tmp_path: Path) -> None:
    half = two_halves("RGBA")
    half.paste((255, 0, 0, 0), (0, 0, 20, 20))
    half.save(tmp_path / "a.png")
    half.save(tmp_path / "a.gif")
    half.quantize(8).save(tmp_path / "palette.png")
    half.save(tmp_path / "a.webp", lossless=True)
    for name in ("a.png", "a.gif", "palette.png", "a.webp"):
        assert corners(opened(tmp_path / name))[:2] == (WHITE, BLUE), name
        assert corners(opened(tmp_path / name, background="green"))[:2] == (GREEN, BLUE), name
    Image.new("LA", (4, 4), (0, 128)).save(tmp_path / "grey.png")
    assert corners(opened(tmp_path / "grey.png"))[0] == (127, 127, 127)


def test_deep_pictures_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 40, dtype=np.float32)[None].repeat(20, 0)
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "16.tif")
    for name, white in (("one", 1), ("byte", 255), ("bright", 3), ("word", 65535)):
        Image.fromarray(ramp * white).save(tmp_path / f"{name}.tif")
    for path in tmp_path.iterdir():
        pixels = np.asarray(opened(path))[0, :, 0]
        assert np.abs(pixels - ramp[0] * 255).max() < 1, path.name
    for bad, words in ((-ramp - 1, "negative values"), (np.full_like(ramp, np.inf), "not finite")):
        Image.fromarray(bad.astype(np.float32)).save(tmp_path / "bad.tif")
        with pytest.raises(PictureError, match=rf"bad\.tif: .*{words}"):
            open_picture(str(tmp_path / "bad.tif"), ANY)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("CMYK", "tif"), ("P", "png"), ("P", "gif"), ("P", "bmp"), ("YCbCr", "jpg")]
)
def test_colours_of_every_mode(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    two_halves(mode).save(path)
    assert near(corners(opened(path))[:2], (RED, BLUE))
    two_halves("1").save(tmp_path / "bits.png")
    assert {colour for _, colour in opened(tmp_path / "bits.png").getcolors()} <= {(0, 0, 0), WHITE}


def test_colour_profiles_become_srgb(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), (200, 100, 50))
    profile = _wide_profile()
    picture.save(tmp_path / "wide.png", icc_profile=profile)
    picture.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(tmp_path / "srgb.png", icc_profile=srgb)
    alpha = Image.new("RGBA", (4, 4), (200, 100, 50, 255))
    alpha.save(tmp_path / "alpha.png", icc_profile=profile)
    expected = ImageCms.profileToProfile(
        picture, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    ).getpixel((0, 0))
    assert max(np.abs(np.subtract(expected, (200, 100, 50)))) > 5, "the profile is to matter"
    for name in ("wide.png", "alpha.png"):
        assert corners(opened(tmp_path / name))[0] == expected, name
    for name in ("srgb.png", "damaged.png"):
        assert near(corners(opened(tmp_path / name))[0], (200, 100, 50)), name


def _wide_profile() -> bytes:
    """sRGB's profile with its red and blue exchanged: a colour space that is unmistakably another."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(int.from_bytes(data[128:132], "big")):
        at = 132 + 12 * index
        name = bytes(data[at : at + 4])
        if name in (b"rXYZ", b"bXYZ"):
            data[at : at + 4] = b"bXYZ" if name == b"rXYZ" else b"rXYZ"
    return bytes(data)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_of_an_animation_the_first_picture_counts_and_it_is_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    assert near(corners(opened(path))[0], RED)
    assert picture_note(str(path)) == f"{path} has 2 pictures, of which the first is used"
    frames[0].save(tmp_path / "one.png")
    assert picture_note(str(tmp_path / "one.png")) is None


def test_a_circle_stays_a_circle(tmp_path: Path) -> None:
    picture = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(picture).ellipse((60, 10, 140, 90), fill="black")
    picture.save(tmp_path / "a.png")
    shapes = {how: _extent(open_picture(str(tmp_path / "a.png"), (64, 64), resize=how)) for how in ("crop", "pad")}
    for how, (width, height) in shapes.items():
        assert abs(width - height) <= 1, how
    assert abs(shapes["crop"][0] - 51) <= 1
    assert abs(shapes["pad"][0] - 26) <= 1
    width, height = _extent(open_picture(str(tmp_path / "a.png"), (64, 64), resize="stretch"))
    assert abs(height - 2 * width) <= 2
    padded = open_picture(str(tmp_path / "a.png"), (64, 64), resize="pad", background="green")
    assert padded.getpixel((0, 0)) == GREEN


def _extent(picture: Image.Image) -> tuple[int, int]:
    """Width and height of what is dark."""
    dark = np.asarray(picture.convert("L")) < 100
    return int(dark.any(0).sum()), int(dark.any(1).sum())


def test_masks_are_grey_and_white_where_to_paint(tmp_path: Path) -> None:
    mask = Image.new("RGBA", (8, 4), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (4, 0, 8, 4))
    mask.save(tmp_path / "a.png")
    read = open_mask(str(tmp_path / "a.png"), ANY)
    assert (read.mode, read.getpixel((0, 0)), read.getpixel((7, 0))) == ("L", 0, 255)
    padded = open_mask(str(tmp_path / "a.png"), (8, 8), resize="pad")
    assert padded.getpixel((7, 0)) == 0


def test_a_picture_is_rgb_in_the_asked_size(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 30), "red").save(tmp_path / "a.webp")
    check_picture(str(tmp_path / "a.webp"))
    for size, expected in (((None, None), (40, 30)), ((16, 24), (16, 24)), ((16, None), (40, 30))):
        picture = open_picture(str(tmp_path / "a.webp"), size)
        assert (picture.mode, picture.size) == ("RGB", expected)


@pytest.mark.parametrize("open_", [check_picture, lambda path: open_picture(path, (None, None))])
def test_what_is_no_picture_is_named(tmp_path: Path, open_, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((40, 30), 99).save(tmp_path / "a.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.ppm")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    (tmp_path / "empty.png").touch()
    cases = {"nowhere.png": "No such file", "a.ppm": "not a PNG, JPEG, WebP, GIF", "torn.png": "torn.png: "}
    cases |= {"empty.png": "it is empty", ".": "Is a directory"}
    (tmp_path / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "raw.tif").write_bytes(b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    cases |= {"pointer.png": "git lfs pull", "raw.tif": "a TIFF or raw picture of a kind that is not read"}
    for name, words in cases.items():
        with pytest.raises(PictureError, match=words):
            open_(str(tmp_path / name))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match="decompression bomb"):
        open_(str(tmp_path / "a.png"))


def tiff(path: Path, values: Any, dtype: Any, **tags: int) -> list[int]:
    """What a grey TIFF with these values and changed numbers in its header looks like, from left to right."""
    Image.fromarray(np.array([values], dtype)).save(path, tiffinfo={339: 3 if dtype is np.float32 else 1})
    numbers = {"bits": 258, "white_is": 262, "format": 339, "width": 256}
    data = path.read_bytes()
    for name, value in tags.items():
        kind = 4 if struct.pack("<HHI", numbers[name], 4, 1) in data else 3
        start = data.index(struct.pack("<HHI", numbers[name], kind, 1)) + 8
        data = data[:start] + struct.pack("<I", value) + data[start + 4 :]
    path.write_bytes(data)
    return [int(value) for value in np.asarray(opened(path))[0, :, 0]]


def test_numbers_of_tiff_mean_what_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    assert tiff(path, [0, 65535], np.uint16) == [0, 255]
    assert tiff(path, [0, 65535], np.uint16, white_is=0) == [255, 0]
    assert tiff(path, [0.0, 1.0], np.float32, white_is=0) == [255, 0]
    assert tiff(path, [0, 16384, 32767], np.uint16, format=2) == [0, 128, 255]
    assert tiff(path, [0, 255], np.int32) == [0, 255]
    assert tiff(path, [0, 65535], np.int32) == [0, 255]
    assert tiff(path, [0x0FFF, 0xFFFF], np.uint16, bits=12, width=2) != [0, 0]
    assert max(tiff(path, [0x0FFF, 0xFFFF], np.uint16, bits=12, width=2)) == 255


def test_the_transparent_colour_of_a_deep_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 0x8000, 65535]], np.uint16)).save(path, transparency=0x8000)
    assert np.asarray(opened(path))[0, :, 0].tolist() == [0, 255, 255]
    assert np.asarray(open_mask(str(path), ANY))[0].tolist() == [0, 0, 255]


def test_a_png_with_a_gamma_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for gamma, expected in ((100000, 186), (45455, 128)):  # linear light, and what screens show
        info = PngInfo()
        info.add(b"gAMA", struct.pack(">I", gamma))
        Image.new("RGB", (2, 2), (128, 128, 128)).save(path, pnginfo=info)
        assert opened(path).getpixel((0, 0)) == (expected,) * 3


def test_large_pictures_are_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 800)  # a warning fails a test
    assert opened(path).size == (30, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(PictureError, match="exceeds limit"):
        check_picture(str(path))
