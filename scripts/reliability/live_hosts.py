"""Reliability of sessions that share calls of one network: many clients, one of them hostile."""

import argparse
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from realtime.live_client import Client, jpeg, until
from reliability.live_clients import Camera, milliseconds, settings_for

from diffaccel.realtime.controls import Controls
from diffaccel.realtime.hub import spare_a_core
from diffaccel.realtime.opening import open_hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import LiveSettings


class Hostile:
    """Sends frames without a pause, rubbish, and controls that cost much, and hangs up again and again.

    Attributes:
        sent: frames.
    """

    def __init__(self, server: LiveServer) -> None:
        self.sent = 0
        self._server, self._stop = server, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        chance = random.Random(0)
        while not self._stop.is_set():
            try:
                with Client(self._server) as client:
                    for _ in range(chance.randrange(5, 60)):
                        self._attack(client, chance)
            except Exception:
                time.sleep(0.05)

    def _attack(self, client: Client, chance: random.Random) -> None:
        choice = chance.random()
        if choice < 0.8:
            self.sent += 1
            client.frame(jpeg((chance.randrange(256), 9, 30), (chance.choice((8, 64, 200)), 64)))
        elif choice < 0.9:
            client.controls(
                steps=chance.randrange(1, 9),
                guidance=chance.choice(("self", "one-time", "full", "none")),
                guidance_scale=chance.uniform(0, 5),
                cache=chance.randrange(0, 8),
                prompt="x" * chance.randrange(0, 600),
            )
        else:
            client.socket.send(chance.randbytes(chance.randrange(1, 500)))
        if chance.random() < 0.3:
            client.read(1)

    def stop(self) -> None:
        """Leave."""
        self._stop.set()
        self._thread.join(10)


def check_hosts(model: str, _place: Path, options: argparse.Namespace) -> str:
    """Fifteen clients and a hostile one in one host: all are served alike, and calls are shared."""
    seconds = max(4, 60 * options.scale)
    settings = settings_for(model, steps=2)
    with (
        open_hub(settings, limit=16) as (hub, about),
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
    ):
        hostile = Hostile(server)
        cameras = [Camera(server, 5) for _ in range(15)]
        until(lambda: all(camera.ages for camera in cameras), 60, "not everyone was let in")
        before = [len(camera.ages) for camera in cameras]
        time.sleep(seconds)
        counts = [len(camera.ages) - count for camera, count in zip(cameras, before, strict=True)]
        for camera in cameras:
            camera.stop()
        hostile.stop()
        until(lambda: hub.count == 0, 5, "sessions were left")
        rows = hub.metrics.rows.labels("network")
        calls = sum(bucket.get() for bucket in rows._buckets)
    ages, ratio = [age for camera in cameras for age in camera.ages], max(counts) / max(1, min(counts))
    said = (
        f"{sum(counts)} pictures beside {hostile.sent} hostile frames, p99 {milliseconds(ages, 99):.0f} ms, most to "
        f"least served {ratio:.2f}, {rows._sum.get() / calls:.1f} rows a call"
    )
    assert ratio <= 1.2, said
    assert not any(camera.problems for camera in cameras), f"{said}; {[camera.problems for camera in cameras]}"
    assert rows._sum.get() / calls > 2, said  # two rows a stream
    return said


RATE = 24.0
BURN = "while True: pass"


def check_rate(_model: str, _place: Path, options: argparse.Namespace) -> str:
    """The bundled model holds 24 pictures a second, while another process takes half of the machine for a while."""
    third = max(4, 20 * options.scale)
    controls = Controls(prompt="a green apple", strength=0.65, guidance_scale=1.4, similarity=False)
    settings = LiveSettings(device="cpu", fps=RATE, controls=controls)
    spare_a_core()
    rates, paces = [], []
    with (
        open_hub(settings, limit=2) as (hub, about),
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
    ):
        camera = Camera(server, 30)
        time.sleep(third)  # to find its pace
        client = next(iter(server.connections.values())).session
        for busy in (False, True, False):
            other = subprocess.Popen([sys.executable, "-c", BURN]) if busy else None
            if other is not None:
                time.sleep(third)  # to find it again
            before, begin = client.tally.outcomes["shown"], time.monotonic()
            time.sleep(third)
            rates.append((client.tally.outcomes["shown"] - before) / (time.monotonic() - begin))
            paces.append(client.pace or "as set")
            if other is not None:
                other.kill()
                other.wait()
        camera.stop()
    said = ", ".join(f"{rate:.1f} ({pace})" for rate, pace in zip(rates, paces, strict=True))
    said = f"{said} pictures a second: alone, beside a busy process, and alone again"
    assert all(abs(rate - RATE) <= 0.05 * RATE for rate in rates), said
    return said


CHECKS_OF_HOSTS = {"sixteen in one host": check_hosts, "a rate that is held": check_rate}
