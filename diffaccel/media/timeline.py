"""Times of joined files: where those of the second begin again, they go on from the end of the first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.packet import Packet

logger = logging.getLogger(__name__)

APART = Fraction(1, 8000)
"""Seconds between two packets of sound that would be at one time: a sample of the slowest sound, as MP4 counts them."""
FINE = Fraction(1, 1_000_000)
LONGEST_GAP = Fraction(10)
"""Seconds that a transport stream may leap ahead: where more is missing, its times began anew (as in FFmpeg)."""


class Timeline:
    """Shifts packets so that times start at 0 and never fall back.

    All streams are shifted alike, so that sound stays with its picture. Where times fall back, the first picture of the
    new part follows the last of the old one after that one's duration; sound that comes before it waits for it here.

    Args:
        video: the stream of pictures.
        start: the file's own start, in seconds.
        step: seconds between pictures, where they do not tell their duration.
        leaps: whether times may leap ahead where files were joined, as in transport streams.
    """

    def __init__(self, video: Any, start: Fraction, step: Fraction, *, leaps: bool) -> None:
        self._video, self._step, self._leaps = video, step, leaps
        self._shift = start
        self._decoded: dict[int, Fraction] = {}
        self._sounded: dict[int, Fraction] = {}
        self._end = Fraction(0)
        self._held: list[Packet[Any]] | None = None

    def place(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """The packet with its new times, and others that waited for it."""
        if packet.dts is None:
            yield packet
            return
        own = packet.dts * packet.time_base
        index = packet.stream.index
        if self._held is None and self._begins_anew(index, own):
            logger.warning("times begin anew after %.2f s: they go on from there", float(self._end))
            self._held = []
            self._decoded.clear()
        self._decoded[index] = own
        if self._held is None:
            yield self._shifted(packet)
        elif packet.stream is self._video:
            first = packet.dts if packet.pts is None else packet.pts
            self._shift = first * packet.time_base - self._end
            held, self._held = self._held, None
            for each in (packet, *held):
                yield self._shifted(each)
        else:
            self._held.append(packet)

    def rest(self) -> Iterator[Packet[Any]]:
        """Sound that waited for a picture that never came."""
        held, self._held = self._held or [], None
        if held:
            self._shift = held[0].dts * held[0].time_base - self._end  # type: ignore[operator]
        yield from map(self._shifted, held)

    def _begins_anew(self, index: int, own: Fraction) -> bool:
        before = self._decoded.get(index)
        if before is None:
            return False
        return own < before - self._step / 2 or (self._leaps and own > before + LONGEST_GAP)

    def _shifted(self, packet: Packet[Any]) -> Packet[Any]:
        shift = round(self._shift / packet.time_base)
        packet.dts = packet.dts - shift  # type: ignore[operator]
        if packet.pts is not None:
            packet.pts = packet.pts - shift
        if packet.stream is not self._video:
            return self._apart(packet)
        if packet.pts is not None:
            length = packet.duration * packet.time_base if packet.duration else self._step
            self._end = max(self._end, packet.pts * packet.time_base + length)
        return packet

    def _apart(self, packet: Packet[Any]) -> Packet[Any]:
        """Sound at a time of its own: that of a new part may begin before the old one's end, and Matroska rounds times.

        A packet is moved by less than lies between two, so that those after it stay where they belong.
        """
        index, time = packet.stream.index, packet.dts * packet.time_base  # type: ignore[operator]
        last = self._sounded.get(index)
        if last is not None and time <= last:
            time = last + APART
            moved, scale = round(time / FINE), packet.time_base / FINE
            packet.pts = None if packet.pts is None else max(round(packet.pts * scale), moved)
            packet.duration = round((packet.duration or 0) * scale)
            packet.dts, packet.time_base = moved, FINE
        self._sounded[index] = time
        return packet
