"""Clips with what few others have: words of cameras, wide colours, matrices that nothing converts, short packets."""

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
from diffaccel.media.video_writer import VideoWriter

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


def with_short_packets(path: Path, codec: str) -> Path:
    """A clip with packets of 40 samples, as TrueHD has: Matroska counts in milliseconds, and puts two at one time."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(codec, rate=48000, layout="stereo")
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(videos.picture(number, 64, 48), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        loud = np.zeros((2, 48000), np.int16)
        loud[:, 36000:] = 9000
        for start in range(0, 48000, 40):
            frame = av.AudioFrame.from_ndarray(
                loud[:, start : start + 40].T.reshape(1, -1), format="s16", layout="stereo"
            )
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def becomes_loud(path: Path) -> float:
    """When sound becomes loud, by the times of its pieces."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray()[0]
            heard = np.flatnonzero(samples > {"int16": 1000, "uint8": 132}.get(samples.dtype.name, 0.03))
            if heard.size:
                each = 1 if frame.format.is_planar else frame.layout.nb_channels
                return float(frame.pts * frame.time_base) + heard[0] // each / frame.sample_rate
    raise AssertionError("it never becomes loud")


@pytest.mark.parametrize(("codec", "name"), [("pcm_u8", "out.mp4"), ("pcm_s16le", "out.mov"), ("pcm_s16le", "out.mkv")])
def test_sound_in_packets_of_less_than_a_millisecond_keeps_its_times(tmp_path: Path, codec: str, name: str) -> None:
    path = with_short_packets(tmp_path / "in.mkv", codec)
    with (
        VideoReader(path) as reader,
        VideoWriter(tmp_path / name, rate=reader.rate, time_base=reader.time_base, audio=reader.audio) as writer,
    ):
        videos.write_again(reader, writer)
    assert becomes_loud(path) == pytest.approx(0.75, abs=0.003)
    assert becomes_loud(tmp_path / name) == pytest.approx(0.75, abs=0.003)
