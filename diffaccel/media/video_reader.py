"""Video files in, through PyAV: every frame upright and with its own time, sound as it lies in the file."""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from diffaccel.media.errors import MediaError, explained, no_clip, pyav
from diffaccel.media.pixels import SQUARE, upright
from diffaccel.media.timeline import Timeline

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet
    from av.video.frame import VideoFrame

logger = logging.getLogger(__name__)

MOST_LIKELY = 240
"""Pictures a second of the fastest usual cameras; a file that tells more is asked for the times of its pictures."""
LASTED = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)\0*")
TIMES_MAY_LEAP = 0x0200
"""AVFMT_TS_DISCONT: a format, such as MPEG transport streams, whose times may leap where files were joined."""


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """One picture of a source.

    Attributes:
        pixels: ``(H, W, 3)`` uint8, RGB.
        time: seconds since the source began.
        duration: seconds until the next one, or None where the source does not know.
    """

    pixels: np.ndarray
    time: Fraction | float
    duration: Fraction | None = None


SEEN_THROUGH = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that know the transparency of WebM, which FFmpeg's own leave out."""


def decoder_of(stream: Any) -> Any:
    """What decodes the packets of a stream of pictures."""
    decoder = stream.codec_context
    other = SEEN_THROUGH.get(decoder.name) if stream.metadata.get("alpha_mode") == "1" else None
    if other in pyav().codecs_available:
        decoder = pyav().CodecContext.create(other, "r")
    elif other:
        logger.warning("what is transparent is shown opaque: this PyAV has no %s", other)
    decoder.thread_type = "SLICE"  # one that works at several frames at a time loses the last, unsaid, behind damage
    return decoder


class VideoReader:
    """Frames and sound of a video file, in file order.

    Frames are turned and mirrored as the file's display matrix asks, and stretched where its pixels are not square.
    Their colours are those that browsers show: untagged HD is BT.709, and HDR is mapped to an ordinary screen. Times
    count from the file's beginning and rise strictly; where those of a joined file begin anew, they go on from its
    last frame, and frames without a time follow at the file's rate. A damaged piece in the middle is left out with a
    warning, and counted.

    Args:
        path: the file.
        audio: whether its sound is read too.

    Attributes:
        width, height: of upright frames, in pixels.
        rate: average frames per second.
        time_base: unit of the frames' times, in seconds.
        count: number of frames, as far as the file tells; None where it does not.
        audio: its audio streams.
        damaged: pieces that could not be decoded so far.

    Raises:
        MediaError: for a file that is missing, unreadable, without video, or of a codec that PyAV cannot decode.
    """

    def __init__(self, path: Path, *, audio: bool = True) -> None:
        av = pyav()
        self.path, self.damaged = path, 0
        if not path.is_file():
            raise MediaError(no_clip(path))
        with explained("read", path):
            self._container = self._opened()
        try:
            self._stream = self._video()
            self._decoder = decoder_of(self._stream)
            self._shape = self._stream.sample_aspect_ratio or SQUARE
            self.audio: list[AudioStream] = list(self._container.streams.audio) if audio else []
            self.height, self.width = self._first().shape[:2]
        except BaseException:
            self.close()
            raise
        self.rate = self._rate()
        self.time_base: Fraction = self._stream.time_base
        self.count = self._count()
        self._start = Fraction(max(0, self._container.start_time or 0), av.time_base)
        self._last: Fraction | None = None
        # AVI stores no times of pictures: they come out in the order of packets, whose numbers are theirs.
        self._numbers: deque[int] | None = deque() if self._container.format.name == "avi" else None

    @property
    def still(self) -> bool:
        """Whether it is a single picture, whose rate means nothing."""
        return self.count == 1 or self._container.format.name.endswith("_pipe")

    def _opened(self) -> Any:
        """A container of the file, of which others may be open."""
        return pyav().open(os.path.abspath(self.path), metadata_errors="replace")  # noqa: PTH100 (keeps links)

    def _video(self) -> Any:
        from av.stream import Disposition

        if not self._container.streams:
            raise MediaError(f"{self.path} is empty: it holds neither pictures nor sound")
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(f"{self.path} holds no video, only {self._contents()}")
        # The first that players show; beside a moving AVIF lies its first picture as one more stream.
        stream = max(streams, key=lambda s: (bool(s.disposition & Disposition.default), s.frames != 1))
        if stream.codec_context is None:
            raise MediaError(f"{self.path}: PyAV cannot decode its video codec; convert the file to H.264 first")
        return stream

    def _contents(self) -> str:
        kinds = sorted({stream.type for stream in self._container.streams if stream.type != "video"})
        return " and ".join(kinds) or "still pictures"

    def _first(self) -> np.ndarray:
        """The first frame, read through a container of its own: is there anything to decode, and of what size?"""
        with self._opened() as container:
            stream = container.streams[self._stream.index]
            decoder = decoder_of(stream)
            for packet in container.demux(stream):
                for frame in self._decode(packet, decoder):
                    return upright(frame, self._shape)
        self.damaged = 0
        name = self._stream.codec_context.name
        raise MediaError(
            f"{self.path}: none of its {name} video can be decoded: it is not complete, or of a kind "
            "that FFmpeg does not read (as animated WebP); convert it to H.264 first"
        )

    def _rate(self) -> Fraction:
        rate = self._stream.average_rate or self._stream.guessed_rate
        return Fraction(rate) if rate and rate <= MOST_LIKELY else self._measured()

    def _measured(self) -> Fraction:
        """The mean rate, by the times of packets: what browsers record tells the unit of its times, 1/1000, instead."""
        with self._opened() as container:
            stream = container.streams[self._stream.index]
            times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        lasted = (max(times) - min(times)) * self._stream.time_base if times else 0
        return (Fraction(len(times) - 1) / lasted).limit_denominator(1001) if lasted else Fraction(25)

    def _count(self) -> int | None:
        if self._stream.frames:
            return int(self._stream.frames)
        lasted = self._lasted()
        return round(lasted * self.rate) if lasted else None

    def _lasted(self) -> Fraction | None:
        """Seconds of the pictures, as Matroska notes them; else those of the file, whose sound may be longer."""
        noted = LASTED.fullmatch(self._stream.metadata.get("DURATION", ""))
        if noted:
            hours, minutes, seconds = map(Fraction, noted.groups())
            return 3600 * hours + 60 * minutes + seconds
        return Fraction(self._container.duration, pyav().time_base) if self._container.duration else None

    def __iter__(self) -> Iterator[DecodedFrame | Packet[AudioStream]]:
        """Decoded frames, and packets of sound as they lie in the file, with times from the file's beginning."""
        timeline = Timeline(
            self._stream, self._start, 1 / self.rate, leaps=bool(self._container.format.flags & TIMES_MAY_LEAP)
        )
        with explained("read", self.path):
            for read in self._container.demux(self._stream, *self.audio):
                for packet in timeline.place(read):
                    yield from self._items(packet)
            for packet in timeline.rest():
                yield from self._items(packet)

    def _items(self, packet: Packet[Any]) -> Iterator[DecodedFrame | Packet[AudioStream]]:
        if packet.stream is self._stream:
            yield from self._frames(packet)
        elif packet.dts is not None:
            yield packet

    def frames(self) -> Iterator[DecodedFrame]:
        """Decoded frames only."""
        return (item for item in self if isinstance(item, DecodedFrame))

    def _frames(self, packet: Packet[Any]) -> Iterator[DecodedFrame]:
        damaged, frames = self.damaged, self._decode(packet, self._decoder)
        if self._numbers is not None and packet.dts is not None and self.damaged == damaged:
            self._numbers.append(packet.dts)
        for frame in frames:
            duration = frame.duration * self.time_base if frame.duration else None
            yield DecodedFrame(upright(frame, self._shape), self._time(frame), duration)

    def _decode(self, packet: Packet[Any], decoder: Any) -> Sequence[Any]:
        from av.error import FFmpegError

        try:
            return decoder.decode(packet)  # type: ignore[no-any-return]
        except FFmpegError as error:
            self.damaged += 1
            time = float(packet.pts * packet.time_base) if packet.pts is not None and packet.time_base else 0.0
            logger.warning("%s: left out a damaged piece about %.1f s in (%s)", self.path, time, error.strerror)
            return []

    def _time(self, frame: VideoFrame) -> Fraction:
        moment = self._numbers.popleft() if self._numbers else frame.pts
        if moment is not None:
            time = moment * self.time_base
        else:
            time = Fraction(0) if self._last is None else self._last + 1 / self.rate
        if self._last is not None and time <= self._last:
            time = self._last + self.time_base
        self._last = time
        return time

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
