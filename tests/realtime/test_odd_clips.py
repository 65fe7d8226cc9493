"""Clips with what few others have: words of a camera in each picture, wide colours, matrices that nothing converts."""

import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import videos
from PIL import Image

from diffaccel.media.errors import MediaError
from diffaccel.media.video_reader import VideoReader

ORIENTATION = 274
"""The tag of EXIF that tells how a camera was held."""
SRGB, BT709, BT2020, DISPLAY_P3 = 13, 1, 9, 12


def read(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return [frame.pixels for frame in reader.frames()]


@pytest.mark.parametrize(("orientation", "turned"), [(2, np.fliplr), (5, lambda p: p.swapaxes(0, 1))])
def test_a_photograph_is_a_clip_though_its_camera_says_more_than_pyav_knows(
    tmp_path: Path, orientation, turned
) -> None:
    words = Image.Exif()
    words[ORIENTATION] = orientation
    seen = videos.picture(3, 64, 48)
    Image.fromarray(seen).save(tmp_path / "in.jpg", exif=words, quality=100, subsampling=0)
    (pixels,) = read(tmp_path / "in.jpg")
    expected = turned(seen)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 8


def coloured(path: Path, colour: tuple[int, int, int], *, primaries: int, transfer: int, matrix: int = 0) -> Path:
    """A clip of one colour, lossless; without a matrix it is RGB."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p" if matrix else "bgr0"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = primaries, transfer, matrix or 2
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
        frame = frame.reformat(format=stream.pix_fmt)
        frame.color_primaries, frame.color_trc, frame.colorspace = primaries, transfer, matrix or 2
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        for each in (frame, None):
            container.mux(stream.encode(each))
    return path


@pytest.mark.parametrize(
    ("primaries", "transfer", "colour", "seen"),
    [
        (DISPLAY_P3, SRGB, (234, 51, 35), (255, 0, 0)),  # the red of sRGB, as tables of Display P3 give it
        (
            BT2020,
            BT709,
            (172, 111, 64),
            (200, 100, 50),
        ),  # by the inverse of ITU-R BT.2087's matrix and the power of BT.1886
        (BT2020, BT709, (128, 128, 128), (128, 128, 128)),
    ],
)
def test_wide_colours_are_those_that_a_browser_shows_and_cost_no_seconds(
    tmp_path: Path, primaries: int, transfer: int, colour: tuple[int, int, int], seen: tuple[int, int, int]
) -> None:
    path = coloured(tmp_path / "in.mkv", colour, primaries=primaries, transfer=transfer)
    begin = time.process_time()
    (pixels,) = read(path)
    assert time.process_time() - begin < 1
    assert np.abs(pixels.reshape(-1, 3).astype(int) - seen).max() <= 3


def test_colours_that_ffmpeg_does_not_convert_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = coloured(tmp_path / "in.mkv", (9, 9, 9), primaries=BT709, transfer=BT709, matrix=8)  # YCgCo
    with pytest.raises(MediaError, match=r"matrix 8 .*convert it to yuv420p of BT.709 first"):
        VideoReader(path)
