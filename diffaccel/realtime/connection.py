"""One WebSocket: frames in, pictures out, and never more than two of either on the way.

Everything that waits to be sent is a slot for one value, and a newer one replaces it. So a client that reads slowly
gets fewer pictures, not older ones, and costs no memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import MutableMapping
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from diffaccel.config.words import what_is_wrong
from diffaccel.realtime import protocol
from diffaccel.realtime.channels import Channel
from diffaccel.realtime.client import Client, Message, Notice
from diffaccel.realtime.hub import Hub

if TYPE_CHECKING:
    from diffaccel.realtime.rtc import Peer

logger = logging.getLogger(__name__)

STATS_EVERY = 0.5
FORGOTTEN_AFTER = 120.0
"""Seconds without a frame or a change after which a place may be given to somebody else."""
FORGOTTEN = 4001
"""Close code of a connection whose place was given to somebody else."""
NOBODY_PAINTED = "Nothing was painted here for a while, and somebody else needed the place."


class Connection:
    """A client that was let in; `run` lasts until it leaves.

    Args:
        socket: accepted.
        hub: which it joins.
        name: the page's.
        channel: of that name, for viewers.

    Attributes:
        loop: the event loop that it runs on.
    """

    def __init__(self, socket: WebSocket, hub: Hub, name: str, channel: Channel) -> None:
        self._socket, self._hub, self.name, self._channel = socket, hub, name, channel
        self.loop = asyncio.get_running_loop()
        self._notices: dict[str, Notice] = {}
        self._picture: protocol.PictureMessage | None = None
        self._taken: protocol.Taken | None = None
        self._unshown: deque[int] = deque()
        self._wake = asyncio.Event()
        self.session: Client = hub.join(self._post)
        self._peer: Peer | None = None
        self._heard, self._gave_up = monotonic(), False

    @property
    def silence(self) -> float:
        """Seconds since its last frame or change; 0 while somebody watches its pictures, and once its place is gone."""
        return 0.0 if self._gave_up or self._channel.viewers else monotonic() - self._heard

    def give_up(self) -> None:
        """Leave the place to somebody else, which is said."""
        self._gave_up = True
        self._hub.leave(self.session)
        self._accept(Notice("problem", {"kind": "forgotten", "message": NOBODY_PAINTED}))

    def _offer(self, frame: protocol.FrameMessage) -> None:
        self._heard = monotonic()
        self._hub.offer(self.session, frame)

    def _post(self, message: Message) -> None:
        """Take a message of the hub, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self.loop.call_soon_threadsafe(self._accept, message)

    def _accept(self, message: Message) -> None:
        if isinstance(message, protocol.Taken):
            self._taken = message
        elif isinstance(message, Notice):
            self._notices[message.type] = message
        else:
            self._channel.show(self, message.jpeg)
            if self._peer is not None and self._peer.connected:
                self._peer.show(message.jpeg)
                return
            self._picture = message
        self._wake.set()

    async def answer(self, sdp: str) -> str:
        """Send pictures, and take frames, over WebRTC from now on. Raises `MediaError` for what is no offer."""
        from diffaccel.realtime.rtc import Peer

        if self._peer is not None:
            await self._peer.close()
        self._peer = Peer(self._offer)
        return await self._peer.answer(sdp)

    async def run(self, hello: dict[str, Any]) -> None:
        """Talk until the client leaves."""
        self._channel.open(self)
        tasks = [asyncio.create_task(work) for work in (self._receive(), self._send(hello), self._tell())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hub.leave(self.session)
            self._channel.leave(self)
            if self._peer is not None:
                await self._peer.close()
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                    logger.debug("session %s ended", self.session.id, exc_info=result)

    async def _receive(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                self._handle(message)
            except protocol.BadMessage as error:
                self.session.tally.add("rejected")
                self._accept(Notice("problem", {"kind": "message", "message": str(error)}))
            except ValidationError as error:
                self._accept(Notice("problem", {"kind": "controls", "message": words(error)}))
                self._accept(self.session.as_asked())

    def _handle(self, message: MutableMapping[str, Any]) -> None:
        if message.get("text") is not None:
            self._hub.change(self.session, protocol.parse_text(message["text"]))
            self._heard = monotonic()
            return
        parsed = protocol.parse_binary(message["bytes"])
        if isinstance(parsed, protocol.FrameMessage):
            self._offer(parsed)
            return
        while self._unshown and self._unshown[0] <= parsed.id:
            self._unshown.popleft()
        self._wake.set()

    async def _send(self, hello: dict[str, Any]) -> None:
        await self._socket.send_json({"type": "hello", **hello})
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._taken is not None:
                taken, self._taken = self._taken, None
                await self._socket.send_bytes(taken.pack())
            while self._notices:
                notice = self._notices.pop(next(iter(self._notices)))
                await self._socket.send_json({"type": notice.type, **notice.values})
            if self._gave_up:
                await self._socket.close(FORGOTTEN)
                return
            if self._picture is not None and len(self._unshown) < protocol.WINDOW:
                picture, self._picture = self._picture, None
                self._unshown.append(picture.id)
                await self._socket.send_bytes(picture.pack())

    async def _tell(self) -> None:
        """How it goes, now and then."""
        while True:
            await asyncio.sleep(STATS_EVERY)
            here = {"sessions": self._hub.count, "limit": self._hub.limit, "viewers": self._channel.viewers}
            values = {**self.session.tally.to_dict(), **here, "pace": self.session.pace}
            self._accept(Notice("stats", values))


def words(error: ValidationError) -> str:
    """A validation error in one sentence."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {what_is_wrong(first)}"
