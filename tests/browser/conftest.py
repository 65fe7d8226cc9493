"""A real Chromium, headless, against a live server; `DIFFACCEL_PICTURES=1` renews the pictures that the docs show."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "realtime"))

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
FAKE_CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
DOCS = Path(__file__).parents[2] / "docs" / "pictures"


@pytest.fixture(scope="session")
def camera_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film for the fake camera: a yellow disc that wanders over a blue ground, MJPEG."""
    path = tmp_path_factory.mktemp("camera") / "camera.mjpeg"
    rows, columns = np.mgrid[:240, :320]
    with path.open("wb") as file:
        for step in range(30):
            angle = 2 * np.pi * step / 30
            inside = (columns - 160 - 40 * np.cos(angle)) ** 2 + (rows - 120 - 30 * np.sin(angle)) ** 2 < 75**2
            picture = np.where(inside[..., None], (250, 205, 30), (215, 232, 250)).astype(np.uint8)
            Image.fromarray(picture).save(file, "JPEG", quality=90)
    return path


@pytest.fixture(scope="session")
def playwright_driver() -> Iterator[Any]:
    """Playwright, or a skip that says what to install."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'diffaccel[test]'")
    with api.sync_playwright() as driver:
        yield driver


@pytest.fixture(scope="session")
def launch(playwright_driver: Any) -> Iterator[Callable[..., Any]]:
    """Starts a Chromium with more arguments; one that runs with the same ones is used again."""
    browsers: dict[tuple[str, ...], Any] = {}

    def start(*arguments: str) -> Any:
        if arguments not in browsers:
            browsers[arguments] = playwright_driver.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *arguments])
        return browsers[arguments]

    yield start
    for browser in browsers.values():
        browser.close()


@pytest.fixture
def open_page(launch: Callable[..., Any], camera_file: Path) -> Iterator[Callable[..., Any]]:
    """Opens an address in a new window; errors on the page fail the test."""
    contexts, errors = [], []

    def page_of(url: str, *, arguments: tuple[str, ...] | None = None, **options: Any) -> Any:
        film = f"--use-file-for-fake-video-capture={camera_file}"
        browser = launch(*((*FAKE_CAMERA, film) if arguments is None else arguments))
        context = browser.new_context(**{"viewport": {"width": 1180, "height": 960}} | options)
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    yield page_of
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def keep(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    """Takes a screenshot, into docs/pictures where the tests were asked to renew those."""

    def shoot(page: Any, name: str, **options: Any) -> None:
        folder = tmp_path
        if os.environ.get("DIFFACCEL_PICTURES"):
            folder = DOCS
            page.wait_for_timeout(4000)  # for figures of a stream that is under way
        page.screenshot(path=folder / f"{name}.png", **options)
        assert (folder / f"{name}.png").stat().st_size > 10_000

    return shoot


@pytest.fixture
def stub() -> Iterator[Any]:
    """A server with a stub network of 5 ms, which inverts pictures."""
    from live_client import StubStream
    from page_helpers import serving

    server = serving(lambda c: StubStream(c, 0.005))
    with server.hub, server:
        yield server
