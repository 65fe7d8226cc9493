"""Moving JPEG over HTTP, for OBS, VLC and browsers: everyone gets the latest picture, nobody waits for the slowest."""

from __future__ import annotations

import asyncio
import secrets
import threading
from typing import Self

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from diffaccel.realtime.address import listen, url
from diffaccel.realtime.channels import Channel, pictures
from diffaccel.realtime.guard import Guard
from diffaccel.realtime.protocol import encode

HOST = "127.0.0.1"


class MjpegServer:
    """Serves ``/mjpeg``, on this machine only and to whoever knows the token in its URL.

    Args:
        port: where to listen; 0 for any that is free.
        token: secret of the URL; None for a random one.

    Raises:
        MediaError: where the port is taken or not allowed.
    """

    PORT = 8090

    def __init__(self, *, port: int, token: str | None) -> None:
        self.token = token or secrets.token_urlsafe(16)
        self._socket = listen(HOST, port, another="mjpeg:8091")
        self.port: int = self._socket.getsockname()[1]
        self.url = url(HOST, self.port, "/mjpeg", token=self.token)
        self._channel = Channel()
        self._channel.open(self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._server, self._thread = self._uvicorn(), threading.Thread(target=self._run, daemon=True, name="mjpeg")

    def _uvicorn(self) -> uvicorn.Server:
        app = Starlette(routes=[Route("/mjpeg", self._respond)])
        guarded = Guard(app, token=self.token, host=HOST, refused=lambda _: None)
        config = uvicorn.Config(
            guarded, log_level="error", lifespan="off", server_header=False, timeout_graceful_shutdown=1
        )
        return uvicorn.Server(config)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        await self._server.serve(sockets=[self._socket])

    async def _respond(self, _: Request) -> Response:
        return pictures(self._channel.frames(lambda: self._server.should_exit))

    def start(self) -> None:
        """Begin to serve, on a thread of its own."""
        self._thread.start()
        self._ready.wait()

    def show(self, pixels: np.ndarray) -> None:
        """Make a picture ``(H, W, 3)`` uint8 the latest; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._channel.show, self, encode(pixels))

    def close(self) -> None:
        """Hang up and free the port. Closing twice is harmless."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
