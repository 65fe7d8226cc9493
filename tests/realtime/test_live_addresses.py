"""Addresses that outlive a connection, and control from outside: over real sockets, with a stub network behind."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from live_client import Client, StubStream, get, jpeg, parts, serving, until

from diffaccel.realtime.channels import Channel
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import Controls


def test_mjpeg_shows_the_latest_picture_of_the_only_session() -> None:
    with serving() as server:
        assert get(server, "/mjpeg?token=secret")[0] == 404
        with Client(server) as client:
            client.frame(jpeg((255, 0, 0)))
            picture = client.picture()
            request = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/mjpeg?token=secret", timeout=20)
            with request:
                assert "multipart/x-mixed-replace" in request.headers["Content-Type"]
                assert request.headers.get_all("Cross-Origin-Resource-Policy") == ["cross-origin"]  # as in <img>
                head = b"".join(iter(request.readline, b"\r\n"))
                assert f"Content-Length: {len(picture.jpeg)}".encode() in head
                assert request.read(len(picture.jpeg)) == picture.jpeg


def test_a_streams_address_outlives_connections_and_precedes_them() -> None:
    with serving() as server:
        address = f"http://127.0.0.1:{server.port}/mjpeg?token=secret&session=stage"
        with urllib.request.urlopen(address, timeout=20) as request:  # OBS is opened before the page
            seen = parts(request)
            for red in (250, 150, 50):
                with Client(server, session="stage") as client:
                    client.frame(jpeg((red, 0, 0)))
                    client.picture()
                    assert any(abs(int(next(seen)[0]) - (255 - red)) < 5 for _ in range(5))
                until(lambda: server.hub.count == 0)
        until(lambda: server.channels.viewers == 0)


def test_the_newer_of_two_pages_with_one_name_is_shown_until_it_leaves() -> None:
    channel = Channel()
    pictures = channel.frames(lambda: False)

    async def watch() -> list[bytes]:
        seen = []
        channel.open("old"), channel.show("old", b"1")
        seen.append(await anext(pictures))
        channel.open("new"), channel.show("new", b"2"), channel.show("old", b"3")
        seen.append(await anext(pictures))
        channel.leave("new"), channel.show("old", b"4")
        seen.append(await anext(pictures))
        await pictures.aclose()
        return seen

    with ThreadPoolExecutor(1) as thread:  # the browser's tests leave an event loop on this one
        seen = thread.submit(lambda: asyncio.run(watch())).result()
    assert [part[-3:-2] for part in seen] == [b"1", b"2", b"4"]
    assert channel.viewers == 0


@pytest.mark.parametrize("name", ["a b", "x" * 65, "../x", "ä"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with serving() as server:
        with Client(server, session=name) as client:
            problem = client.wait("problem")
            assert problem["kind"] == "name"
            assert "1 to 64 letters" in problem["message"]
        assert get(server, f"/mjpeg?token=secret&session={quote(name)}")[0] == 422
        assert server.hub.count == 0


def test_controls_are_read_and_changed_over_http() -> None:
    def change(values: Any, query: str = "") -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/controls?token=secret{query}", json.dumps(values).encode(),
            {"Content-Type": "application/json"}, method="PATCH",
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["detail"]

    with serving() as server:
        assert change({"seed": 1}) == (404, "nobody paints now: open the page first")
        with Client(server, session="desk") as client:
            client.wait("hello")
            assert change({"prompt": "a fox", "strength": 0.7}) == (
                200, Controls(prompt="a fox", strength=0.7).model_dump(),
            )  # fmt: skip
            assert client.wait("controls")["values"]["prompt"] == "a fox"
            assert json.loads(get(server, "/controls?token=secret&session=desk")[1])["strength"] == 0.7
            assert change({"seed": 1}, "&session=nobody")[0] == 404
            assert change({"strength": 2}) == (422, "strength: must be at most 1")
            assert change({"colour": 2})[0] == 422
            assert change({"prompt": "impossible"}) == (422, "no such thing: try another prompt")  # the model's word
            assert change({"steps": True}) == (422, "steps: must be a number, not true or false")
            assert change({"picture_size": "8 by 8"})[1].endswith("as in 640x384")
            for nothing in (float("nan"), [float("nan")], [], "x", None):
                assert change(nothing) == (422, 'send a JSON object, as in {"strength": 0.7}')
            assert json.loads(get(server, "/controls?token=secret&session=desk")[1])["prompt"] == "a fox"
            assert get(server, "/controls")[0] == 403


def test_a_change_over_http_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(StubStream):
        def configure(self, controls: Controls) -> None:
            loaded.wait(10)
            super().configure(controls)

    monkeypatch.setattr("diffaccel.realtime.server.ANSWERS_WITHIN", 0.05)
    loaded = threading.Event()
    with serving(Slow) as server, Client(server) as client:
        client.wait("hello")
        client.controls(seed=1)  # opens the stream
        client.wait("controls")
        address = f"http://127.0.0.1:{server.port}/controls?token=secret"
        request = urllib.request.Request(address, b'{"seed": 2}', {"Content-Type": "application/json"}, method="PATCH")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert (answer.status, json.load(answer)["seed"]) == (202, 2)
        loaded.set()
        until(lambda: server.painting(None).session.controls.seed == 2)


def test_a_full_server_tells_its_own_defaults() -> None:
    own = Controls(prompt="a green apple", strength=0.65)
    with Hub(StubStream, controls=own) as hub, LiveServer(hub, ServerOptions(port=0, token="secret"), {}) as server:
        answers = json.loads(get(server, "/schema?token=secret")[1])["properties"]
    assert {name: field["default"] for name, field in answers.items()} == own.model_dump()


def test_what_a_model_does_not_read_is_said_once() -> None:
    with serving() as server, Client(server) as client:
        client.controls(prompt="a very long story")
        assert client.wait("remark")["message"] == "the end is not read"
        client.controls(seed=3)
        client.controls(prompt="a cat")
        assert client.wait("remark")["message"] == ""
