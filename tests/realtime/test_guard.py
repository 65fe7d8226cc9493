"""Who may come in, request by request, without a server."""

import asyncio
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from diffaccel.realtime.guard import HEADERS, WORDS, Guard

HOST, ORIGIN = "127.0.0.1:7860", "http://127.0.0.1:7860"


def drive(work: Coroutine[Any, Any, None]) -> None:
    """Run it on a loop of its own; this thread's may be held by a browser that another test drives."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


class Application:
    """Answers everything, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
            await send({"type": "http.response.body", "body": b"hello"})


def ask(
    headers: dict[str, str] | list[tuple[str, str]],
    path: str = "/view",
    query: str = "",
    kind: str = "http",
    host: str = "127.0.0.1",
    names: tuple[str, ...] = (),
) -> tuple[list[dict[str, Any]], list[str], list[Any]]:
    """What was sent, why it was refused, and what reached the application."""
    pairs = headers.items() if isinstance(headers, dict) else headers
    scope = {
        "type": kind,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
    }
    application, reasons, sent = Application(), [], []
    guard = Guard(application, token="s3cret", host=host, names=names, refused=reasons.append)

    received: list[str] = []

    async def receive() -> dict[str, Any]:
        received.append("websocket.connect")
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            assert received  # servers accept no answer to a connection that was not received
        sent.append(message)

    drive(guard(scope, receive, send))
    return sent, reasons, application.asked


def comes_in(headers: Any, **request: Any) -> str:
    """`in`, or the reason of the refusal."""
    sent, reasons, asked = ask(headers, **request)
    assert bool(asked) != bool(reasons)
    if reasons and request.get("kind", "http") == "http":
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        assert sent[0]["status"] == (413 if reasons == ["size"] else 403)
        assert (b"content-type", b"text/plain") in sent[0]["headers"]
        assert sent[1]["body"] == WORDS[reasons[0]].encode()
    elif reasons:
        assert sent == [{"type": "websocket.close", "code": 1008}]
    return reasons[0] if reasons else "in"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (HOST, "in"),
        ("LOCALHOST:7860", "in"),
        ("[::1]:7860", "in"),
        ("127.0.0.1", "in"),
        ("rebound.example", "host"),
        ("rebound.example:7860", "host"),
        ("127.0.0.1.evil.example", "host"),
        ("192.168.0.5:7860", "host"),  # a number, but this server listens on loopback alone
        ("[::1", "host"),
        ("", "host"),
    ],
)
def test_the_host_is_this_machine(name: str, expected: str) -> None:
    assert comes_in({"host": name}) == expected


def test_one_host_exactly() -> None:
    assert comes_in([]) == "host"
    assert comes_in([("host", HOST), ("host", HOST)]) == "host"
    assert comes_in([("Host", HOST)]) == "in"


def test_a_server_for_others_is_reached_by_numbers_and_by_its_names() -> None:
    there = {"host": "0.0.0.0", "names": ("Proxy.example",)}
    assert comes_in({"host": "192.168.0.5:7860"}, **there) == "in"
    assert comes_in({"host": "[fe80::1]:7860"}, **there) == "in"
    assert comes_in({"host": "PROXY.example"}, **there) == "in"
    assert comes_in({"host": "localhost"}, **there) == "in"
    assert comes_in({"host": "other.example"}, **there) == "host"
    assert comes_in({"host": socket.gethostname()}, **there) == "in"
    assert comes_in({"host": "studio"}, host="studio") == "in"
    assert comes_in({"host": "proxy.example"}, names=("Proxy.example",)) == "in"


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (ORIGIN, "in"),
        ("https://127.0.0.1:7860", "in"),
        ("HTTP://127.0.0.1:7860", "in"),
        ("http://127.0.0.1:7861", "origin"),
        ("http://127.0.0.1", "origin"),
        ("http://evil.example", "origin"),
        ("http://evil127.0.0.1:7860", "origin"),  # it merely ends with the host
        ("http://127.0.0.1:7860.evil.example", "origin"),
        ("http://evil@127.0.0.1:7860", "origin"),
        ("ftp://127.0.0.1:7860", "origin"),
        ("http://evil.example://127.0.0.1:7860", "origin"),
        ("127.0.0.1:7860", "origin"),
        ("null", "origin"),
        ("", "origin"),
    ],
)
def test_the_origin_is_this_server(origin: str, expected: str) -> None:
    headers = {"host": HOST, "origin": origin}
    assert comes_in(headers) == expected
    assert comes_in(headers, kind="websocket", path="/ws", query="token=s3cret") == expected


def test_names_are_compared_in_small_letters() -> None:
    assert comes_in({"host": "LocalHost:7860", "origin": "http://LOCALHOST:7860"}) == "in"


def test_a_websocket_names_its_origin_once() -> None:
    way = {"kind": "websocket", "path": "/ws", "query": "token=s3cret"}
    assert comes_in({"host": HOST}, **way) == "origin"
    assert comes_in([("host", HOST), ("origin", ORIGIN), ("origin", ORIGIN)], **way) == "origin"
    assert comes_in({"host": HOST, "origin": ORIGIN}, **way) == "in"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"content-length": str(1 << 20)}, "in"),
        ({"content-length": str((1 << 20) + 1)}, "size"),
        ({"content-length": "-1"}, "size"),
        ({"transfer-encoding": "chunked"}, "size"),
    ],
)
def test_long_bodies_are_not_read(body: dict[str, str], expected: str) -> None:
    assert comes_in({"host": HOST, **body}, path="/controls", query="token=s3cret") == expected


def test_the_token_is_asked_for_wherever_something_is_told_or_changed() -> None:
    own = {"host": HOST}
    for path in ("/", "/view", "/health", "/page/app.js"):
        assert comes_in(own, path=path) == "in"
    for path in ("/live", "/metrics", "/page", "/views", "/health/x"):
        assert comes_in(own, path=path) == "token"
        assert comes_in(own, path=path, query="token=s3cret") == "in"
        assert comes_in(own, path=path, query="a=b&token=s3cret") == "in"
        for wrong in ("token=s3cre", "token=s3crett", "token=S3CRET", "token=", "other=s3cret", "token=%C3%A9"):
            assert comes_in(own, path=path, query=wrong) == "token"
        assert comes_in({**own, "authorization": "Bearer s3cret"}, path=path) == "in"
        assert comes_in({**own, "authorization": "Bearer  s3cret "}, path=path) == "in"
        assert comes_in({**own, "authorization": "Bearer other"}, path=path, query="token=s3cret") == "token"
        assert comes_in({**own, "authorization": "Basic s3cret"}, path=path) == "token"
    assert comes_in({**own, "origin": ORIGIN}, kind="websocket", path="/view") == "token"


def test_answers_carry_the_headers_that_keep_a_page_to_itself() -> None:
    sent, _, _ = ask({"host": HOST})
    assert sent[0]["headers"] == [(b"x-own", b"1"), *HEADERS]
    assert sent[1] == {"type": "http.response.body", "body": b"hello"}
    named = dict(HEADERS)
    assert b"default-src 'self'" in named[b"content-security-policy"]
    assert b"frame-ancestors 'none'" in named[b"content-security-policy"]
    assert named[b"referrer-policy"] == b"no-referrer"
    assert named[b"cache-control"] == b"no-store"
    assert named[b"x-content-type-options"] == b"nosniff"
    assert named[b"cross-origin-resource-policy"] == b"same-origin"


def test_a_header_of_the_answers_own_is_not_sent_twice() -> None:
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=9")]})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "query_string": b"", "headers": [(b"host", HOST.encode())]}
    drive(Guard(application, token="s3cret", host="127.0.0.1", refused=str)(scope, send, send))
    others = [header for header in HEADERS if header[0] != b"cache-control"]
    assert sent[0]["headers"] == [(b"cache-control", b"max-age=9"), *others]


def test_the_server_starts_and_stops_unasked() -> None:
    _, reasons, asked = ask([], kind="lifespan")
    assert (reasons, len(asked)) == ([], 1)
