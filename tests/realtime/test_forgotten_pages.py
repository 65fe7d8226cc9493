"""Who is silent for long gives the place to somebody who comes; models that load keep nobody waiting."""

import threading
import urllib.request
from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from live_client import Client, parts, serving, until
from websockets.exceptions import ConnectionClosed

from diffaccel.realtime import address, offers, server, workers
from diffaccel.realtime.connection import FORGOTTEN
from diffaccel.realtime.settings import LiveSettings
from diffaccel.stream.host import StreamHost


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds after which a page is forgotten."""
    monkeypatch.setattr(server, "FORGOTTEN_AFTER", 0.6)
    return 0.6


def test_who_is_silent_gives_the_place_to_who_comes(soon: float) -> None:
    with serving(limit=2) as live, Client(live) as silent, Client(live) as painter:
        silent.frame(), painter.frame()
        assert silent.picture()
        assert painter.picture()
        until(lambda: all(each.silence > soon for each in live.connections.values()))
        painter.controls(seed=4)
        painter.wait("controls")
        with Client(live) as third:
            assert third.wait("hello")
            assert silent.wait("problem")["kind"] == "forgotten"
            with pytest.raises(ConnectionClosed):
                silent.wait("stats")
            assert silent.socket.close_code == FORGOTTEN
            third.frame(), painter.frame()
            assert third.picture()
            assert painter.picture()
            with Client(live) as fourth:  # everybody paints
                assert fourth.wait("problem")["kind"] == "busy"
        until(lambda: live.hub.count == 1)


def test_whose_pictures_are_watched_is_not_forgotten(soon: float) -> None:
    with serving(limit=1) as live, Client(live, session="stage") as silent:
        silent.frame()
        assert silent.picture()
        watched = f"http://127.0.0.1:{live.port}/mjpeg?token=secret&session=stage"
        with urllib.request.urlopen(watched, timeout=20) as request:
            next(parts(request))
            assert not threading.Event().wait(2 * soon)
            with Client(live) as other:
                assert other.wait("problem")["kind"] == "busy"
            until(lambda: silent.wait("stats")["viewers"] == 1)
        until(lambda: live.channels.viewers == 0)
        with Client(live) as other:
            assert other.wait("hello")


def test_a_model_that_is_being_loaded_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    pipe = SimpleNamespace()

    def load(_: LiveSettings) -> Any:
        begun.set()
        assert go_on.wait(20)
        return pipe

    monkeypatch.setattr(offers, "load_pipeline", load)
    offered = offers.Offers(replace(LiveSettings(), offers=("some/other",)), pipe, StreamHost(pipe))
    found: list[Any] = []
    loading = threading.Thread(target=lambda: found.append(offered.painter("other")), daemon=True)
    loading.start()
    assert begun.wait(20)
    waits = threading.Thread(target=lambda: found.append(offered.painter("")), daemon=True)
    waits.start()
    waits.join(20)
    assert [each.settings.model for each in found] == ["emoji-sd"]
    go_on.set()
    loading.join(20)
    assert found[1].settings.model == "some/other"


def test_what_is_told_by_several_threads_is_told_once() -> None:
    class Taken(deque[tuple[str, int]]):
        """Another thread takes some of it between the question how many there are and the first."""

        def __len__(self) -> int:
            return super().__len__() + 2

    calls = Taken([("network", 1), ("decode", 2)])
    assert workers._taken(calls) == [("network", 1), ("decode", 2)]
    assert workers._taken(calls) == []


def test_a_server_for_everyone_has_an_address_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address.seen_by_others("127.0.0.1") is None
    assert address.seen_by_others("192.168.1.7") is None  # which its own address says

    class Probe:
        """A socket of a machine with a network, or without."""

        number = "192.168.1.7"

        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> "Probe":
            return self

        def __exit__(self, *_: object) -> None: ...
        def connect(self, _: tuple[str, int]) -> None:
            if not self.number:
                raise OSError

        def getsockname(self) -> tuple[str, int]:
            return self.number, 5

    monkeypatch.setattr(address.socket, "socket", Probe)
    assert address.seen_by_others("0.0.0.0") == "192.168.1.7"
    Probe.number = ""
    assert address.seen_by_others("0.0.0.0") is None
