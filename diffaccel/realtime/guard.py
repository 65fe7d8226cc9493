"""Who may come in: the right Host, the right Origin, the token of the URL, and no body without end.

A web page of a stranger can open WebSockets to this machine, and a name that resolves to 127.0.0.1 makes such a page
same-origin (DNS rebinding). CORS does not cover either, so both headers are checked here, before anything else runs.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = dict[str, Any]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_PATHS = frozenset({"/", "/view", "/health"})
"""Paths that need no token, besides the page's own files: they tell nothing and change nothing."""
FILES = "/page/"
LONGEST = 1 << 20
"""Bytes of the longest request; frames come over a WebSocket, which has a limit of its own."""

HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
     b"connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)  # fmt: skip


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        token: secret of the URL.
        host: address that the server listens on. One other than loopback is reached by its addresses and host name.
        names: further host names, such as a reverse proxy's.
        refused: called with the reason of every refusal: "host", "origin", "token" or "size".
    """

    def __init__(
        self, app: Any, *, token: str, host: str, names: Iterable[str] = (), refused: Callable[[str], None]
    ) -> None:
        self._app, self._token, self._refused = app, token, refused
        self._local = host in LOOPBACK
        own = LOOPBACK if self._local else LOOPBACK | {host, socket.gethostname().lower()}
        self._names = own | {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        reason = self._reason(scope)
        if reason is None:
            await self._app(scope, receive, send if scope["type"] == "websocket" else _with_headers(send))
            return
        self._refused(reason)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        status = 413 if reason == "size" else 403
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": WORDS[reason].encode()})

    def _reason(self, scope: Scope) -> str | None:
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        origins = [value for name, value in headers if name == "origin"]
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return "host"
        if (origins or scope["type"] == "websocket") and not _same(origins, hosts[0]):
            return "origin"
        path = scope["path"]
        if scope["type"] == "websocket" or not (path in OPEN_PATHS or path.startswith(FILES)):
            given = _token(scope, headers)
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                return "token"
        return "size" if _is_long(headers) else None

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in self._names or (not self._local and _is_address(name))


WORDS = {
    "host": "This address is not the one the program printed. Behind a proxy, start it with --allow-host NAME.",
    "origin": "Another web page asked for this, so it was refused.",
    "token": "The token in the address is wrong or missing: open the address that the program printed.",
    "size": "The request is longer than a megabyte, or does not say how long it is.",
}


def _is_address(name: str) -> bool:
    """Whether it is a number: names can be made to point anywhere, numbers cannot."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_long(headers: list[tuple[str, str]]) -> bool:
    """Whether the request's body may be longer than what is taken."""
    told = dict(headers)
    length = told.get("content-length", "0")
    return "transfer-encoding" in told or not (length.isdecimal() and int(length) <= LONGEST)


def _same(origins: list[str], host: str) -> bool:
    """Whether the page that asks came from this server."""
    if len(origins) != 1:
        return False
    scheme, _, place = origins[0].lower().partition("://")
    return scheme in ("http", "https") and place == host.lower()


def _token(scope: Scope, headers: list[tuple[str, str]]) -> str:
    authorization = next((value for name, value in headers if name == "authorization"), "")
    if authorization.startswith("Bearer "):
        return authorization.removeprefix("Bearer ").strip()
    query: str = scope["query_string"].decode("latin-1")
    return parse_qs(query).get("token", [""])[0]


def _with_headers(send: Any) -> Any:
    async def wrapped(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = message.get("headers", ())
            named = {name for name, _ in own}
            message["headers"] = [*own, *(header for header in HEADERS if header[0] not in named)]
        await send(message)

    return wrapped
