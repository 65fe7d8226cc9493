"""The live server over real sockets, with a stub network behind it."""

import asyncio
import json
import struct
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
from fastapi import WebSocket, WebSocketDisconnect
from live_client import SIZE, Client, StubStream, colour, get, jpeg, pack_frame, serving, until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from diffaccel.media.errors import MediaError
from diffaccel.realtime import protocol
from diffaccel.realtime.channels import Channel
from diffaccel.realtime.connection import Connection
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import Controls


def patch(server: LiveServer, body: str) -> tuple[int, str]:
    """Status and text of what the server answers to a change."""
    url = f"http://127.0.0.1:{server.port}/controls?token=secret"
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"}, method="PATCH")
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_frame_comes_back_painted() -> None:
    with serving() as server, Client(server) as client:
        hello = client.wait("hello")
        assert (hello["width"], hello["height"], hello["window"]) == (SIZE, SIZE, 2)
        number = client.frame(jpeg((255, 0, 0)))
        picture = client.picture()
        assert picture.id == number
        assert not picture.skipped
        assert picture.busy_ms >= picture.network_ms >= 0
        assert colour(picture) == pytest.approx([0, 255, 255], abs=3)


def test_every_frame_is_acknowledged_when_the_network_takes_or_replaces_it() -> None:
    with serving(lambda c: StubStream(c, 0.05)) as server, Client(server) as client:
        last = [client.frame() for _ in range(10)][-1]
        taken = 0
        while taken < last:
            message = client.read()
            taken = message.id if isinstance(message, protocol.Taken) else taken
        until(lambda: client.wait("stats")["dropped"] > 0)
        stats = client.wait("stats")
        assert stats["received"] == 10
        assert stats["shown"] + stats["dropped"] == 10
        assert stats["dropped"] >= 5


def test_sessions_are_isolated() -> None:
    with serving() as server, Client(server) as one, Client(server) as two:
        for _ in range(5):
            one.frame(jpeg((255, 0, 0)))
            two.frame(jpeg((0, 0, 255)))
            assert colour(one.picture()) == pytest.approx([0, 255, 255], abs=3)
            assert colour(two.picture()) == pytest.approx([255, 255, 0], abs=3)


def test_controls_change_one_session_and_are_told() -> None:
    with serving() as server, Client(server) as one, Client(server) as two:
        one.controls(prompt="a cat", strength=0.7)
        assert one.wait("controls")["values"]["prompt"] == "a cat"
        two.controls(seed=7)
        told = two.wait("controls")["values"]
        assert (told["seed"], told["prompt"]) == (7, Controls().prompt)


@pytest.mark.parametrize(
    "values",
    [
        {"strength": 2},
        {"strength": float("nan")},
        {"prompt": ""},
        {"prompt": "x" * 501},
        {"seed": -1},
        {"color": "red"},
    ],
)
def test_invalid_controls_are_refused_in_words(values: dict[str, Any]) -> None:
    with serving() as server, Client(server) as client:
        client.controls(**values)
        problem = client.wait("problem")
        assert problem["kind"] == "controls"
        assert next(iter(values)) in problem["message"]
        client.frame()
        assert client.picture()


def test_controls_that_the_model_cannot_follow_leave_the_old_ones() -> None:
    with serving() as server, Client(server) as client:
        client.frame()
        client.picture()
        client.controls(prompt="impossible")
        assert client.wait("problem")["message"] == "no such thing: try another prompt"
        assert client.wait("controls")["values"]["prompt"] == Controls().prompt
        client.frame()
        assert client.picture()


class Doubtful(StubStream):
    """Takes its time to refuse."""

    def __init__(self, controls: Controls, error: type[Exception] = ValueError) -> None:
        super().__init__(controls)
        self.asked, self.refuse, self._error = threading.Event(), threading.Event(), error

    def configure(self, controls: Controls) -> None:
        if controls.prompt == "impossible":
            self.asked.set()
            self.refuse.wait(5)
            raise self._error("no such thing")
        super().configure(controls)


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_what_is_refused_takes_nothing_with_it_that_was_asked_for_later(error: type[Exception]) -> None:
    streams: list[Doubtful] = []

    def open_stream(controls: Controls) -> Doubtful:
        streams.append(Doubtful(controls, error))
        return streams[-1]

    with serving(open_stream) as server, Client(server) as client:
        client.frame()
        client.picture()
        (stream,) = streams
        client.controls(prompt="impossible", steps=3)
        assert stream.asked.wait(20)
        client.controls(seed=7)
        session = server.painting(None).session
        until(lambda: session.asked.seed == 7)
        stream.refuse.set()
        until(lambda: session.controls.seed == 7)
        assert stream.controls == session.controls == session.asked == Controls(seed=7)
        told: dict[str, Any] = {}
        while "problem" not in told or told.get("controls") != Controls(seed=7).model_dump():
            message = client.read()
            if isinstance(message, dict):
                told[message["type"]] = message.get("message", message.get("values"))
        assert "no such thing" in told["problem"]


def test_a_change_that_is_followed_late_is_told_with_those_behind_it() -> None:
    streams: list[StubStream] = []
    going_on = threading.Semaphore(0)

    class Late(StubStream):
        """Takes its time to follow."""

        def configure(self, controls: Controls) -> None:
            super().configure(controls)
            assert going_on.acquire(timeout=20)

    def open_stream(controls: Controls) -> Late:
        streams.append(Late(controls))
        return streams[-1]

    with serving(open_stream) as server, Client(server) as client:
        client.frame()
        assert client.wait("controls")["values"]["strength"] == Controls().strength
        client.controls(strength=0.6)
        until(lambda: streams[0].controls.strength == 0.6)
        client.controls(strength=0.7)
        until(lambda: server.painting(None).session.asked.strength == 0.7)
        going_on.release()
        assert client.wait("controls")["values"]["strength"] == 0.7
        going_on.release()


@pytest.mark.slow
def test_frames_in_flight_wait_for_the_next_one_also_where_a_tick_takes_long() -> None:
    flushed: list[bool] = []

    class Slow(StubStream):
        """Two stages of 0.3 s."""

        def push(self, image: Any, *, frame_id: int) -> list[Any]:
            outputs = super().push(image, frame_id=frame_id)
            self.frames_in_flight = 1
            return [] if frame_id == 0 else [replace(outputs[0], frame_id=frame_id - 1)]

        def flush(self) -> list[Any]:
            flushed.append(True)
            return []

    with serving(lambda c: Slow(c, 0.3)) as server, Client(server) as client:
        for _ in range(3):
            client.frame()
            client.wait(protocol.Taken)
            time.sleep(0.35)  # it comes a bit after the network was free
        assert not flushed
        until(lambda: bool(flushed))


@pytest.mark.parametrize("text", ['{"prompt": "\\ud800"}', '{"\\ud800": 1}', '{"seed": 1e400}', '{"steps": [[2]]}'])
def test_values_that_no_control_has_are_refused_in_words(text: str) -> None:
    with serving() as server, Client(server) as client:
        client.wait("hello")
        client.socket.send(f'{{"type": "controls", "values": {text}}}')
        assert client.wait("problem")["kind"] == "controls"
        code, answer = patch(server, text)
        assert code == 422
        assert json.loads(answer)["detail"]
        client.frame()
        assert client.picture()


def test_a_stream_that_cannot_be_opened_is_reported_once_a_frame() -> None:
    opened = []

    def open_stream(controls: Controls) -> StubStream:
        opened.append(controls)
        raise RuntimeError("no such device")

    with serving(open_stream) as server, Client(server) as client:
        client.controls(seed=3)
        assert "no such device" in client.wait("problem")["message"]
        client.frame()
        assert "no such device" in client.wait("problem")["message"]
        assert len(opened) == 2
        assert server.hub.alive


def test_one_too_many_is_refused_and_others_go_on() -> None:
    with serving(limit=1) as server, Client(server) as one:
        one.wait("hello")
        with Client(server) as two:
            problem = two.wait("problem")
            assert problem["kind"] == "busy"
            assert "--max-sessions" in problem["message"]
            with pytest.raises(ConnectionClosed):
                two.read()
        one.frame()
        assert one.picture()
    assert server.hub.metrics.refused.labels("full")._value.get() == 1


def test_a_place_is_free_again_after_someone_left() -> None:
    with serving(limit=1) as server:
        for _ in range(3):
            with Client(server) as client:
                assert client.wait("hello")
            until(lambda: server.hub.count == 0)
        client = Client(server)
        client.wait("hello")
        client.socket.socket.shutdown(2)  # no goodbye
        until(lambda: server.hub.count == 0, 2)


def test_streams_are_closed_when_their_client_leaves() -> None:
    streams: list[StubStream] = []

    def open_stream(controls: Controls) -> StubStream:
        streams.append(StubStream(controls))
        return streams[-1]

    with serving(open_stream) as server:
        with Client(server) as client:
            client.frame()
            client.picture()
        until(lambda: streams[0].closed)


def test_a_failing_network_is_reported_and_goes_on() -> None:
    def trouble(frame: int) -> bool:
        if frame % 3 == 1:
            raise RuntimeError("CUDA out of memory" if frame == 1 else "a bad day")
        return False

    with serving(lambda c: StubStream(c, trouble=trouble)) as server, Client(server) as client:
        kinds = []
        for _ in range(6):
            client.frame()
            message = client.read()
            while isinstance(message, protocol.Taken) or (message.__class__ is dict and message["type"] != "problem"):
                message = client.read()
            if isinstance(message, protocol.PictureMessage):
                client.shown(message.id)
            else:
                kinds.append(message["kind"])
        assert kinds == ["memory", "network"]
        until(lambda: client.wait("stats")["failed"] == 2)


def test_pictures_that_are_not_finite_are_withheld_and_counted() -> None:
    with serving(lambda c: StubStream(c, trouble=lambda n: n % 5 == 4)) as server, Client(server) as client:
        for number in range(20):
            client.frame()
            if number % 5 == 4:
                assert client.wait("problem")["kind"] == "not_finite"
            else:
                assert client.picture().id == number + 1
        until(lambda: client.wait("stats")["not_finite"] == 4)


def test_a_slow_reader_gets_the_latest_picture() -> None:
    with serving() as server, Client(server) as client:
        for _ in range(20):
            number = client.frame()
            while client.wait(protocol.Taken).id != number:  # that arrives; at most two pictures do
                pass
        stats = client.wait("stats")
        until(lambda: client.wait("stats")["shown"] + stats["dropped"] >= 20)
        client.shown(2)
        assert client.wait(protocol.PictureMessage).id == 20


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ({"token": "wrong"}, {}),
        ({"token": ""}, {}),
        ({"origin": None}, {}),
        ({"origin": "http://evil.example"}, {}),
        ({"origin": "null"}, {}),
        ({"origin": "http://127.0.0.1"}, {}),
        ({"origin": "http://localhost:1"}, {}),
        ({}, {"Host": "evil.example"}),
        ({}, {"Host": "127.0.0.1.evil.example"}),
        ({}, {"Host": ""}),
    ],
)
def test_ten_ways_in_are_closed(options: dict[str, Any], headers: dict[str, str]) -> None:
    with serving() as server:
        if headers:
            assert get(server, "/?token=secret", **headers)[0] in (400, 403)
            assert get(server, "/schema?token=secret", **headers)[0] in (400, 403)
            return
        with pytest.raises(InvalidStatus):
            Client(server, **options)
        assert server.hub.count == 0


@pytest.mark.parametrize("path", ["/schema", "/metrics", "/mjpeg", "/schema?token=wrong", "/docs", "/openapi.json"])
def test_paths_want_the_token(path: str) -> None:
    with serving() as server:
        status, text, _ = get(server, path)
        assert status == 403
        assert "token" in text


def test_page_health_schema_and_metrics() -> None:
    with serving() as server, Client(server) as client:
        client.frame()
        client.picture()
        status, page, headers = get(server, "/")
        assert status == 200
        assert "<title>" in page
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert json.loads(get(server, "/health")[1]) == {"status": "ok", "sessions": 1, "max_sessions": 4}
        schema = json.loads(get(server, "/schema?token=secret")[1])
        assert set(schema["properties"]) == set(Controls.model_fields)
        text = get(server, "/metrics", Authorization="Bearer secret")[1]
        assert 'diffaccel_frames_total{outcome="shown"} 1.0' in text
        assert "diffaccel_sessions 1.0" in text


BAD = {
    "empty": b"",
    "short": b"\1\0\0",
    "unknown type": struct.pack("<BxxxI", 9, 1),
    "no picture": pack_frame(1, b""),
    "png": pack_frame(1, b"\x89PNG\r\n\x1a\n" + bytes(50)),
    "svg": pack_frame(1, b"<svg xmlns='http://www.w3.org/2000/svg' width='60000' height='60000'/>"),
    "too wide": pack_frame(1, jpeg(size=(4096, 16))),
    "noise": pack_frame(1, bytes(range(256))),
    "header only": pack_frame(1, jpeg()[:20]),
    "many scans": pack_frame(1, jpeg()[:-2] + b"\xff\xda" * 50 + b"\xff\xd9"),
    "text": "hello",
    "list": "[1, 2]",
    "deep": "[" * 100_000,
    "other type": '{"type": "shutdown"}',
    "values": '{"type": "controls", "values": 3}',
}


def test_bad_messages_are_answered_and_harm_nobody() -> None:
    with serving() as server, Client(server) as client:
        client.wait("hello")
        for name, message in BAD.items():
            client.socket.send(message)
            assert client.wait("problem")["message"], name
        client.frame()
        assert client.picture()


def test_a_damaged_picture_is_rejected_by_the_decoder() -> None:
    with serving() as server, Client(server) as client:
        client.frame(jpeg(size=(640, 480))[:-400])
        assert client.wait("problem")["kind"] == "frame"
        client.frame()
        assert client.picture()


def test_a_message_over_one_mebibyte_ends_the_connection() -> None:
    with serving() as server, Client(server, max_size=None) as client:
        client.wait("hello")
        client.socket.send(bytes(protocol.LARGEST_MESSAGE + 1))
        with pytest.raises(ConnectionClosed) as closed:
            client.wait("nothing")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_a_token_of_any_characters_is_found_in_the_address() -> None:
    token = "a b&c#d+%20/é"
    with Hub(StubStream) as hub, LiveServer(hub, ServerOptions(port=0, token=token), {}) as server:
        place = server.url.partition(f":{server.port}/")[2]
        assert get(server, f"/schema{place}")[0] == 200


def test_a_client_that_leaves_before_it_is_greeted_gives_its_place_back() -> None:
    class Gone:
        async def send_json(self, _: object) -> None:
            raise WebSocketDisconnect(1006)

        async def receive(self) -> dict[str, object]:
            await asyncio.sleep(10)
            return {"type": "websocket.disconnect"}

    async def visit(hub: Hub) -> None:
        await Connection(cast("WebSocket", Gone()), hub, "me", Channel()).run({})

    with Hub(StubStream) as hub:
        with ThreadPoolExecutor(1) as thread:  # a browser's tests may keep an event loop on this one
            thread.submit(lambda: asyncio.run(visit(hub))).result()
        assert hub.count == 0


def test_a_taken_port_is_explained() -> None:
    with serving() as server, pytest.raises(MediaError, match="choose another, as in --port"):
        LiveServer(server.hub, ServerOptions(port=server.port), {})


def test_a_client_is_told_when_the_network_will_be_free() -> None:
    with serving(lambda c: StubStream(c, 0.05)) as server, Client(server) as client:
        for _ in range(8):  # more than a cache has kinds of ticks
            client.frame()
            taken = client.wait(protocol.Taken)
            client.picture()
        assert 30 < taken.free_ms < 300
