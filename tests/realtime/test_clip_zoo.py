"""Clips of every kind, made here, compared with what the ffmpeg program shows of them: shape, count, times, colours."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import videos

from diffaccel.media.repaint import repaint
from diffaccel.media.video_reader import VideoReader
from diffaccel.stream.engine import StreamEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg to compare with"),
]

COLOURS = np.array(
    [(230, 40, 40), (40, 200, 60), (50, 70, 220), (250, 250, 250), (128, 128, 128), (20, 20, 20),
     (240, 200, 40), (40, 190, 200), (190, 60, 190), (250, 160, 120), (90, 140, 60), (60, 60, 120)],
    np.uint8,
)  # fmt: skip
HDR = "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,zscale=t=bt709:m=bt709:r=tv"
"""The usual way from HDR to an ordinary screen."""


def patches(number: int, width: int, height: int) -> np.ndarray:
    """Four by three patches of colour, in an order that no turn leaves as it is, and that tells the frame's number."""
    rows, columns = np.indices((height, width))
    return COLOURS[(4 * (rows * 3 // height) + columns * 4 // width + number) % len(COLOURS)]


def call(*words: object) -> bytes:
    done = subprocess.run(["ffmpeg", "-hide_banner", "-y", *map(str, words)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout


def make(path: Path, count: int = 6, size: tuple[int, int] = (96, 72), **options: Any) -> Path:
    times = options.pop("times", [Fraction(k, 25) for k in range(count)])
    frames = [patches(number, *size) for number in range(len(times))]
    given = {"audio": None, "crf": "4"} | options
    return videos.make(path, times=times, frames=frames, size=size, **given)


def tagged(path: Path, *, size: tuple[int, int], matrix: int, full: bool = False, pix_fmt: str = "yuv420p") -> Path:
    """A clip that says its colour matrix (1: BT.709, 6: BT.601) and range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "2"})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = matrix
        context.color_range = 2 if full else 1
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(patches(number, *size), format="rgb24").reformat(
                format=pix_fmt, dst_colorspace={1: 1, 6: 5}[matrix], dst_color_range=2 if full else 1
            )
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def hdr(path: Path, transfer: str) -> Path:
    """Ramps of grey and of colours in BT.2020, 10 bits."""
    where = "geq=lum='64+floor(X/64)*80':cb='512+(floor(Y/64)-1)*40':cr='512-(floor(Y/64)-1)*40'"
    names = f"colorspace=bt2020nc:color_primaries=bt2020:color_trc={transfer}"
    call("-f", "lavfi", "-i", f"color=black:s=640x192:r=25,format=yuv420p10le,{where},setparams={names}:range=tv",
         "-frames:v", 3, "-c:v", "libx264", "-crf", 2, "-pix_fmt", "yuv420p10le", "-color_range", "tv",
         "-colorspace", "bt2020nc", "-color_primaries", "bt2020", "-color_trc", transfer, path)  # fmt: skip
    return path


def joined(path: Path, *, audio: str | None) -> Path:
    part = make(path.with_name("part.ts"), codec="mpeg2video", time_base=Fraction(1, 25), audio=audio, count=12)
    path.write_bytes(part.read_bytes() * 3)
    return path


def cut(path: Path) -> Path:
    """Cut in the middle of a group of pictures without encoding: an edit list leaves the beginning out."""
    whole = make(path.with_name("whole.mp4"), count=25, g="10", bf="2")
    call("-ss", "0.28", "-i", whole, "-c", "copy", path)
    return path


def late(path: Path, sound: float, picture: float) -> Path:
    """Sound and picture that begin at different times."""
    whole = make(path.with_name("whole.mp4"), audio="aac", count=20)
    call("-itsoffset", picture, "-i", whole, "-itsoffset", sound, "-i", whole, "-map", "0:v", "-map", "1:a",
         "-c", "copy", path)  # fmt: skip
    return path


@dataclass(frozen=True)
class Clip:
    """How it is made, and the filters that ffmpeg needs to show it."""

    make: Callable[[Path], Path]
    name: str = "in.mp4"
    filters: str = "null"


ZOO = {
    **{
        name: Clip(lambda path, matrix=matrix: videos.shown_as(make(path), matrix))  # type: ignore[misc]
        for name, matrix in videos.MATRICES.items()
    },
    "VFR": Clip(lambda path: make(path, times=videos.UNEVEN)),
    "joined": Clip(lambda path: joined(path, audio=None), "in.ts"),
    "joined with sound": Clip(lambda path: joined(path, audio="mp2"), "in.ts"),
    "PQ": Clip(lambda path: hdr(path, "smpte2084"), filters=HDR),
    "HLG": Clip(lambda path: hdr(path, "arib-std-b67"), filters=HDR),
    "ten bits": Clip(lambda path: tagged(path, size=(96, 72), matrix=1, pix_fmt="yuv420p10le")),
    "full range": Clip(lambda path: tagged(path, size=(96, 72), matrix=6, full=True, pix_fmt="yuvj420p")),
    "BT.601": Clip(lambda path: tagged(path, size=(96, 72), matrix=6)),
    "BT.709": Clip(lambda path: tagged(path, size=(96, 72), matrix=1)),
    "odd": Clip(lambda path: make(path, size=(97, 71), codec="ffv1", pix_fmt="yuv444p", crf="0"), "in.mkv"),
    "odd, 4:2:0": Clip(lambda path: make(path, size=(97, 71), codec="mjpeg", pix_fmt="yuvj420p",
                                         time_base=Fraction(1, 25), crf="0"), "in.avi"),
    "late sound": Clip(lambda path: late(path, sound=0.5, picture=0)),
    "late picture": Clip(lambda path: late(path, sound=0, picture=0.5)),
    "edit list": Clip(cut),
}  # fmt: skip


def shown(path: Path, filters: str, shape: tuple[int, int]) -> tuple[list[float], np.ndarray]:
    """Times and frames ``(frames, H, W, 3)`` that ffmpeg shows."""
    words = ["-i", path, "-map", "0:v", "-vf", f"{filters},showinfo", "-fps_mode", "passthrough", "-f", "rawvideo",
             "-pix_fmt", "rgb24", "-"]  # fmt: skip
    done = subprocess.run(["ffmpeg", "-hide_banner", *map(str, words)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    times = [float(time) for time in re.findall(r"pts_time:\s*(-?[\d.]+)", done.stderr.decode())]
    size = re.findall(r" s:(\d+)x(\d+)", done.stderr.decode())[0]
    assert (int(size[1]), int(size[0])) == shape
    return times, np.frombuffer(done.stdout, np.uint8).reshape(-1, *shape, 3)


def centres(pixels: np.ndarray, down: int, across: int) -> np.ndarray:
    """Colours in the middle of the patches, ``(..., down, across, 3)``."""
    height, width = pixels.shape[-3:-1]
    rows = [(2 * k + 1) * height // (2 * down) for k in range(down)]
    columns = [(2 * k + 1) * width // (2 * across) for k in range(across)]
    return pixels[..., rows, :, :][..., columns, :]


@pytest.mark.parametrize("clip", ZOO.values(), ids=ZOO.keys())
def test_a_clip_is_read_as_ffmpeg_shows_it(tmp_path: Path, clip: Clip) -> None:
    path = clip.make(tmp_path / clip.name)
    with VideoReader(path) as reader:
        frames = list(reader.frames())
    pixels = np.stack([frame.pixels for frame in frames])
    times, expected = shown(path, clip.filters, pixels.shape[1:3])
    assert len(frames) == len(expected)
    start = frames[0].time if clip.name == "in.ts" else 0  # of a transport stream, ffmpeg takes the picture's own
    assert [float(frame.time - start) for frame in frames] == pytest.approx(times, abs=0.001)
    grid = (3, 10) if clip.filters == HDR else (3, 4) if pixels.shape[1] < pixels.shape[2] else (4, 3)
    off = np.abs(centres(pixels, *grid).astype(int) - centres(expected, *grid))
    assert off.max() <= 8


@pytest.mark.parametrize("name", ["VFR", "late sound", "late picture", "edit list", "joined with sound"])
def test_sound_stays_with_its_picture(tmp_path: Path, open_engine: Callable[..., StreamEngine], name: str) -> None:
    path = ZOO[name].make(tmp_path / ZOO[name].name)
    repaint(open_engine, path, tmp_path / "out.mp4")
    with VideoReader(path) as reader:
        times = [float(frame.time) for frame in reader.frames()]
    assert [float(time) for time in videos.times(tmp_path / "out.mp4")] == pytest.approx(times, abs=0.001)
    if "sound" in name or "picture" in name:
        before, after = ([stream[0][0] for stream in (videos.sound(file),)] for file in (path, tmp_path / "out.mp4"))
        starts = [float(videos.times(file)[0]) for file in (path, tmp_path / "out.mp4")]
        assert float(after[0]) - starts[1] == pytest.approx(float(before[0]) - starts[0], abs=0.001)
