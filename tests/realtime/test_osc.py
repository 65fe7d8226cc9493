"""Open Sound Control moves the controls of everyone, or of one session, and says what it cannot follow."""

import socket
import time
from collections.abc import Mapping
from typing import Any

import pytest
from live_client import Client, serving, until

from diffaccel.media.errors import MediaError
from diffaccel.realtime import osc
from diffaccel.realtime.osc import OscServer

pytest.importorskip("pythonosc", reason="Open Sound Control needs python-osc")


def test_messages_move_controls(caplog: pytest.LogCaptureFixture) -> None:
    from pythonosc.osc_message_builder import OscMessageBuilder

    def send(address: str, value: object) -> None:
        message = OscMessageBuilder(address)
        message.add_arg(value)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(message.build().dgram, ("127.0.0.1", osc.port))

    with (
        serving() as server,
        OscServer(server.change, port=0) as osc,
        Client(server, session="left") as left,
        Client(server, session="right") as right,
    ):
        left.wait("hello"), right.wait("hello")
        one, two = (server.painting(name).session for name in ("left", "right"))
        send("/diffaccel/strength", 0.75)
        until(lambda: one.asked.strength == two.asked.strength == 0.75)
        send("/diffaccel/similarity_threshold", 0.9)  # the least: 32 bits make it 0.89999998
        until(lambda: one.asked.similarity_threshold == two.asked.similarity_threshold == 0.9)
        send("/diffaccel/steps", 2.6)  # a fader goes through all numbers
        until(lambda: one.asked.steps == two.asked.steps == 3)
        send("/diffaccel/left/prompt", "a fox")
        until(lambda: one.asked.prompt == "a fox")
        assert two.asked.prompt != "a fox"
        send("/diffaccel/similarity", False)
        send("/diffaccel/seed", 12)
        until(lambda: (one.asked.similarity, two.asked.seed) == (False, 12))
        for address, value in (
            ("/diffaccel/strength", 7.0),
            ("/diffaccel/colour", 1),
            ("/diffaccel/nobody/seed", 1),
            ("/other", 1),
            ("/diffaccel/strength", 8.0),
            ("/diffaccel/seed", float("inf")),
        ):
            send(address, value)
        until(lambda: len(caplog.records) == 5)
        assert one.asked.strength == 0.75
    for words in ("must be at most 1", "colour", "nobody paints as nobody now", "say /diffaccel/strength 0.7"):
        assert words in caplog.text
    assert caplog.text.count("/diffaccel/strength:") == 1  # each address once


def test_bundles_act_at_once_in_order_and_what_is_no_message_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from pythonosc.osc_bundle_builder import OscBundleBuilder
    from pythonosc.osc_message_builder import OscMessageBuilder

    heard: list[int] = []

    def change(_session: str | None, values: Mapping[str, int]) -> int:
        heard.append(values["seed"])
        return 1

    def seed(number: int) -> Any:
        message = OscMessageBuilder("/diffaccel/seed")
        message.add_arg(number)
        return message.build()

    later = OscBundleBuilder(time.time() + 3600)  # type: ignore[arg-type]
    later.add_content(seed(100))
    with OscServer(change, port=0) as osc, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for datagram in (b"/diffaccel/\xff\xfe\0\0,i\0\0\0\0\0\1", b"", later.build().dgram):
            udp.sendto(datagram, ("127.0.0.1", osc.port))
        for number in range(50):
            udp.sendto(seed(number).dgram, ("127.0.0.1", osc.port))
        until(lambda: len(heard) == 51)
        begin = time.monotonic()
    assert time.monotonic() - begin < 60  # it does not wait for the bundle's time
    assert heard == [100, *range(50)]
    assert "none of Open Sound Control" in caplog.text


def test_a_taken_port_is_said() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(MediaError, match=r"cannot listen for OSC on 127.0.0.1 port .*: Address already in use"):
            OscServer(lambda *_: 0, port=other.getsockname()[1])


def test_what_cannot_be_followed_is_told_of_so_many_addresses_and_no_more(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(osc, "MOST_TOLD", 2)
    server = OscServer(lambda *_: 0, port=0)
    for index in range(5):
        server._hear(f"/other/{index}")
    server._server.server_close()
    assert [record.getMessage().count("nothing more is told") for record in caplog.records] == [0, 1]
