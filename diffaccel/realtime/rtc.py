"""WebRTC beside the WebSocket: video both ways over a link that loses packets, everything else as before.

The page's offer comes over the guarded server, for a session whose WebSocket is open. What arrives is painted like any
frame, and only the newest; pictures go back as a video track. Both ends talk to each other directly, without servers
in between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from typing import Any

from diffaccel.media.errors import MediaError, need
from diffaccel.realtime import protocol

logger = logging.getLogger(__name__)

CLOCK = 90_000
"""Ticks a second of video times in RTP."""
LARGEST_OFFER = 2**16
UNNUMBERED = 0
"""Of frames of a video, which are acknowledged to nobody: those that a page numbers begin at 1."""
Offer = Callable[[protocol.FrameMessage], None]


def library() -> Any:
    """The aiortc library. Raises `MediaError` that names the extra."""
    return need("aiortc", extra="webrtc", purpose="WebRTC")


class Peer:
    """The other end of one session's video; used on the server's event loop.

    Args:
        offer: takes a frame that arrived.
    """

    def __init__(self, offer: Offer) -> None:
        self._aiortc = library()
        self._offer = offer
        self._connection = self._aiortc.RTCPeerConnection(self._aiortc.RTCConfiguration(iceServers=[]))
        self._pictures = _outgoing(self._aiortc.MediaStreamTrack)()
        self._arriving: asyncio.Task[None] | None = None
        self._connection.on("track", self._take)

    async def answer(self, sdp: str) -> str:
        """The answer to an offer.

        Raises:
            MediaError: for an offer that is none, or has no video.
        """
        if len(sdp) > LARGEST_OFFER:
            raise MediaError(f"an offer has at most {LARGEST_OFFER} characters, this one {len(sdp)}")
        try:
            await self._connection.setRemoteDescription(self._aiortc.RTCSessionDescription(sdp, "offer"))
            if self._arriving is None:
                raise ValueError("it has no video")
            self._connection.addTrack(self._pictures)
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except (ValueError, AttributeError, IndexError, KeyError, self._aiortc.InvalidStateError) as error:
            await self.close()
            raise MediaError(f"this is no offer of video: {error}") from error
        text: str = self._connection.localDescription.sdp
        return text

    @property
    def connected(self) -> bool:
        """Whether video flows."""
        return bool(self._connection.connectionState == "connected")

    def show(self, jpeg: bytes) -> None:
        """Send a picture; one that waits is replaced."""
        self._pictures.show(jpeg)

    def _take(self, track: Any) -> None:
        if track.kind == "video" and self._arriving is None:
            self._arriving = asyncio.create_task(self._receive(track))

    async def _receive(self, track: Any) -> None:
        """Offer frames to the network until the other end stops."""
        with suppress(self._aiortc.mediastreams.MediaStreamError, asyncio.CancelledError):
            while True:
                frame = await track.recv()
                if max(frame.width, frame.height) <= protocol.LARGEST_SIDE:
                    self._offer(protocol.FrameMessage(UNNUMBERED, protocol.encode(frame.to_ndarray(format="rgb24"))))

    async def close(self) -> None:
        """End it. Closing twice is harmless."""
        if self._arriving is not None:
            self._arriving.cancel()
        self._pictures.stop()
        await self._connection.close()


def _outgoing(base: Any) -> Any:
    """The class of a track of pictures: the newest one, when there is a newer one."""

    class Outgoing(base):  # type: ignore[misc]
        kind = "video"

        def __init__(self) -> None:
            super().__init__()
            self._jpeg: bytes | None = None
            self._changed, self._began = asyncio.Event(), time.monotonic()

        def show(self, jpeg: bytes) -> None:
            self._jpeg = jpeg
            self._changed.set()

        async def recv(self) -> Any:
            from av import VideoFrame

            await self._changed.wait()
            self._changed.clear()
            assert self._jpeg is not None
            frame = VideoFrame.from_ndarray(protocol.decode(self._jpeg), format="rgb24")
            frame.pts, frame.time_base = int((time.monotonic() - self._began) * CLOCK), Fraction(1, CLOCK)
            return frame

    return Outgoing
