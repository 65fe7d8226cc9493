"""Sound on its way into a video file: copied bit for bit where the container takes it, else encoded anew as AAC."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from diffaccel.media.errors import pyav

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.packet import Packet

logger = logging.getLogger(__name__)

ENCODER, RATES = "aac", (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1"}
"""What is meant by a number of channels whose places the input does not tell."""
TRIED = 2
LEAST_GAP = Fraction(1, 10)
"""Seconds that sound may be early before silence is put in; less is what clocks of cameras drift by."""

ROUNDED = Fraction(2, 1000)
"""Seconds by which a time may be rounded, and moved."""


def holds(container_format: str, stream: AudioStream, path: str) -> bool:
    """Whether a container takes packets of a stream: its muxer is asked with the first ones.

    Args:
        container_format: FFmpeg's name of the container.
        stream: of the file at ``path``.
        path: where to read the packets.
    """
    from av.error import FFmpegError

    av = pyav()
    try:
        with av.open(path, metadata_errors="replace") as source, av.open(io.BytesIO(), "w", container_format) as trial:
            own = source.streams[stream.index]
            copy = trial.add_stream_from_template(own)
            trial.start_encoding()
            for number, packet in enumerate(source.demux(own)):
                if number == TRIED or packet.dts is None:
                    break
                packet.stream = copy
                trial.mux(packet)
    except (FFmpegError, ValueError):
        return False
    return True


class CopiedSound:
    """Packets as they are."""

    encoded = False

    def __init__(self, container: Any, stream: AudioStream) -> None:
        self._stream = container.add_stream_from_template(stream)
        self._stream.metadata.update(stream.metadata)
        context = stream.codec_context
        self._frame = sample_bytes(context.name) * context.layout.nb_channels  # bytes of a moment
        self._nothing, self._rate = b"\x80" if context.name == "pcm_u8" else b"\0", context.sample_rate
        self._end: Fraction | None = None

    def packets(self, packet: Packet[AudioStream]) -> Iterable[Packet[Any]]:
        """What is to be written for a packet: before plain samples, which MOV plays in a row, silence for a gap."""
        silence = self._gap(packet) if self._frame and packet.pts is not None else []
        packet.stream = self._stream
        return [*silence, packet]

    def _gap(self, packet: Packet[AudioStream]) -> list[Packet[Any]]:
        """Silence between what was written and a packet."""
        begin = packet.pts * packet.time_base  # type: ignore[operator]
        end = begin if self._end is None else self._end
        missing = int((begin - end) * self._rate) if begin - end >= LEAST_GAP else 0
        self._end = end + Fraction(missing + packet.size // self._frame, self._rate)
        if not missing:
            return []
        filled = pyav().Packet(self._nothing * (missing * self._frame))
        filled.time_base, filled.stream = packet.time_base, self._stream
        filled.pts = filled.dts = round(end / packet.time_base)
        filled.duration = packet.pts - filled.pts
        return [filled]

    def rest(self) -> Iterable[Packet[Any]]:
        """What is to be written at the end."""
        return []


def sample_bytes(codec: str) -> int:
    """Bytes of a sample of one channel, where a codec holds plain samples; 0 for others."""
    bits = re.fullmatch(r"pcm_(?:u(?=8)|[sf])(\d+)(?:[lb]e)?", codec)
    return int(bits[1]) // 8 if bits else 0


class EncodedSound:
    """Sound that is decoded, and encoded as AAC."""

    encoded = True

    def __init__(self, container: Any, stream: AudioStream) -> None:
        context = stream.codec_context
        rate = context.sample_rate if context.sample_rate in RATES else 48_000
        layout = LAYOUTS.get(context.layout.nb_channels, "stereo")
        self._stream = container.add_stream(ENCODER, rate=rate, layout=layout)
        self._stream.metadata.update(stream.metadata)
        self._end: int | None = None

    def packets(self, packet: Packet[AudioStream]) -> Iterable[Packet[Any]]:
        """What is to be written for a packet."""
        from av.error import FFmpegError

        try:
            frames = packet.decode()
        except FFmpegError as error:
            logger.warning("left out a damaged piece of sound (%s)", error.strerror)
            frames = []
        return [encoded for frame in frames for encoded in self._stream.encode(self._placed(frame))]

    def _placed(self, frame: AudioFrame) -> AudioFrame:
        """A frame whose time counts its samples: it follows the one before but for a gap, as files round times."""
        begin = end = self._end or 0
        if frame.pts is not None and frame.time_base is not None:
            begin = round(frame.pts * frame.time_base * frame.sample_rate)
        if self._end is not None and abs(begin - end) <= ROUNDED * frame.sample_rate:
            begin = end
        frame.pts, frame.time_base = begin, Fraction(1, frame.sample_rate)
        self._end = begin + frame.samples
        return frame

    def rest(self) -> Iterable[Packet[Any]]:
        """What is to be written at the end."""
        return list(self._stream.encode(None))
