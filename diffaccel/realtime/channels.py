"""Pictures for viewers: a name that a page keeps, whatever becomes of its connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable

from starlette.responses import StreamingResponse

BOUNDARY = b"frame"
MEDIA_TYPE = f"multipart/x-mixed-replace; boundary={BOUNDARY.decode()}"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NOT_A_NAME = "a session's name has 1 to 64 letters, digits, - or _"
AGAIN = 0.5
"""Seconds after which a viewer gets the picture at hand again, so that a connection that ended is noticed."""


def part(jpeg: bytes) -> bytes:
    """A picture as a part of the multipart stream."""
    head = b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (BOUNDARY, len(jpeg))
    return head + jpeg + b"\r\n"


def pictures(parts: AsyncIterator[bytes]) -> StreamingResponse:
    """A moving JPEG, which other pages may show, too: whoever has its address was given the token."""
    return StreamingResponse(parts, media_type=MEDIA_TYPE, headers={"cross-origin-resource-policy": "cross-origin"})


class Channel:
    """The latest picture under one name; used on the server's event loop.

    Where two pages have one name, as after a tab was duplicated, the newer one is shown until it leaves.
    """

    def __init__(self) -> None:
        self._latest: bytes | None = None
        self._changed = asyncio.Event()
        self._owners: list[object] = []
        self.viewers = 0

    @property
    def in_use(self) -> bool:
        """Whether somebody paints or watches."""
        return bool(self._owners or self.viewers)

    def open(self, owner: object) -> None:
        """Begin to show an owner's pictures."""
        self._owners.append(owner)

    def leave(self, owner: object) -> None:
        """Let an owner go; the last picture stays."""
        self._owners.remove(owner)

    def show(self, owner: object, jpeg: bytes) -> None:
        """Make a picture the latest, if its owner is the newest."""
        if self._owners[-1:] == [owner]:
            self._latest, changed, self._changed = jpeg, self._changed, asyncio.Event()
            changed.set()

    async def frames(self, stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Pictures as parts of a multipart stream: the latest, and every newer one, also of owners to come."""
        self.viewers += 1
        try:
            while not stopping():
                changed, jpeg = self._changed, self._latest
                if jpeg is not None:
                    yield part(jpeg)
                try:
                    await asyncio.wait_for(changed.wait(), AGAIN)
                except TimeoutError:
                    continue
        finally:
            self.viewers -= 1


class Channels:
    """Channels by name, as long as somebody uses them."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}

    @property
    def viewers(self) -> int:
        """Viewers of all channels."""
        return sum(channel.viewers for channel in self._channels.values())

    def get(self, name: str) -> Channel:
        """The channel of a name, which may be new. Raises ValueError for what is no name."""
        if not NAME.fullmatch(name):
            raise ValueError(NOT_A_NAME)
        for old in [old for old, channel in self._channels.items() if not channel.in_use]:
            del self._channels[old]
        return self._channels.setdefault(name, Channel())
