"""Sound on its way into a video file: copied bit for bit where the container takes it, else encoded anew as AAC."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from diffaccel.media.errors import pyav

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet

logger = logging.getLogger(__name__)

ENCODER, RATES = "aac", (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1"}
"""What is meant by a number of channels whose places the input does not tell."""
TRIED = 2


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

    def packets(self, packet: Packet[AudioStream]) -> Iterable[Packet[Any]]:
        """What is to be written for a packet."""
        packet.stream = self._stream
        return [packet]

    def rest(self) -> Iterable[Packet[Any]]:
        """What is to be written at the end."""
        return []


class EncodedSound:
    """Sound that is decoded, and encoded as AAC."""

    encoded = True

    def __init__(self, container: Any, stream: AudioStream) -> None:
        context = stream.codec_context
        rate = context.sample_rate if context.sample_rate in RATES else 48_000
        layout = LAYOUTS.get(context.layout.nb_channels, "stereo")
        self._stream = container.add_stream(ENCODER, rate=rate, layout=layout)
        self._stream.metadata.update(stream.metadata)

    def packets(self, packet: Packet[AudioStream]) -> Iterable[Packet[Any]]:
        """What is to be written for a packet."""
        from av.error import FFmpegError

        try:
            frames = packet.decode()
        except FFmpegError as error:
            logger.warning("left out a damaged piece of sound (%s)", error.strerror)
            frames = []
        return [encoded for frame in frames for encoded in self._stream.encode(frame)]

    def rest(self) -> Iterable[Packet[Any]]:
        """What is to be written at the end."""
        return list(self._stream.encode(None))
