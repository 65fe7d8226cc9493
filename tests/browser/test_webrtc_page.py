"""WebRTC on the page, in Chromium: video flows both ways, and what does not get through is said."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_client import StubStream, until
from page_helpers import becomes_coloured, message, pictures, press

from diffaccel.realtime.hub import Hub
from diffaccel.realtime.server import LiveServer, ServerOptions

pytest.importorskip("aiortc", reason="no aiortc: pip install 'diffaccel[webrtc]'")
pytestmark = pytest.mark.slow

OpenPage = Callable[..., Any]
OVER_RTC = """() => new Promise((done) =>
  addEventListener("diffaccel-picture", ({ detail }) => detail.webrtc && done(true)))"""


@pytest.fixture
def server() -> Iterator[LiveServer]:
    hub = Hub(lambda controls: StubStream(controls, 0.005))
    about = {"model": "stub", "width": 64, "height": 64}
    with hub, LiveServer(hub, ServerOptions(port=0, token="secret", webrtc=True), about) as server:
        yield server


def test_video_flows_both_ways(server: LiveServer, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.evaluate(OVER_RTC)
    press(page, "Clear")
    becomes_coloured(page, [0] * 3, within=14)  # white, inverted
    assert page.locator("#message").is_hidden()
    page.wait_for_function("() => ['live', 'still'].includes(document.getElementById('live-badge').textContent)")
    tally = next(iter(server.connections.values())).session.tally
    before = tally.received
    press(page, "Pause")
    page.wait_for_timeout(1000)
    press(page, "Go on")
    page.evaluate(OVER_RTC)
    until(lambda: tally.received > before)


def test_the_page_goes_on_without_it_and_says_so(server: LiveServer, open_page: OpenPage) -> None:
    page = open_page(server.url)
    page.route("**/rtc?*", lambda route: route.fulfill(status=422, json={"detail": "it is blocked"}))
    page.reload()
    assert "WebRTC does not work here: it is blocked. The page goes on without it" in message(page)
    pictures(page, 3)
