"""Pages that nobody sees, networks that are slow or quick, and a keyboard, in Chromium."""

from collections.abc import Callable
from typing import Any

import pytest
from live_client import SIZE, Client, StubStream, until
from page_helpers import asked, becomes, box, message, pictures, press, serving

from diffaccel.realtime import server as live_server
from diffaccel.realtime.controls import Controls
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.server import LiveServer, ServerOptions

pytestmark = pytest.mark.slow

OpenPage = Callable[..., Any]
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
WATCH = """() => {
  window.faded = 0;
  setInterval(() => (window.faded += document.querySelector("canvas.old") ? 1 : 0), 50);
}"""
NOTE = """() => {
  window.said = 0;
  new MutationObserver(() => window.said++).observe(document.querySelector("#message .actions"), { childList: true });
}"""
SAY = """async () => {
  const { say, dismiss } = await import("/page/say.js");
  say("Something.", dismiss);
}"""
SENT = """async () => {
  const { send } = WebSocket.prototype, times = [];
  WebSocket.prototype.send = function (data) {
    if (data.byteLength > 8) times.push(performance.now());
    return send.call(this, data);
  };
  await new Promise((done) => setTimeout(done, 1500));
  return times.slice(1).map((time, i) => time - times[i]);
}"""
LATER = "() => { const now = performance.now.bind(performance); performance.now = () => now() + 61000; }"


def received(server: LiveServer) -> int:
    return sum(each.session.tally.received for each in server.connections.values())


def test_a_page_that_nobody_sees_rests_and_comes_back_to_its_place(
    open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serving(limit=1)
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        page.evaluate(HIDE, True)
        page.evaluate(LATER)
        page.wait_for_timeout(300)
        before = received(server)
        page.wait_for_timeout(500)
        assert received(server) == before
        monkeypatch.setattr(live_server, "FORGOTTEN_AFTER", 0.2)
        with Client(server) as other:
            assert other.wait("hello")
            assert "somebody else needed the place" in message(page)
        until(lambda: server.hub.count == 0)
        page.wait_for_timeout(1200)
        assert server.hub.count == 0  # nobody is there
        page.evaluate(HIDE, False)
        pictures(page)
        assert page.locator("#message").is_hidden()


def test_a_slow_network_shows_each_picture_until_the_next(open_page: OpenPage) -> None:
    server = serving(lambda controls: StubStream(controls, 1.2))
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        page.evaluate(WATCH)
        pictures(page, 3)
        assert page.evaluate("window.faded") <= 6  # before the first one
        assert 0.5 <= float(page.text_content("#fps")) <= 1


@pytest.mark.parametrize("size", [(128, 128), (72, 128)])
def test_the_pictures_stay_in_sight_of_every_control(open_page: OpenPage, size: tuple[int, int]) -> None:
    server = serving(size=size)
    with server.hub, server:
        page = open_page(server.url, viewport={"width": 1280, "height": 800})
        pictures(page)
        tops = page.evaluate("() => [...document.querySelectorAll('.output .tool')].map((t) => t.offsetTop)")
        assert len(set(tops)) == 1  # in one row
        page.evaluate("() => scrollTo(0, 1e6)")
        page.wait_for_timeout(100)
        for what in ("#input", "#output", "#save"):
            shown = box(page, what)
            assert 0 <= shown["y"] <= shown["y"] + shown["height"] <= 800


def test_a_rate_above_thirty_is_reached(open_page: OpenPage) -> None:
    about = {"model": "stub", "width": SIZE, "height": SIZE, "fps": 50}
    hub = Hub(StubStream, controls=Controls(similarity=False), fps=50)
    with hub, LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server:
        page = open_page(server.url)
        pictures(page, 20)
        apart = page.evaluate(SENT)
        assert min(apart) < 1000 / 40


def test_another_server_gets_what_was_changed_and_nothing_that_it_has_not(open_page: OpenPage) -> None:
    about = {"model": "old", "width": SIZE, "height": SIZE, "sizes": ["64x64", "96x64"], "loras": ["", "style"]}
    begin = Controls(model="old", picture_size="64x64")
    hub = Hub(StubStream, controls=begin)
    with hub, LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server:
        page = open_page(server.url)
        pictures(page)
        page.locator("#control-strength").fill("0.8")
        page.select_option("#control-lora", "style")
        becomes(page, lambda: asked(server).lora == "style")
        server.about = {**about, "model": "new", "loras": [], "sizes": ["128x128"]}
        hub.controls = Controls(model="new", picture_size="128x128", steps=1)
        connection = next(iter(server.connections.values()))
        connection.loop.call_soon_threadsafe(lambda: connection.loop.create_task(connection._socket.close(1001)))
        becomes(page, lambda: connection not in server.connections.values() and server.connections)
        becomes(page, lambda: asked(server) == hub.controls.model_copy(update={"strength": 0.8}))
        assert page.input_value("#control-steps") == "1"


def test_who_is_on_a_button_stays_there_and_escape_dismisses(open_page: OpenPage) -> None:
    server = serving(limit=1)
    with server.hub, server, Client(server) as other:
        other.wait("hello")
        page = open_page(server.url)
        message(page)
        page.locator("#message button").focus()
        page.evaluate(NOTE)
        press(page, "Try again")
        page.wait_for_timeout(300)
        assert page.evaluate("document.activeElement.textContent") == "Try again"
        assert page.evaluate("window.said") == 0
    server = serving()
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        page.evaluate(SAY)
        page.keyboard.press("Escape")
        assert page.locator("#message").is_hidden()
