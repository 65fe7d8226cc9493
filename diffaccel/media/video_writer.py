"""Video files out, through PyAV: H.264 with a time per picture, sound copied, a whole file or none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import numpy as np

from diffaccel.media.errors import MediaError, explained, pyav
from diffaccel.media.sound import CopiedSound, EncodedSound, holds

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet
    from av.video.frame import VideoFrame

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Containers that can be written, by the file's suffix; all of them hold H.264."""

BT709 = 1
"""Number of ITU-R BT.709 in the tables of ISO 23091-2: matrix, primaries and transfer alike."""


class VideoWriter:
    """A video file that appears under its name once it is complete, and not at all otherwise.

    Pictures are encoded as H.264 (yuv420p, BT.709). Use it with ``with``: an exception inside discards the file.

    Args:
        path: the file; its suffix chooses the container, see `FORMATS`.
        rate: frames per second, for the encoder's bit rate; times are what `write` is given.
        time_base: unit of those times, in seconds.
        audio: audio streams of a reader whose packets will be copied; those that the container does not take are
            encoded anew as AAC.
        overwrite: whether an existing file may be replaced.

    Attributes:
        written: pictures so far.

    Raises:
        MediaError: for a place that cannot be written, and an existing file.
    """

    def __init__(
        self,
        path: Path,
        *,
        rate: Fraction,
        time_base: Fraction,
        audio: Sequence[AudioStream] = (),
        overwrite: bool = False,
    ) -> None:
        av = pyav()
        check_target(path, overwrite=overwrite)
        self.path, self.written, self._time_base, self._last = path, 0, time_base, -1
        self._durations: dict[int, int] = {}
        self._temporary = path.with_name(f".{path.stem[:40]}.{uuid4().hex}.tmp")
        options = {} if FORMATS[path.suffix.lower()] == "matroska" else {"movflags": "+faststart"}
        with explained("write", path):
            self._container = av.open(
                os.path.abspath(self._temporary),  # noqa: PTH100
                "w",
                format=FORMATS[path.suffix.lower()],
                options=options,
            )
        try:
            with explained("write", path):
                self._stream = self._video(rate)
                self._audio = {stream.index: self._sound(stream) for stream in audio}
        except BaseException:
            self.discard()
            raise

    def _video(self, rate: Fraction) -> Any:
        if "libx264" not in pyav().codecs_available:
            raise MediaError("this PyAV cannot write H.264 (no libx264): install PyAV's own wheel, pip install av")
        stream = self._container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", self._time_base
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = 1  # limited, what players expect of yuv420p
        return stream

    def _sound(self, stream: AudioStream) -> CopiedSound | EncodedSound:
        kept = holds(self._container.format.name, stream, stream.container.name)
        return (CopiedSound if kept else EncodedSound)(self._container, stream)

    @property
    def encoded(self) -> int:
        """Audio streams that are encoded anew."""
        return sum(sound.encoded for sound in self._audio.values())

    def start(self, width: int, height: int) -> None:
        """Fix the pictures' size; comes before the first picture and the first sound."""
        if width % 2 or height % 2:
            raise MediaError(f"H.264 needs even sizes, not {width}x{height}")
        self._stream.width, self._stream.height = width, height
        with explained("write", self.path):
            self._container.start_encoding()

    def write(self, pixels: np.ndarray, time: Fraction | float, duration: Fraction | None = None) -> None:
        """Add a picture ``(H, W, 3)`` uint8 RGB, shown at ``time`` seconds; a time that does not rise is made to."""
        frame = pyav().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=1)
        self._last = frame.pts = max(round(time / self._time_base), self._last + 1)
        frame.time_base = self._time_base
        if duration is not None:
            self._durations[frame.pts] = round(duration / self._time_base)
        self._mux(frame)
        self.written += 1

    def _mux(self, frame: VideoFrame | None) -> None:
        """Encode a picture, or what the encoder holds back. It knows the mean rate alone: durations are put in here."""
        with explained("write", self.path):
            for packet in self._stream.encode(frame):
                packet.duration = self._durations.pop(packet.pts, packet.duration)
                self._container.mux(packet)

    def copy(self, packet: Packet[AudioStream]) -> None:
        """Add a packet of sound."""
        with explained("write", self.path):
            for each in self._audio[packet.stream.index].packets(packet):
                self._container.mux(each)

    def finish(self) -> None:
        """Complete the file and give it its name; without a picture there is no file.

        Raises:
            MediaError: where nothing was written, or (`DiskError`) where the disk refuses the rest.
        """
        try:
            if not self.written:
                raise MediaError(f"no picture came, so {self.path} was not written")
            self._mux(None)
            with explained("write", self.path):
                for sound in self._audio.values():
                    for packet in sound.rest():
                        self._container.mux(packet)
                self._container.close()
                with self._temporary.open("rb") as file:
                    os.fsync(file.fileno())
                self._temporary.replace(self.path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError, ValueError):
            self._container.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.discard() if kind else self.finish()


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise `MediaError` where a video cannot be written to ``path``: before a model is loaded for it."""
    if path.suffix.lower() not in FORMATS:
        raise MediaError(f"cannot write {path}: its name must end in {', '.join(FORMATS)}")
    if path.is_dir():
        raise MediaError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise MediaError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise MediaError(f"cannot write {path}: the folder {path.parent} is read-only")
    if path.exists() and not overwrite:
        raise MediaError(f"{path} exists: choose another name, or replace it with --overwrite")
