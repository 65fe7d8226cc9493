"""What client and server say to each other over one WebSocket: small binary messages for pictures, JSON for the rest.

Little endian. ``id`` numbers are the client's own; the server only gives them back.

    client -> server    FRAME    u8 1, 3 unused, u32 id, JPEG       a frame to paint
                        SHOWN    u8 2, 3 unused, u32 id             this picture is on the screen: send another
                        {"type": "controls", "values": {...}}       change some controls
    server -> client    PICTURE  u8 1, u8 flags, 2 unused, u32 id, f32 network ms, f32 busy ms, JPEG
                        TAKEN    u8 2, 3 unused, u32 id, f32 ms     frames up to this one are taken: send another,
                                                                    as the network is free again in so many ms
                        {"type": "hello" | "controls" | "stats" | "problem", ...}

A "problem" has a ``kind`` and a ``message`` for a person. After "busy" the server closes with 1013 (no place is free),
after "name" with 1008, after "forgotten" with 4001 (nothing came for long, and somebody else needed the place).

Both sides keep at most `WINDOW` messages unacknowledged, so nothing piles up in any buffer between them. The server
takes a frame the moment the network is free, or replaces it by a newer one. So a client that wants no frame to wait
sends the next one just before the network is free, and a newer one if that was too early.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg

WINDOW = 2
LARGEST_MESSAGE = 2**20
LARGEST_SIDE = 2048
MOST_SCANS = 12
"""A progressive JPEG has about ten; one with thousands would keep the decoder busy for minutes."""

_SEVERAL = re.compile(rb"\xff\xe2..MPF\x00", re.DOTALL)  # the table of contents of a Multi-Picture file
_FRAME, _MARK = 1, 2
_SMALL = struct.Struct("<BxxxI")
_TAKEN = struct.Struct("<BxxxIf")
_PICTURE = struct.Struct("<BBxxIff")
_SKIPPED = 1


class BadMessage(ValueError):
    """A message that cannot be used; the text says why."""


@dataclass(frozen=True)
class FrameMessage:
    """A frame of a client: its number, and a JPEG whose header was read."""

    id: int
    jpeg: bytes


@dataclass(frozen=True)
class Shown:
    """A client has shown the picture of this number, and every earlier one."""

    id: int


@dataclass(frozen=True)
class Taken:
    """Frames up to this number were taken by the network, or replaced by a newer one.

    Attributes:
        id: number of the frame.
        free_ms: milliseconds until the network can probably take another one, from when this is sent.
    """

    id: int
    free_ms: float

    def pack(self) -> bytes:
        """As it is sent."""
        return _TAKEN.pack(_MARK, self.id, self.free_ms)

    @classmethod
    def unpack(cls, data: bytes) -> Taken:
        """What `pack` made, for clients."""
        return cls(*_TAKEN.unpack(data)[1:])


@dataclass(frozen=True)
class PictureMessage:
    """A painted frame.

    Attributes:
        id: number of the frame.
        jpeg: the picture.
        skipped: whether the similarity filter showed the last picture again.
        network_ms: milliseconds of the last tick of the network, autoencoder included.
        busy_ms: milliseconds of all ticks that this frame took part in, one a stage.
    """

    id: int
    jpeg: bytes
    skipped: bool
    network_ms: float
    busy_ms: float

    def pack(self) -> bytes:
        """As it is sent."""
        flags = _SKIPPED if self.skipped else 0
        return _PICTURE.pack(_FRAME, flags, self.id, self.network_ms, self.busy_ms) + self.jpeg

    @classmethod
    def unpack(cls, data: bytes) -> PictureMessage:
        """What `pack` made, for clients."""
        _, flags, number, network_ms, busy_ms = _PICTURE.unpack_from(data)
        return cls(number, data[_PICTURE.size :], bool(flags & _SKIPPED), network_ms, busy_ms)


def parse_binary(data: bytes) -> FrameMessage | Shown:
    """FRAME or SHOWN of a client. Raises `BadMessage`."""
    if len(data) < _SMALL.size:
        raise BadMessage(f"a binary message has at least {_SMALL.size} bytes, this one {len(data)}")
    kind, number = _SMALL.unpack_from(data)
    if kind == _MARK:
        return Shown(number)
    if kind != _FRAME:
        raise BadMessage(f"unknown binary message of type {kind}: 1 is a frame, 2 says that a picture was shown")
    jpeg = data[_SMALL.size :]
    check_jpeg(jpeg)
    return FrameMessage(number, jpeg)


def parse_text(text: str) -> dict[str, Any]:
    """The controls that a client's JSON message changes, with their values. Raises `BadMessage`."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise BadMessage("a text message must be JSON") from None
    values = message.get("values") if isinstance(message, dict) and message.get("type") == "controls" else None
    if not isinstance(values, dict):
        raise BadMessage('a text message must be {"type": "controls", "values": {...}}')
    return values


def check_jpeg(data: bytes) -> None:
    """Read a JPEG's header, and nothing more. Raises `BadMessage` for another format, and for one that is too large."""
    if data[:3] != b"\xff\xd8\xff":
        raise BadMessage("a frame must be a JPEG")
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise BadMessage(f"a frame must be a JPEG: {error}") from None
    if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
        raise BadMessage(f"a frame has at most {LARGEST_SIDE} x {LARGEST_SIDE} pixels, this one {width} x {height}")
    if _SEVERAL.search(data[: data.find(b"\xff\xda")]):
        raise BadMessage("a frame is one picture, this file holds several (MPO)")
    if data.count(b"\xff\xda") > MOST_SCANS:
        raise BadMessage(f"a frame has at most {MOST_SCANS} scans: save it as an ordinary JPEG")


def decode(jpeg: bytes) -> np.ndarray:
    """Pixels ``(H, W, 3)`` uint8 RGB of a JPEG that `check_jpeg` passed. Raises `BadMessage` where it is damaged."""
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    except ValueError as error:
        raise BadMessage(f"a damaged JPEG: {error}") from None
    return pixels


def encode(pixels: np.ndarray, quality: int = 90) -> bytes:
    """JPEG of ``(H, W, 3)`` uint8 RGB, colours at full resolution."""
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "444")
    return jpeg
