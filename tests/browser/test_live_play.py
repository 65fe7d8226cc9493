"""Ten minutes of play with the page, in Chromium: refusals, other hands and fingers, hidden tabs, lost connections."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_client import StubStream, until
from page_helpers import asked, becomes, box, message, pictures, press, serving
from PIL import Image

from diffaccel.realtime.controls import ControlNetControls, Controls
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.protocol import LARGEST_SIDE
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.stream.report import StreamOutput

pytestmark = pytest.mark.slow

OpenPage = Callable[..., Any]
INK = "([x, y]) => [...input.getContext('2d').getImageData(x, y, 1, 1).data.slice(0, 3)]"
WHITE = [255, 255, 255]


class Choosy(StubStream):
    """A model that cannot do without guidance, and skips frames."""

    def configure(self, controls: Controls) -> None:
        if controls.guidance == "none" or not controls.similarity:
            raise ValueError("this model needs that")
        super().configure(controls)


def test_what_is_refused_is_not_shown_and_no_step_back(open_page: OpenPage) -> None:
    server = serving(Choosy)
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        page.locator("#control-strength").fill("0.8")
        becomes(page, lambda: asked(server).strength == 0.8)
        page.focus("#control-guidance")  # who chooses is still there when the answer comes
        page.select_option("#control-guidance", "none")
        assert message(page) == "this model needs that"
        becomes(page, lambda: page.input_value("#control-guidance") == "self")
        page.click("#control-similarity")
        becomes(page, lambda: page.is_checked("#control-similarity"))
        press(page, "Undo change")
        becomes(page, lambda: asked(server) == Controls())
        assert page.locator("#message").is_hidden()  # it is about what nobody asks for any more


def test_a_field_shows_what_came_while_somebody_was_in_it(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    page.focus("#control-prompt")
    stub.change(None, {"prompt": "a fox", "seed": 5})
    becomes(page, lambda: page.input_value("#control-seed") == "5")
    assert page.input_value("#control-prompt") == Controls().prompt  # nobody's typing is taken away
    page.focus("#control-seed")
    assert page.input_value("#control-prompt") == "a fox"
    connection = next(iter(stub.connections.values()))
    asyncio.run_coroutine_threadsafe(connection._socket.close(1001), connection.loop)
    message(page)
    pictures(page, 2)
    assert next(iter(stub.connections.values())) is not connection
    becomes(page, lambda: asked(stub) == Controls(prompt="a fox", seed=5))  # by whomever it was changed


def test_a_server_that_was_started_again_with_less_takes_the_rest(open_page: OpenPage) -> None:
    server = serving(controls=ControlNetControls())
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        page.locator("#control-strength").fill("0.8")
        becomes(page, lambda: asked(server).strength == 0.8)
        server.hub.controls = Controls(seed=3)
        connection = next(iter(server.connections.values()))
        asyncio.run_coroutine_threadsafe(connection._socket.close(1001), connection.loop)
        until(lambda: page.wait_for_timeout(50) or connection not in server.connections.values())
        becomes(page, lambda: server.connections and asked(server) == Controls(seed=3, strength=0.8))
        pictures(page)
        assert page.locator("#message").is_hidden()


MOVING = """async () => {
  const slider = document.getElementById("control-strength"), seen = [];
  for (let step = 0; step < 20; step++) {
    slider.value = 0.5 + step / 50;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => setTimeout(done, 50));
    seen.push(Math.abs(slider.value - 0.5 - step / 50) < 0.001);
  }
  slider.dispatchEvent(new Event("change", { bubbles: true }));
  return seen.every(Boolean);
}"""


def test_the_picture_follows_a_slider_while_it_moves(open_page: OpenPage) -> None:
    followed: list[float] = []

    class Noting(StubStream):
        """Takes note of strengths."""

        def configure(self, controls: Controls) -> None:
            followed.append(controls.strength)
            super().configure(controls)

    server = serving(Noting)
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        assert page.evaluate(MOVING)  # and stays where it was moved to
        becomes(page, lambda: followed[-1:] == [0.88])
        assert 3 <= len(followed) <= 10
        press(page, "Undo change")
        becomes(page, lambda: asked(server) == Controls())


def test_a_tab_that_nobody_looks_at_sends_no_more_than_another(open_page: OpenPage) -> None:
    server = serving(StubStream)
    with server.hub, server:
        page = open_page(server.url)
        page.evaluate("() => Object.defineProperty(document, 'hidden', { get: () => true })")
        pictures(page, 3)
        tally = next(iter(server.connections.values())).session.tally
        before = tally.received
        page.wait_for_timeout(2000)
        assert 10 <= tally.received - before <= 70  # of 30 a second


TRYING = """async () => {
  const { Link } = await import("/page/link.js");
  const link = new Link("secret", "again");
  link.greeted = 0;
  link.addEventListener("hello", () => link.greeted++);
  link.connect();
  link.connect();
  await new Promise((done) => setTimeout(done, 1000));
  return link.greeted;
}"""


def test_a_connection_that_is_tried_again_is_one_session(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    assert page.evaluate(TRYING) == 1
    until(lambda: [each.name for each in stub.connections.values()].count("again") == 1)


def test_only_the_hand_that_draws_draws(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url, has_touch=True)
    press(page, "Clear")
    place = box(page, "#input")

    def where(x: float, y: float) -> tuple[float, float]:
        return place["x"] + x * place["width"], place["y"] + y * place["height"]

    page.focus("#input")
    page.keyboard.press("Space")
    page.mouse.move(*where(0.2, 0.2))  # nobody presses a button
    page.mouse.move(*where(0.8, 0.2), steps=5)
    page.keyboard.press("Shift+ArrowRight")
    becomes(page, lambda: page.evaluate(INK, [270, 256]) != WHITE)
    assert page.evaluate(INK, [256, 105]) == WHITE
    page.keyboard.press("Control+z")
    assert not page.locator("#pen.down").count()  # what is taken back is not drawn on
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowLeft")
    becomes(page, lambda: page.evaluate(INK, [270, 256]) != WHITE)
    press(page, "Clear")
    touch = page.context.new_cdp_session(page)
    first, second = (dict(zip("xy", where(0.3, y), strict=True), id=k) for k, y in enumerate((0.3, 0.9)))
    moved = dict(zip("xy", where(0.7, 0.3), strict=True), id=0)
    for kind, points in (
        ("touchStart", [first]), ("touchStart", [first, second]), ("touchMove", [moved, second]), ("touchEnd", []),
    ):  # fmt: skip
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    becomes(page, lambda: page.evaluate(INK, [256, 154]) != WHITE)
    assert page.evaluate(INK, [205, 308]) == WHITE  # between the two fingers


def test_clear_is_taken_back_and_only_by_who_draws(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    page.focus("#input")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    for _ in range(2):
        press(page, "Clear")
    becomes(page, lambda: page.evaluate(INK, [260, 256]) == WHITE)
    page.focus("#control-strength")
    page.keyboard.press("Control+z")
    page.wait_for_timeout(200)
    assert page.evaluate(INK, [260, 256]) == WHITE
    press(page, "Undo")
    becomes(page, lambda: page.evaluate(INK, [260, 256]) != WHITE)


LOCKS = """() => {
  window.locks = [];
  const request = async () => {
    const lock = { release: async () => { locks.push("off"); lock.onrelease?.(); } };
    locks.push("on");
    return lock;
  };
  Object.defineProperty(navigator, "wakeLock", { value: { request } });
}"""


def test_a_screen_stays_on_while_a_camera_is_painted(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    page.evaluate(LOCKS)
    pictures(page)
    page.get_by_role("tab", name="Camera").click()
    becomes(page, lambda: page.evaluate("() => locks") == ["on"])
    press(page, "Pause")
    becomes(page, lambda: page.evaluate("() => locks") == ["on", "off"])
    press(page, "Go on")
    becomes(page, lambda: page.evaluate("() => locks") == ["on", "off", "on"])


STROKES = """async () => {
  const { Drawing } = await import("/page/draw.js");
  const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
  const drawing = new Drawing(canvas, { }, document.createElement("i"));
  drawing.clear();
  for (let k = 0; k < 50; k++) {
    drawing.stroke = drawing.newStroke([k, k]);
    drawing.stroke = null;
  }
  const context = canvas.getContext("2d"), { stroke } = CanvasRenderingContext2D.prototype;
  let strokes = 0;
  CanvasRenderingContext2D.prototype.stroke = function () { strokes++; stroke.call(this); };
  const counts = [];
  const nothing = () => {}, another = () => drawing.newStroke([9, 9]), smaller = () => (canvas.width = 32);
  for (const change of [nothing, nothing, another, () => drawing.undo(), smaller]) {
    change();
    strokes = 0;
    drawing.paint(context);
    counts.push(strokes);
  }
  CanvasRenderingContext2D.prototype.stroke = stroke;
  return counts;
}"""


def test_a_drawing_of_many_strokes_is_painted_once(stub: LiveServer, open_page: OpenPage) -> None:
    assert open_page(stub.url).evaluate(STROKES) == [50, 0, 1, 50, 50]


LINE = "() => [...output.getContext('2d').getImageData(0, 9, output.width, 1).data].filter((_, k) => k % 4 < 3)"


class Sized(StubStream):
    """Pictures of the size that is asked for."""

    def push(self, image: np.ndarray, *, frame_id: int) -> list[StreamOutput]:
        (output,) = super().push(image, frame_id=frame_id)
        size = [int(side) for side in (self.controls.picture_size or "64x64").split("x")]
        return [StreamOutput(output.image.resize(size, Image.Resampling.NEAREST), frame_id)]


def test_a_preset_of_another_server_and_a_recording_of_another_size(open_page: OpenPage, tmp_path: Path) -> None:
    about = {"model": "one", "models": ["one", "two"], "sizes": ["64x64", "96x64"], "width": 64, "height": 64}
    begin = Controls(model="one", picture_size="64x64")
    with (
        Hub(lambda controls: Sized(controls, 0.005), controls=begin) as hub,
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
    ):
        page = open_page(server.url)
        pictures(page)
        wanted = {"model": "three", "prompt": "a fox", "picture_size": "80x64", "constructor": 1}
        (tmp_path / "theirs.json").write_text(json.dumps(wanted))
        page.set_input_files("#preset-file", tmp_path / "theirs.json")
        assert "no model “three”, constructor; the rest is taken" in message(page)
        becomes(page, lambda: asked(server) == begin.model_copy(update={"prompt": "a fox", "picture_size": "80x64"}))
        page.wait_for_function("() => output.width === 80")
        press(page, "Record")
        page.wait_for_timeout(600)
        with page.expect_download() as download:
            page.select_option("#control-picture_size", "96x64")
        download.value.save_as(tmp_path / "recorded")
        assert (tmp_path / "recorded").stat().st_size > 500
        assert "The recording ended here" in message(page)
        page.wait_for_function("() => output.width === 96 && record.textContent === 'Record'")


def test_a_large_picture_full_of_detail_is_sent_as_it_is(open_page: OpenPage, tmp_path: Path) -> None:
    server = serving(StubStream, size=(1280, 1280))
    noise = np.random.default_rng(0).integers(0, 256, (1280, 1280, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        assert page.evaluate("() => input.width") == 1280
        connection = next(iter(server.connections.values()))
        page.get_by_role("tab", name="Picture").click()
        page.set_input_files("#picture-file", tmp_path / "noise.png")
        becomes(page, lambda: np.std(page.evaluate(LINE)) > 50)  # half the pixels, or a blur, have less
        assert next(iter(server.connections.values())) is connection
        page.get_by_role("tab", name="Draw").click()
        press(page, "Clear")
        page.focus("#input")
        page.keyboard.press("Space")
        page.keyboard.press("Shift+ArrowRight")
        becomes(page, lambda: page.evaluate(INK, [680, 640]) != WHITE)
        page.keyboard.press("Space")
        page.wait_for_timeout(200)
        assert page.evaluate(INK, [680, 640]) != WHITE
        assert page.evaluate(INK, [640, 690]) == WHITE  # a brush is as thick on every canvas, as one sees it


def test_frames_are_no_wider_than_the_server_takes(open_page: OpenPage) -> None:
    server = serving(StubStream, size=(2 * LARGEST_SIDE, 64))
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        page.wait_for_function(f"() => output.width === {LARGEST_SIDE} && output.height === 32")
        assert page.locator("#message").is_hidden()
