"""Dream, models and LoRAs on the page, in Chromium: a clip plays and follows the words, on desktops and phones."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_client import StubStream, until
from page_helpers import SCREENS, asked, average, becomes_coloured, box, message, pictures, press
from PIL import Image

from diffaccel.cli.live import START
from diffaccel.realtime.controls import Controls
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.opening import open_hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import LiveSettings
from diffaccel.stream.report import StreamOutput

pytestmark = pytest.mark.slow

OpenPage = Callable[..., Any]
OFFERED = {"dream": True, "models": ["stub", "other"], "loras": ["", "style"]}


class Clips(StubStream):
    """Paints grey where it dreams, from the input a lighter one; cannot dream of the impossible."""

    def __init__(self, controls: Controls) -> None:
        super().__init__(controls, 0.02)

    def push(self, image: Any, *, frame_id: int) -> list[StreamOutput]:
        if self.controls.dream == "off":
            return super().push(image, frame_id=frame_id)
        self.begun = image[32, 32].tolist()
        grey = {"words": 60, "input": 180}[self.controls.dream]
        return [StreamOutput(Image.new("RGB", (64, 64), (grey,) * 3), frame_id)]

    def configure(self, controls: Controls) -> None:
        if controls.dream != "off" and controls.prompt == "nothing":
            raise ValueError("nobody dreams of nothing: say what")
        super().configure(controls)


@pytest.fixture
def clips() -> Iterator[LiveServer]:
    hub = Hub(Clips, controls=Controls(model="stub"))
    about = {"model": "stub", "width": 64, "height": 64, **OFFERED}
    with hub, LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server:
        yield server


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def chosen(page: Any) -> str:
    found: str = page.locator("#sources [aria-selected=true]").text_content()
    return found


@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS.keys())
def test_a_clip_begins_with_words_or_with_the_drawing(
    clips: LiveServer, open_page: OpenPage, screen: dict[str, Any]
) -> None:
    page = open_page(clips.url, **screen)
    pictures(page, 2)
    tab(page, "Dream")
    page.wait_for_selector("#dream-note:not([hidden])")
    until(lambda: asked(clips).dream == "words")
    becomes_coloured(page, [60] * 3, within=4)
    until(lambda: not page.locator("#latency").text_content().isdecimal())
    page.wait_for_function("() => document.getElementById('live-badge').textContent === 'dream'")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= screen["viewport"]["width"]
    assert page.locator("#control-strength").is_disabled()
    assert page.locator("#control-steps").is_enabled()
    sources = box(page, "#sources")
    assert sources["x"] >= 0
    assert sources["x"] + sources["width"] <= screen["viewport"]["width"]
    tab(page, "Draw")
    until(lambda: asked(clips).dream == "off")
    assert page.locator("#control-strength").is_enabled()
    press(page, "Clear")
    where = box(page, "#input")
    page.mouse.move(where["x"] + 20, where["y"] + 20)
    page.mouse.down()
    page.mouse.move(where["x"] + where["width"] - 20, where["y"] + where["height"] - 20, steps=5)
    page.mouse.up()
    tab(page, "Dream")
    until(lambda: asked(clips).dream == "input")
    becomes_coloured(page, [180] * 3, within=4)
    assert page.locator("#dream-note").is_hidden()
    red, green, blue = next(iter(clips.connections.values())).session._stream.begun  # type: ignore[union-attr]
    assert red > 150 > max(green, blue)  # the stroke


@pytest.mark.parametrize("width", [320, 375, 660, 1024, 1100, 1360])
def test_no_source_is_in_the_way_of_another(clips: LiveServer, open_page: OpenPage, width: int) -> None:
    page = open_page(clips.url, viewport={"width": width, "height": 800})
    pictures(page)
    for name in ("Picture", "Camera"):
        tab(page, name)
        room = page.evaluate("() => [...sources.children].map((each) => each.clientWidth - each.scrollWidth)")
        assert min(room) >= 0
        inside = page.evaluate("() => sources.scrollWidth <= sources.clientWidth")
        assert inside


def test_what_changes_elsewhere_is_shown_and_a_refusal_is_said(clips: LiveServer, open_page: OpenPage) -> None:
    page = open_page(clips.url)
    pictures(page, 2)
    clips.change(None, {"dream": "words"})
    page.wait_for_selector("#sources [data-source=dream][aria-selected=true]")
    clips.change(None, {"dream": "off"})
    page.wait_for_selector("#sources [data-source=draw][aria-selected=true]")
    page.fill("#control-prompt", "nothing")
    page.keyboard.press("Enter")
    until(lambda: asked(clips).prompt == "nothing")
    tab(page, "Dream")
    assert message(page) == "nobody dreams of nothing: say what"
    page.wait_for_selector("#sources [data-source=draw][aria-selected=true]")
    assert page.locator("#message").is_visible()
    pictures(page, 2)


def test_a_clip_goes_on_behind_a_reconnect(clips: LiveServer, open_page: OpenPage) -> None:
    page = open_page(clips.url)
    pictures(page, 2)
    tab(page, "Dream")
    until(lambda: asked(clips).dream == "words")
    pictures(page, 2)
    gone = next(iter(clips.connections.values()))
    asyncio.run_coroutine_threadsafe(gone._socket.close(1001), gone.loop)
    assert "connection" in message(page)
    until(lambda: clips.connections and asked(clips).dream == "words")
    pictures(page, 2)
    page.wait_for_selector("#message", state="hidden")
    becomes_coloured(page, [60] * 3, within=4)
    press(page, "Pause")
    assert page.locator("#live-badge").text_content() in ("dream", "paused")
    press(page, "Go on")
    before = asked(clips).seed
    press(page, "Another clip")
    until(lambda: asked(clips).seed != before)


@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS.keys())
def test_models_and_loras_are_chosen(clips: LiveServer, open_page: OpenPage, screen: dict[str, Any]) -> None:
    page = open_page(clips.url, **screen)
    pictures(page, 2)
    assert page.locator("#control-model option").all_text_contents() == ["stub", "other"]
    assert page.locator("#control-lora option").all_text_contents() == ["none", "style"]
    assert page.locator("#control-lora_scale").is_disabled()
    page.select_option("#control-model", "other")
    page.select_option("#control-lora", "style")
    until(lambda: (asked(clips).model, asked(clips).lora) == ("other", "style"))
    page.locator("#control-lora_scale").fill("0.5")
    until(lambda: asked(clips).lora_scale == 0.5)
    page.wait_for_function("() => document.getElementById('model').textContent.startsWith('other')")
    press(page, "Undo change")
    until(lambda: asked(clips).lora_scale == 1)


class Slow(Clips):
    """Takes long to load another model, and that of clips."""

    def configure(self, controls: Controls) -> None:
        if (controls.model, controls.dream) != (self.controls.model, self.controls.dream):
            time.sleep(2.5)
        super().configure(controls)


def test_what_is_loaded_is_said_for_as_long_as_that_takes(open_page: OpenPage) -> None:
    about = {"model": "stub", "width": 64, "height": 64, **OFFERED}
    with (
        Hub(Slow, controls=Controls(model="stub")) as hub,
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
    ):
        page = open_page(server.url)
        pictures(page, 2)
        tab(page, "Dream")
        page.wait_for_selector("#waiting:not([hidden]):text-is('Preparing the clip …')")
        pictures(page, 2)
        page.wait_for_selector("#waiting", state="hidden")
        tab(page, "Draw")
        pictures(page, 2)
        press(page, "Pause")
        page.wait_for_timeout(800)
        page.select_option("#control-model", "other")
        page.wait_for_selector("#waiting:not([hidden]):text-is('Loading other …')")
        page.wait_for_selector("#waiting", state="hidden")
        page.wait_for_function("() => document.getElementById('model').textContent.startsWith('other')")


def test_a_server_that_offers_nothing_shows_nothing_of_it(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    for what in ("#sources [data-source=dream]", "#control-model", "#control-lora"):
        assert page.locator(what).is_hidden()
    assert page.locator("#control-lora_scale").count() == 0
    page.focus("#sources [data-source=draw]")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("() => document.activeElement.dataset.source") == "video"


def test_the_bundled_model_dreams(open_page: OpenPage, keep: Callable[..., None]) -> None:
    start = Controls(**{**START, "prompt": "a red heart bounces", "steps": 4})
    with (
        open_hub(LiveSettings(device="cpu", controls=start), limit=2) as (hub, about),
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
    ):
        page = open_page(server.url, viewport=SCREENS["desktop"]["viewport"])
        page.context.set_default_timeout(60_000)
        pictures(page, 2)
        tab(page, "Dream")
        pictures(page, 6)
        keep(page, "live-dream")
        first = average(page)
        page.fill("#control-prompt", "a green apple grows")
        page.keyboard.press("Enter")
        pictures(page, 16)
        assert average(page)[0] < first[0] + 20
        registry = server.hub.metrics.registry
        assert registry.get_sample_value("diffaccel_frames_total", {"outcome": "shown"}) > 22  # type: ignore[operator]
        assert not registry.get_sample_value("diffaccel_frames_total", {"outcome": "failed"})
