"""Reliability of the live server: rows 1 to 12 of the table in docs/live.md, in full; --scale shortens them."""

import argparse
import asyncio
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import psutil
from realtime.live_client import Client, StubStream, jpeg, serving, until
from reliability.live_clients import Camera, Sick, megabytes, milliseconds, settings_for
from reliability.live_clips import CHECKS_OF_CLIPS
from reliability.live_dreams import CHECKS_OF_DREAMS
from reliability.live_hosts import CHECKS_OF_HOSTS
from reliability.live_strangers import check_bad_messages, check_bombs, check_ways_in

from diffaccel import models
from diffaccel.realtime import protocol
from diffaccel.realtime.engine_stream import EngineStream
from diffaccel.realtime.metrics import Served
from diffaccel.realtime.settings import Controls

Options = argparse.Namespace
ROOT = Path(__file__).parents[2]


def check_one(_model: str, _place: Path, options: Options) -> str:
    """Row 1: one client at 30 frames a second, a network of 20 ms."""
    seconds = 60 * options.scale
    with serving(lambda c: StubStream(c, 0.02)) as server:
        camera = Camera(server, 30)
        time.sleep(seconds)
        camera.stop()
    fps, p95 = len(camera.ages) / seconds, milliseconds(camera.ages, 95)
    assert fps >= 25 and p95 <= 80, f"{fps:.1f} pictures a second, p95 {p95:.0f} ms"  # noqa: PT018
    return f"{fps:.1f} pictures a second, p95 {p95:.0f} ms"


def check_many(_model: str, _place: Path, options: Options) -> str:
    """Row 2: sixteen clients at 5 frames a second share a network of 5 ms."""
    seconds = 60 * options.scale
    with serving(lambda c: StubStream(c, 0.005), limit=16) as server:
        cameras = [Camera(server, 5) for _ in range(16)]
        time.sleep(seconds)
        counts = [len(camera.stop().ages) for camera in cameras]
    p99, ratio = milliseconds([age for camera in cameras for age in camera.ages], 99), max(counts) / min(counts)
    said = f"p99 {p99:.0f} ms, most to least served {ratio:.2f}"
    assert p99 <= 400 and ratio <= 1.5, said  # noqa: PT018
    return said


def check_full(_model: str, _place: Path, options: Options) -> str:
    """Row 3: one client too many is refused at once, and the others go on."""
    with serving(lambda c: StubStream(c, 0.02), limit=2) as server:
        cameras = [Camera(server, 10) for _ in range(2)]
        until(lambda: server.hub.count == 2)
        slowest = 0.0
        for _ in range(max(3, int(20 * options.scale))):
            begin = time.monotonic()
            with Client(server) as client:
                assert client.wait("problem")["kind"] == "busy"
            slowest = max(slowest, time.monotonic() - begin)
        assert all(camera.stop().ages and not camera.problems for camera in cameras)
    assert slowest <= 0.2, f"refused after {slowest * 1000:.0f} ms"
    return f"refused within {slowest * 1000:.0f} ms, the others went on"


def check_slow_reader(_model: str, _place: Path, options: Options) -> str:
    """Row 4: a client that shows a picture twice a second gets fresh ones, and costs no memory."""
    step, oldest = 0.05, 0.0
    with serving(lambda c: StubStream(c, step)) as server, Client(server) as client:
        sent: dict[int, float] = {}
        before, end = megabytes(), time.monotonic() + max(3, 120 * options.scale)
        pause, unshown = 0.0, 0
        while time.monotonic() < end:
            sent[client.frame()] = time.monotonic()
            next_frame = time.monotonic() + 1 / 30
            while (left := next_frame - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    message = client.read(left)
                    if isinstance(message, protocol.PictureMessage):
                        oldest = max(oldest, time.monotonic() - sent[message.id])
                        unshown = message.id
            if unshown and time.monotonic() > pause:
                client.shown(unshown)
                unshown, pause = 0, time.monotonic() + 0.5
        grown = megabytes() - before
    said = f"oldest picture {oldest * 1000:.0f} ms with a network of {step * 1000:.0f} ms, memory +{grown:.1f} MB"
    assert oldest <= 0.5 + 2 * step + 0.05, said  # it waits for the acknowledgement, 0.5 s, at most
    assert grown <= 20, said
    return said


def check_hours(_model: str, _place: Path, options: Options) -> str:
    """Row 5: 30,000 frames; memory, tasks, threads and files stay level."""
    count, process = int(30_000 * options.scale), psutil.Process()
    with serving() as server, Client(server) as client:
        levels: list[tuple[float, int, int, int]] = []
        for number in range(count):
            client.frame()
            client.picture()
            if number % max(1, count // 10) == 0:
                loop = next(iter(server.connections.values())).loop
                levels.append((megabytes(), len(asyncio.all_tasks(loop)), process.num_threads(), process.num_fds()))
    slope = (levels[-1][0] - levels[2][0]) / (count * 0.7 / 1000)
    tasks, threads, files = levels[-1][1:]
    said = f"{count} frames, {slope:+.2f} MB per 1,000, tasks {tasks}, threads {threads}, files {files}"
    assert slope <= 1, said
    assert levels[2][1:] == levels[-1][1:], f"{said}; it began with {levels[2][1:]}"
    return said


def check_disconnects(_model: str, _place: Path, options: Options) -> str:
    """Row 6: abrupt ends and half-open connections leave no session, and the next client is served."""
    ends, half = max(10, int(200 * options.scale)), max(5, int(50 * options.scale))
    with serving(limit=2) as server, ExitStack() as stack:
        for number in range(ends):
            until(lambda: server.hub.count == 0, 2, f"a session was left after {number} ends")
            client = Client(server)
            client.frame()
            linger = struct.pack("ii", 1, 0)  # close with a reset
            client.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.socket.socket.shutdown(socket.SHUT_RDWR)
        for _ in range(half):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(b"GET /ws HTTP/1.1\r\n")
        begin = time.monotonic()
        until(lambda: server.hub.count == 0, 2)
        with Client(server) as client:
            client.frame()
            client.picture()
        recovery = time.monotonic() - begin
    assert recovery <= 2, f"recovered after {recovery:.1f} s"
    return f"{ends} resets and {half} half-open connections, served again after {recovery * 1000:.0f} ms"


def check_browser(_model: str, _place: Path, _options: Options) -> str:
    """Row 7: no camera, one that is refused, unplugged or resized, in Chromium."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "browser")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout.strip().splitlines()[-1].strip("= ")


def check_nan(model: str, _place: Path, options: Options) -> str:
    """Row 8: a picture of NaN is never shown, and counted exactly."""
    pipe, count = models.load(model, device="cpu"), max(40, int(1000 * options.scale) // 10 * 10)
    settings = settings_for(model)
    with serving(lambda _: Sick(pipe, settings, 10)) as server, Client(server) as client:
        shown = 0
        for number in range(count):
            client.frame(jpeg((number % 256, 90, 30)))
            if number % 10 == 9:
                assert client.wait("problem")["kind"] == "not_finite"
            else:
                assert client.picture().id == number + 1
                shown += 1
        until(lambda: client.wait("stats")["not_finite"] == count // 10)
        assert client.wait("stats")["shown"] == shown
    return f"{count} frames, {count // 10} of NaN, all withheld and counted"


def check_errors(model: str, _place: Path, options: Options) -> str:
    """Row 9: a network that raises, or has no memory, every 50th time; the session goes on."""
    pipe, count, slowest = models.load(model, device="cpu"), max(100, int(1000 * options.scale)), 0.0
    settings = settings_for(model)
    for error, kind in ((RuntimeError("a bad day"), "network"), (RuntimeError("CUDA out of memory"), "memory")):

        def open_stream(_: Controls, error: Exception = error) -> Sick:
            return Sick(pipe, settings, 50, error)

        with serving(open_stream) as server, Client(server) as client:
            for number in range(count):
                begin = time.monotonic()
                client.frame(jpeg((number % 256, 90, 30)))
                if number % 50 == 49:
                    assert client.wait("problem")["kind"] == kind
                else:
                    client.picture()
                    slowest = max(slowest, time.monotonic() - begin) if number % 50 == 0 and number else slowest
            until(lambda: client.wait("stats")["failed"] == count // 50)
    assert slowest <= 1, f"next frame after {slowest:.1f} s"
    return f"{2 * (count // 50)} errors, the next frame after at most {slowest * 1000:.0f} ms"


def is_settled(tally: Served) -> bool:
    """Whether every frame that arrived has ended somehow."""
    return sum(tally.outcomes.values()) == tally.received


def check_still(model: str, _place: Path, options: Options) -> str:
    """A scene that stands still, at one to four steps: every frame is accounted for, none fails."""
    pipe, lines = models.load(model, device="cpu"), []
    for steps in (1, 2, 3, 4):
        settings = settings_for(model, steps=steps, similarity=True)
        with serving(lambda _, settings=settings: EngineStream(pipe, settings)) as server:
            camera = Camera(server, 20, still=True)
            time.sleep(max(1.5, 10 * options.scale))
            tally = next(iter(server.connections.values())).session.tally
            camera.stop()
            until(partial(is_settled, tally), 3)
        said = f"{steps} steps: {tally.outcomes['skipped']} of {tally.received} skipped"
        assert not camera.problems, f"{said}; {camera.problems}"
        assert is_settled(tally), f"{said}; {tally.outcomes}"
        assert tally.outcomes["skipped"] > 0, f"{said}; {tally.outcomes}"
        lines.append(said)
    return "; ".join(lines)


def check_prompts(model: str, _place: Path, options: Options) -> str:
    """Every control changes at random under load; nothing fails, and the last change holds."""
    pipe, chance = models.load(model, device="cpu"), random.Random(0)
    settings, count = settings_for(model), max(15, int(200 * options.scale))
    with serving(lambda _: EngineStream(pipe, settings)) as server, Client(server) as client:
        for number in range(count):
            client.controls(
                prompt=f"a cat {number}",
                strength=round(chance.uniform(0.3, 1), 2),
                steps=chance.randrange(1, 5),
                guidance=chance.choice(["self", "one-time", "full", "none"]),
                guidance_scale=round(chance.uniform(1, 2), 2),
                cache=chance.randrange(1, 4),
                similarity=chance.random() < 0.5,
            )
            for _ in range(4):
                client.frame(jpeg((chance.randrange(256), 90, 30)))
        last = {}
        while last.get("prompt") != f"a cat {count - 1}":
            message = client.read(20)
            assert not (isinstance(message, dict) and message["type"] == "problem"), message
            last = message["values"] if isinstance(message, dict) and message["type"] == "controls" else last
            if isinstance(message, protocol.PictureMessage):
                client.shown(message.id)
    return f"{count} changes of seven controls among {4 * count} frames"


CHECKS: dict[str, Callable[[str, Path, Options], str]] = {
    "one client": check_one,
    "sixteen clients": check_many,
    "one too many": check_full,
    "slow reader": check_slow_reader,
    "hours": check_hours,
    "disconnects": check_disconnects,
    "browser": check_browser,
    "not finite": check_nan,
    "errors": check_errors,
    "ways in": check_ways_in,
    "bad messages": check_bad_messages,
    "bombs": check_bombs,
    "still scene": check_still,
    "changes under load": check_prompts,
    **CHECKS_OF_CLIPS,
    **CHECKS_OF_DREAMS,
    **CHECKS_OF_HOSTS,
}
