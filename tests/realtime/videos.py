"""Video files made on the spot: any times, sizes, codecs and sound; and what a file holds, read by PyAV alone."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from diffaccel.media.video_reader import DecodedFrame, VideoReader
from diffaccel.media.video_writer import VideoWriter

STEADY = [Fraction(k, 25) for k in range(12)]
UNEVEN = [Fraction(k, 1000) for k in (0, 40, 90, 100, 300, 301, 500, 700, 720, 1000)]


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A picture that tells its number: flat colour left, its height-wise gradient right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (number * 20 % 256, 255 - number * 20 % 256, 60)
    pixels[:, width // 2 :] = np.linspace(0, 255, height, dtype=np.uint8)[:, None, None]
    return pixels


def make(
    path: Path,
    *,
    times: Sequence[Fraction] = STEADY,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    audio: str | None = "aac",
    audio_streams: int = 1,
    time_base: Fraction = Fraction(1, 1000),
    frames: Sequence[np.ndarray] | None = None,
    shape: Fraction | None = None,
    **options: str,
) -> Path:
    """Write a video whose k-th frame is ``picture(k)``, or ``frames[k]``, of pixels of a shape, and noise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = time_base
        if shape:
            stream.codec_context.sample_aspect_ratio = shape
        count = audio_streams if audio else 0
        sounds = [container.add_stream(audio, rate=48000, layout="mono") for _ in range(count)]
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(frames[number] if frames else picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for seed, sound in enumerate(sounds):
            add_sound(container, sound, float(times[-1]), np.random.default_rng(seed))
    return path


def add_sound(container: Any, stream: Any, seconds: float, chance: np.random.Generator) -> None:
    container.start_encoding()
    size = stream.codec_context.frame_size or 1024
    for start in range(0, int(seconds * 48000) + size, size):
        samples = (chance.normal(size=(1, size)) * 3000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


MATRICES = {
    "upright": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "half-turn": (-1, 0, 0, -1),
    "quarter-turn": (0, 1, -1, 0),
    "three-quarter-turn": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
}
"""The display matrices ``(a, b, c, d)`` without a slant: a pixel goes to ``x' = a x + c y``, ``y' = b x + d y``."""


def shown_as(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Set the display matrix in the header of an MP4's first track."""
    a, b, c, d = (number << 16 for number in matrix)
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    struct.pack_into(">9i", data, header + 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def turn(path: Path, degrees: int) -> Path:
    """Set the display matrix in the header of an MP4's first track: a quarter turn clockwise is 90."""
    return shown_as(path, MATRICES[{90: "quarter-turn", 180: "half-turn", 270: "three-quarter-turn"}[degrees]])


def displayed(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """What a display matrix makes of pixels, computed one by one."""
    a, b, c, d = matrix
    rows, columns = np.indices(pixels.shape[:2])
    x, y = a * columns + c * rows, b * columns + d * rows
    x, y = x - x.min(), y - y.min()
    shown = np.zeros((y.max() + 1, x.max() + 1, 3), pixels.dtype)
    shown[y, x] = pixels
    return shown


def times(path: Path) -> list[Fraction]:
    """Every frame's time in seconds."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def pictures(path: Path) -> list[np.ndarray]:
    """Every frame's pixels."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def sound(path: Path, stream: int = 0) -> list[tuple[Fraction, bytes]]:
    """Every packet of sound, with its time in seconds."""
    with av.open(str(path)) as container:
        packets = container.demux(audio=stream)
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in packets if packet.size]


def samples(path: Path) -> np.ndarray:
    """The first channel of sound, decoded."""
    with av.open(str(path)) as container:
        pieces = [frame.to_ndarray()[0].astype(float) for frame in container.decode(audio=0)]
    return np.concatenate(pieces)


def rate(path: Path) -> Fraction:
    """The frame rate that players are told."""
    with av.open(str(path)) as container:
        return container.streams.video[0].average_rate


def write_again(reader: VideoReader, writer: VideoWriter) -> None:
    """Write all that a clip of 64 x 48 pixels holds, its sound as it is."""
    writer.start(64, 48)
    for item in reader:
        if isinstance(item, DecodedFrame):
            writer.write(item.pixels, item.time)
        else:
            writer.copy(item)
