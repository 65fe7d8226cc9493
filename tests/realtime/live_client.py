"""A Python client of the live server, and a stub network to put behind it."""

from __future__ import annotations

import io
import json
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from diffaccel.realtime import protocol
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import Controls
from diffaccel.stream.report import StreamOutput

SIZE = 64
SMALL = struct.Struct("<BxxxI")  # kind, number


def pack_frame(number: int, data: bytes) -> bytes:
    """FRAME."""
    return SMALL.pack(1, number) + data


def jpeg(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (SIZE, SIZE), **options: Any) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


class StubStream:
    """Inverts pictures. ``seconds`` is how long the network takes; ``trouble`` may raise, or return True for NaN."""

    pace = ""

    def __init__(
        self, controls: Controls, seconds: float = 0.0, trouble: Callable[[int], bool] = lambda _: False
    ) -> None:
        self.seconds, self.trouble = seconds, trouble
        self.frames_in_flight = self.not_finite = 0
        self.closed = False
        self.controls = controls

    def push(self, image: np.ndarray, *, frame_id: int) -> list[StreamOutput]:
        time.sleep(self.seconds)
        if self.trouble(frame_id):
            self.not_finite += 1
            return []
        return [StreamOutput(Image.fromarray(255 - image), frame_id)]

    def flush(self) -> list[StreamOutput]:
        return []

    def configure(self, controls: Controls) -> None:
        if controls.prompt == "impossible":
            raise ValueError("no such thing: try another prompt")
        self.controls = controls

    def remark(self, controls: Controls) -> str:
        return "the end is not read" if "very long" in controls.prompt else ""

    def close(self) -> None:
        self.closed = True


@contextmanager
def serving(
    open_stream: Callable[[Controls], Any] = StubStream, *, limit: int = 4, **options: Any
) -> Iterator[LiveServer]:
    """A server on a free port."""
    about = {"model": "stub", "width": SIZE, "height": SIZE}
    settings = ServerOptions(port=0, token="secret", **options)
    with Hub(open_stream, limit=limit) as hub, LiveServer(hub, settings, about) as server:
        yield server


class Client:
    """Sends frames and reads answers, in order."""

    def __init__(
        self,
        server: LiveServer,
        *,
        token: str = "secret",
        origin: str | None = "own",
        session: str | None = None,
        **options: Any,
    ) -> None:
        own = f"http://127.0.0.1:{server.port}"
        self._opened = connect(
            f"ws://127.0.0.1:{server.port}/ws?token={token}" + (f"&session={quote(session)}" if session else ""),
            origin=own if origin == "own" else origin,  # type: ignore[arg-type]
            compression=None,
            open_timeout=20,
            **options,
        )
        self.socket: ClientConnection = self._opened.__enter__()
        self._next = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.__exit__(None, None, None)

    def frame(self, data: bytes | None = None) -> int:
        """Send a frame; its number."""
        self._next += 1
        self.socket.send(pack_frame(self._next, jpeg() if data is None else data))
        return self._next

    def shown(self, number: int) -> None:
        self.socket.send(SMALL.pack(2, number))

    def controls(self, **values: Any) -> None:
        self.socket.send(json.dumps({"type": "controls", "values": values}))

    def read(self, timeout: float = 20) -> Any:
        """The next message: a Picture, a Taken, or a dictionary."""
        message = self.socket.recv(timeout)
        if isinstance(message, str):
            return json.loads(message)
        if message[0] == 1:
            return protocol.PictureMessage.unpack(message)
        return protocol.Taken.unpack(message)

    def wait(self, wanted: str | type, timeout: float = 20) -> Any:
        """The next picture (`protocol.Picture`) or JSON message of a type; others are passed over."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            message = self.read(left)
            if isinstance(wanted, type) and isinstance(message, wanted):
                return message
            if isinstance(message, dict) and message["type"] == wanted:
                return message
        raise TimeoutError(f"no {wanted}")

    def picture(self) -> protocol.PictureMessage:
        """The next picture, acknowledged."""
        picture: protocol.PictureMessage = self.wait(protocol.PictureMessage)
        self.shown(picture.id)
        return picture


def colour(picture: protocol.PictureMessage) -> list[int]:
    """Mean colour."""
    return np.asarray(protocol.decode(picture.jpeg)).mean((0, 1)).round().astype(int).tolist()


def until(condition: Callable[[], Any], seconds: float = 30, trouble: str = "it did not become true") -> None:
    """Wait for a condition, which must come true in time; `trouble` is what is wrong otherwise."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{trouble} within {seconds:g} s"
        time.sleep(0.01)


def get(server: LiveServer, path: str, **headers: str) -> tuple[int, str, Any]:
    """Status, text and headers of what the server answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def parts(request: Any) -> Iterator[Any]:
    """Mean colours of the pictures of a multipart stream."""
    while head := b"".join(iter(request.readline, b"\r\n")):
        data = request.read(int(head.split(b"Content-Length: ")[1]))
        request.readline()
        yield protocol.decode(data).mean((0, 1)).round().astype(int)
