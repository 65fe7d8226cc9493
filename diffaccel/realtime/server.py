"""The live server: the page, its WebSocket, `/mjpeg` for OBS, `/health`, and `/metrics` for Prometheus."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from diffaccel.media.errors import MediaError
from diffaccel.realtime import address, protocol
from diffaccel.realtime.channels import Channels, pictures
from diffaccel.realtime.connection import FORGOTTEN_AFTER, Connection, words
from diffaccel.realtime.controls import FOLLOWED_BY_CLIPS, Controls
from diffaccel.realtime.guard import Guard
from diffaccel.realtime.hub import Hub, HubFull

PAGE = Path(__file__).with_name("page")
TRY_AGAIN_LATER, REFUSED = 1013, 1008
ACCEPTED = 202
ANSWERS_WITHIN = 10.0
"""Seconds for which a change over HTTP waits to be followed or refused; loading another model can take longer."""
MOST_VIEWERS = 16


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How the server is reached.

    Attributes:
        host, port: where to listen; port 0 takes any that is free.
        token: secret of the URL.
        allow_hosts: host names, besides the machine's own, that it may be reached by.
        webrtc: whether pages may send and get video over WebRTC.
        certificate, key: PEM files for https, which browsers ask for before they lend a camera to another machine.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)
    allow_hosts: tuple[str, ...] = ()
    webrtc: bool = False
    certificate: Path | None = None
    key: Path | None = None

    def url(self, port: int) -> str:
        """The page's address at a port, with its token."""
        scheme = "https" if self.certificate else "http"
        return address.url(self.host, port, "/", token=self.token, scheme=scheme)


class LiveApp:
    """A hub behind the routes of a live server.

    Args:
        hub: the network and its sessions.
        options: how it is reached.
        about: what the page is told about the model: ``model``, ``width`` and ``height``.
    """

    stopping = False

    def __init__(self, hub: Hub, options: ServerOptions, about: Mapping[str, Any]) -> None:
        self.hub, self.options, self.about = hub, options, dict(about)
        self.connections: dict[str, Connection] = {}
        self.channels = Channels()

    def guarded(self) -> Guard:
        """The routes, for those who may come in."""
        return Guard(
            build_app(self),
            token=self.options.token,
            host=self.options.host,
            names=self.options.allow_hosts,
            refused=lambda reason: self.hub.metrics.refused.labels(reason).inc(),
        )

    async def talk(self, websocket: WebSocket) -> None:
        """One client, from its arrival to its end."""
        await websocket.accept()
        name = websocket.query_params.get("session") or secrets.token_urlsafe(6)
        self._make_room()
        try:
            channel = self.channels.get(name)
            connection = Connection(websocket, self.hub, name, channel)
        except (HubFull, ValueError) as error:
            kind, code = ("busy", TRY_AGAIN_LATER) if isinstance(error, HubFull) else ("name", REFUSED)
            await websocket.send_json({"type": "problem", "kind": kind, "message": str(error)})
            await websocket.close(code, kind)
            return
        self.connections[connection.session.id] = connection
        hello = {
            **self.about,
            "session": name,
            "webrtc": self.options.webrtc,
            "controls": self.hub.controls.model_dump(),
        }
        try:
            await connection.run({**hello, "window": protocol.WINDOW, "largest": protocol.LARGEST_MESSAGE})
        finally:
            del self.connections[connection.session.id]

    def _make_room(self) -> None:
        """Where every place is taken, take that of the page that was silent for longest, if it was for long enough."""
        if self.hub.count < self.hub.limit:
            return
        silent = max(self.connections.values(), key=lambda each: each.silence, default=None)
        if silent is not None and silent.silence >= FORGOTTEN_AFTER:
            silent.give_up()

    def painting(self, name: str | None) -> Connection:
        """The connection that paints under a name; without one, the only one. Raises `HTTPException` otherwise."""
        if name is None and not self.connections:
            raise HTTPException(404, "nobody paints now: open the page first")
        if name is None and len(self.connections) > 1:
            raise HTTPException(409, f"{len(self.connections)} people are here: add &session=... from the page")
        found = [each for each in list(self.connections.values()) if name in (None, each.name)]
        if not found:
            raise HTTPException(404, f"nobody paints as {name} now: open its page, or take the name that it shows")
        return found[-1]

    def change(self, name: str | None, values: Mapping[str, Any]) -> int:
        """Change controls of everyone who paints under a name (None: of everyone); how many they are.

        Raises:
            pydantic.ValidationError: for unknown names and values out of range.
        """
        found = [each.session for each in list(self.connections.values()) if name in (None, each.name)]
        for session in found:
            self.hub.change(session, dict(values))
        return len(found)

    def followed(self, name: str | None, values: Mapping[str, Any]) -> tuple[Controls, bool]:
        """Change controls of who paints under a name, as `painting`; with the change, and whether it is followed yet.

        Raises `HTTPException` where it cannot be.
        """
        client = self.painting(name).session
        try:
            asked = self.hub.change(client, dict(values))
        except ValidationError as error:
            raise HTTPException(422, words(error)) from error
        refused = client.answer(asked, ANSWERS_WITHIN)
        if refused:
            raise HTTPException(422, refused)
        return client.asked, refused is not None

    def stream(self, name: str | None) -> Response:
        """`/mjpeg`: a name's pictures, of this connection and of those that come later."""
        try:
            channel = self.channels.get(self.painting(None).name if name is None else name)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        if self.channels.viewers >= MOST_VIEWERS:
            raise HTTPException(503, f"{MOST_VIEWERS} programs watch already, which is the limit")
        return pictures(channel.frames(lambda: self.stopping))


class LiveServer(LiveApp):
    """Serves a hub; `run` until it is told to stop, or with ``with`` on a thread of its own.

    Args:
        hub: the network and its sessions.
        options: how it is reached.
        about: what the page is told about the model: ``model``, ``width`` and ``height``.
        listener: what `address.listen` returned for the options; None to call it now.

    Raises:
        MediaError: where the port is taken or not allowed.
    """

    def __init__(
        self, hub: Hub, options: ServerOptions, about: Mapping[str, Any], listener: socket.socket | None = None
    ) -> None:
        super().__init__(hub, options, about)
        self._socket = listener or address.listen(options.host, options.port, another="--port 0, any that is free")
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(self._config())
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True, name="live")

    @property
    def url(self) -> str:
        """The page's address, with its token."""
        return self.options.url(self.port)

    def _config(self) -> uvicorn.Config:
        options = self.options
        return uvicorn.Config(
            self.guarded(),
            ws="websockets-sansio",
            ws_max_size=protocol.LARGEST_MESSAGE,
            ws_per_message_deflate=False,
            ws_ping_interval=2,
            ws_ping_timeout=6,
            lifespan="off",
            log_level="error",
            server_header=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=options.certificate,
            ssl_keyfile=options.key,
        )

    @property
    def stopping(self) -> bool:  # type: ignore[override]
        """Whether it was told to stop."""
        return self._server.should_exit

    def run(self, *, browser: bool = False) -> None:
        """Serve until Ctrl-C or SIGTERM.

        Args:
            browser: open the page once it can be reached.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when everything is closed.
        """
        if browser:
            threading.Timer(0.3, webbrowser.open, [self.url]).start()
        try:
            self._server.run([self._socket])
        finally:
            self._socket.close()

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def _no_object(_request: Request, _error: Exception) -> Response:
    """The answer to a body that is no JSON object."""
    return JSONResponse({"detail": 'send a JSON object, as in {"strength": 0.7}'}, 422)


def build_app(server: LiveApp) -> FastAPI:
    """The routes."""
    app = FastAPI(openapi_url=None)
    app.add_exception_handler(RequestValidationError, _no_object)
    hub = server.hub
    app.add_api_websocket_route("/ws", server.talk)
    app.mount("/page", StaticFiles(directory=PAGE))

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/view")
    def view() -> FileResponse:
        return FileResponse(PAGE / "view.html")

    @app.get("/schema")
    def schema() -> JSONResponse:
        drawn = type(hub.controls).model_json_schema()
        for name, value in hub.controls.model_dump().items():  # also a server that is full begins with its own
            drawn["properties"][name]["default"] = value
        return JSONResponse({**drawn, "about": {**server.about, "followed_by_clips": FOLLOWED_BY_CLIPS}})

    @app.get("/health")
    def health() -> JSONResponse:
        state = {"status": "ok" if hub.alive else "stopped", "sessions": hub.count, "max_sessions": hub.limit}
        return JSONResponse(state, 200 if hub.alive else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(hub.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/controls")
    def controls(session: str | None = None) -> dict[str, Any]:
        return server.painting(session).session.asked.model_dump()

    @app.patch("/controls")
    def change(values: dict[str, Any], response: Response, session: str | None = None) -> dict[str, Any]:
        asked, followed = server.followed(session, values)
        response.status_code = 200 if followed else ACCEPTED
        return asked.model_dump()

    @app.post("/rtc")
    async def rtc(offer: dict[str, Any], session: str | None = None) -> dict[str, str]:
        if not server.options.webrtc:
            raise HTTPException(404, "this program was started without --webrtc")
        try:
            return {"type": "answer", "sdp": await server.painting(session).answer(str(offer.get("sdp")))}
        except MediaError as error:
            raise HTTPException(422, str(error)) from error

    @app.get("/mjpeg")
    async def mjpeg(session: str | None = None) -> Response:
        return server.stream(session)

    return app
