"""`diffaccel live` from a real browser: frames per second and latency, with the bundled model and a stub network.

A headless Chromium opens the page, whose drawing moves, and counts the pictures that it has drawn. Latency is from the
moment at which the page reads its canvas to the moment at which the painted picture of that very frame is drawn.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from diffaccel.realtime.client import Stream
from diffaccel.realtime.engine_stream import EngineStream
from diffaccel.realtime.hub import Hub, spare_a_core
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import Controls, LiveSettings, load_pipeline, picture_size
from diffaccel.stream.report import StreamOutput

CHROMIUM = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync")  # fmt: skip
WARM_UP, STUB_SECONDS = 3.0, 0.020
STUB_SIZE = 512

LISTEN = """() => {
  window.seen = [];
  addEventListener("diffaccel-picture", ({ detail }) => seen.push(detail));
}"""


class StubStream:
    """A network that takes 20 ms and inverts the picture."""

    frames_in_flight = not_finite = 0

    def push(self, image: np.ndarray, *, frame_id: int) -> list[StreamOutput]:
        """The picture, 20 ms later."""
        time.sleep(STUB_SECONDS)
        return [StreamOutput(Image.fromarray(255 - image), frame_id)]

    def flush(self) -> list[StreamOutput]:
        """Nothing is in flight."""
        return []

    def configure(self, controls: Controls) -> None:
        """Nothing to follow."""

    def close(self) -> None:
        """Nothing to close."""


@contextmanager
def page_of(server: LiveServer) -> Iterator[Any]:
    """The server's page in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise click.UsageError("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(CHROMIUM))
        page = browser.new_page(viewport={"width": 1180, "height": 960})
        page.goto(server.url)
        yield page
        browser.close()


def measured(open_stream: Callable[[Controls], Stream], controls: Controls, size: tuple[int, int],
             seconds: float) -> dict[str, float]:  # fmt: skip
    """Serve a network to one browser for so many seconds; what the browser saw."""
    about = {"model": "bench", "width": size[0], "height": size[1]}
    with (
        Hub(open_stream, controls=controls) as hub,
        LiveServer(hub, ServerOptions(port=0), about) as server,
        page_of(server) as page,
    ):
        page.wait_for_timeout(1000 * WARM_UP)
        begin = page.evaluate(f"() => {{ ({LISTEN})(); return performance.now(); }}")
        page.wait_for_timeout(1000 * seconds)
        seen, end = page.evaluate("() => [seen, performance.now()]")
        dropped = sum(c.session.tally.outcomes["dropped"] for c in server.connections.values())
    return summary(seen, (end - begin) / 1000) | {"dropped": dropped}


def summary(seen: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Rate, latency, and what server and page add to the time that a frame spends in the network."""
    if len(seen) < 2:
        raise click.ClickException(f"only {len(seen)} pictures in {seconds:.0f} s: the page does not work")
    latency = [picture["latency"] for picture in seen]
    network = [picture["networkMs"] for picture in seen]
    added = [picture["latency"] - picture["busyMs"] for picture in seen]
    return {
        "fps": len(seen) / seconds,
        "latency median ms": statistics.median(latency),
        "latency p95 ms": percentile(latency, 95),
        "latency p99 ms": percentile(latency, 99),
        "network median ms": statistics.median(network),
        "added median ms": statistics.median(added),
        "added p95 ms": percentile(added, 95),
    }


def percentile(values: list[float], percent: float) -> float:
    """Linear interpolation between the nearest two."""
    return float(np.percentile(values, percent))


def bundled(seconds: float) -> dict[str, float]:
    """The bundled model at 128 x 128, two stages, self-negative guidance, cache on, no frame skipped."""
    controls = Controls(prompt="a green apple", strength=0.65, guidance_scale=1.4, similarity=False)
    settings = LiveSettings(controls=controls)
    spare_a_core()
    pipe = load_pipeline(settings)
    return measured(
        lambda c: EngineStream(pipe, LiveSettings(controls=c)), controls, picture_size(pipe, settings), seconds
    )


def stub(seconds: float) -> dict[str, float]:
    """A network of 20 ms at 512 x 512."""
    return measured(lambda _: StubStream(), Controls(), (STUB_SIZE, STUB_SIZE), seconds)


@click.command(help=__doc__)
@click.option("--part", type=click.Choice(["bundled", "stub"]), multiple=True, default=("stub", "bundled"))
@click.option("--seconds", default=20.0, show_default=True, help="How long each part is measured.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here, too.")
def command(part: tuple[str, ...], seconds: float, file: Path | None) -> None:
    """Measure, and print one line a figure."""
    results = {name: {"bundled": bundled, "stub": stub}[name](seconds) for name in part}
    for name, figures in results.items():
        click.echo(name)
        for what, value in figures.items():
            click.echo(f"  {what:<20}{value:8.1f}")
    if file is not None:
        file.write_text(json.dumps(results, indent=1) + "\n")
