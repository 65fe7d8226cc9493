"""Reliability of the live server against strangers: rows 10 to 12 of the table in docs/live.md."""

import argparse
import io
import json
import random
import struct
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from realtime.live_client import Client, jpeg, pack_frame, serving
from reliability.live_clients import megabytes
from websockets.exceptions import InvalidStatus

from diffaccel.realtime.server import LiveServer

WAYS_IN: tuple[dict[str, str | None], ...] = (
    {"token": "wrong"},
    {"token": ""},
    {"token": "Secret"},
    {"origin": None},
    {"origin": "null"},
    {"origin": "http://evil.example"},
    {"origin": "http://127.0.0.1"},
    {"origin": "http://127.0.0.1.evil.example"},
    {"host": "evil.example"},
    {"host": "127.0.0.1.evil.example"},
)


def is_closed(server: LiveServer, way: dict[str, str | None]) -> bool:
    """Whether a client that comes this way is refused."""
    try:
        if "host" in way:
            address, headers = f"http://127.0.0.1:{server.port}/?token=secret", {"Host": str(way["host"])}
            urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=5).close()
        else:
            Client(server, **way)  # type: ignore[arg-type]
    except (InvalidStatus, urllib.error.HTTPError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return True
    return False


def check_ways_in(_model: str, _place: Path, _options: argparse.Namespace) -> str:
    """Row 10: wrong token, Origin and Host."""
    with serving() as server:
        assert all(is_closed(server, way) for way in WAYS_IN)
        assert server.hub.count == 0
    return f"{len(WAYS_IN)} ways in, all closed"


def bad_messages(count: int) -> Iterator[bytes | str]:
    """Frames that are cut, flipped or foreign, JSON that is not, and controls out of range; seeded."""
    chance, good = random.Random(0), pack_frame(1, jpeg(size=(320, 240)))
    for number in range(count):
        kind = number % 6
        if kind == 0:
            yield chance.randbytes(chance.randrange(4000))
        elif kind == 1:
            yield good[: chance.randrange(8, 300)]
        elif kind == 2:
            yield pack_frame(number, b"\xff\xd8\xff" + chance.randbytes(2000))
        elif kind == 3:
            value = chance.choice([float("inf"), float("nan"), "x", [], -1])
            yield json.dumps({"type": "controls", "values": {"strength": value}})
        elif kind == 4:
            yield "".join(chance.choices('{}[]":,\u2028\x00a1', k=chance.randrange(400)))
        else:
            yield json.dumps({"type": "controls", "values": {"prompt": "x" * chance.randrange(501, 9000)}})


def check_bad_messages(_model: str, _place: Path, options: argparse.Namespace) -> str:
    """Row 11: generated bad messages are answered, quickly, and leave no memory behind."""
    count, slowest = max(60, int(1000 * options.scale)), 0.0
    with serving() as server, Client(server) as client:
        client.wait("hello")
        before = megabytes()
        for message in bad_messages(count):
            begin = time.monotonic()
            client.socket.send(message)
            assert client.wait("problem")["message"]
            slowest = max(slowest, time.monotonic() - begin)
        grown = megabytes() - before
        client.frame()
        client.picture()
    said = f"{count} messages, each answered within {slowest * 1000:.0f} ms, memory +{grown:.1f} MB"
    assert slowest <= 0.1 and grown <= 50, said  # noqa: PT018
    return said


def png(side: int) -> bytes:
    """The head of a PNG that unpacks to ``side`` x ``side`` pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def saved(form: str, **options: Any) -> bytes:
    """A picture of several frames."""
    buffer = io.BytesIO()
    pictures = [Image.new("RGB", (64, 64), (number * 50, 0, 0)) for number in range(4)]
    pictures[0].save(buffer, form, save_all=True, append_images=pictures[1:], **options)
    return buffer.getvalue()


def giant_jpeg() -> bytes:
    """A JPEG whose header claims 60,000 x 60,000 pixels."""
    data = bytearray(jpeg())
    where = data.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", data, where, 60_000, 60_000)
    return bytes(data)


def check_bombs(_model: str, _place: Path, _options: argparse.Namespace) -> str:
    """Row 12: pictures that unpack to gigabytes are refused by their header."""
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='60000' height='60000'/>"
    bombs = {"PNG 12000": png(12_000), "PNG 60000": png(60_000), "APNG": saved("PNG"), "GIF": saved("GIF"), "SVG": svg}
    bombs["MPO"] = saved("MPO")
    bombs |= {"JPEG 60000": giant_jpeg(), "scans": jpeg()[:-2] + b"\xff\xda" * 50 + b"\xff\xd9"}
    with serving() as server, Client(server) as client:
        before = megabytes()
        for name, data in bombs.items():
            client.frame(data)
            assert client.wait("problem")["kind"] == "message", name  # the network never saw it
        grown = megabytes() - before
    assert grown <= 50, f"memory +{grown:.0f} MB"
    return f"{', '.join(bombs)} refused by their header; memory +{grown:.1f} MB"
