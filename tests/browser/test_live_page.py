"""The page in a real browser: it draws, types, watches pictures change, and reads what is said when something is wrong.

`DIFFACCEL_PICTURES=1 pytest tests/browser` also renews the screenshots in docs/pictures.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_client import Client, StubStream, serving, until
from page_scripts import AVERAGE, PICTURES
from PIL import Image

from diffaccel.realtime.engine_stream import EngineStream
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.metrics import Metrics
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import Controls, LiveSettings, load_pipeline, sizes
from diffaccel.stream.host import StreamHost

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    """The bundled model, as `diffaccel live` serves it."""
    start = Controls(prompt="a green apple", strength=0.65, guidance_scale=1.4, picture_size="128x128")
    pipe = load_pipeline(LiveSettings(device="cpu"))
    about = {"model": "emoji-sd", "width": 128, "height": 128, "sizes": sizes(128, 128)}
    metrics = Metrics()
    with (
        StreamHost(pipe, on_call=metrics.called) as host,
        Hub(lambda c: EngineStream(pipe, LiveSettings(controls=c), host), controls=start, metrics=metrics) as hub,
        LiveServer(hub, ServerOptions(port=0), about) as server,
    ):
        yield server


def pictures(page: Any, count: int = 1) -> None:
    """Wait until so many more pictures were shown."""
    page.evaluate(PICTURES, count)


def average(page: Any) -> np.ndarray:
    """Mean colour of the output."""
    return np.array(page.evaluate(AVERAGE))


def draw(page: Any, *points: tuple[float, float]) -> None:
    """A stroke through points, as fractions of the canvas."""
    box = page.locator("#input").bounding_box()
    where = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*where[0])
    page.mouse.down()
    for point in where[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def press(page: Any, label: str) -> None:
    page.get_by_role("button", name=label, exact=True).click()


def message(page: Any) -> str:
    page.wait_for_selector("#message:not([hidden])")
    return page.locator("#message p").text_content()


def settled(page: Any) -> None:
    pictures(page, 6)


def test_a_drawing_is_painted_and_follows_the_prompt(live: LiveServer, open_page: OpenPage, keep: Any) -> None:
    page = open_page(live.url)
    settled(page)
    apple = average(page)
    assert apple[1] > apple[0] + 10  # green, though the heart on the canvas is red
    keep(page, "live-canvas")
    page.fill("#control-prompt", "a blue heart")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => {{ const [r, g, b] = ({AVERAGE})(); return b > r + 10 && b > g; }}")
    press(page, "Clear")
    draw(page, (0.3, 0.5), (0.5, 0.3), (0.7, 0.5), (0.5, 0.7), (0.3, 0.5))
    page.click("#colours [aria-label=green]")
    draw(page, (0.5, 0.3), (0.6, 0.15))
    settled(page)
    for figure in ("fps", "latency"):
        page.wait_for_function(f"() => +document.getElementById('{figure}').textContent > 0")
    assert page.locator("#message").is_hidden()


@pytest.mark.slow
def test_a_camera_is_painted(live: LiveServer, open_page: OpenPage, keep: Any) -> None:
    page = open_page(live.url)
    page.get_by_role("tab", name="Camera").click()
    page.fill("#control-prompt", "a sunflower")
    page.keyboard.press("Enter")
    settled(page)
    first = average(page)
    assert page.locator("#message").is_hidden()
    keep(page, "live-camera")
    page.click(".examples >> text=a strawberry")
    page.wait_for_function(f"(old) => Math.abs(({AVERAGE})()[1] - old) > 8", arg=float(first[1]))


@pytest.mark.exhaustive
def test_four_pages_at_once_share_calls(live: LiveServer, open_page: OpenPage) -> None:
    """Each with a picture of its own."""
    prompts = ("a red heart", "a green apple", "a blue star", "a sunflower")
    pages = [open_page(live.url) for _ in prompts]
    for page, prompt in zip(pages, prompts, strict=True):
        page.fill("#control-prompt", prompt)
        page.keyboard.press("Enter")
    for page in pages:
        settled(page)
        settled(page)
        assert page.locator("#message").is_hidden()
    rows = live.hub.metrics.rows.labels("network")
    assert rows._sum.get() / sum(bucket.get() for bucket in rows._buckets) > 2.05  # of two rows each
    red, green, blue, _ = (average(page) for page in pages)
    assert red[0] > red[1] + 10
    assert green[1] > green[2] + 5
    assert blue[2] > blue[0]


@pytest.mark.slow
def test_another_size_is_painted_without_a_restart(live: LiveServer, open_page: OpenPage) -> None:
    page = open_page(live.url)
    settled(page)
    page.select_option("#control-picture_size", "160x96")
    page.wait_for_function("() => output.width === 160 && output.height === 96")
    settled(page)
    assert page.evaluate("() => input.width / input.height") == pytest.approx(160 / 96, rel=0.01)
    assert page.locator("#model").text_content().endswith("· 160 \N{MULTIPLICATION SIGN} 96")
    assert page.locator("#message").is_hidden()
    page.click("#reset")
    page.wait_for_function("() => output.width === 128 && output.height === 128")


@pytest.fixture
def stub() -> Iterator[LiveServer]:
    with serving(lambda c: StubStream(c, 0.005), limit=2) as server:
        yield server


@pytest.mark.slow
def test_controls_are_those_of_the_schema_and_reach_the_server(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    drawn = {name: field.json_schema_extra or {} for name, field in Controls.model_fields.items()}
    shown = [name for name, how in drawn.items() if not {"hidden", "beside"} & set(how)]  # this server offers nothing
    assert page.locator("[id^=control-]").count() == len(shown) == len(drawn) - 2
    page.fill("#control-second_prompt", "a dog")
    page.locator("#control-blend").fill("0.5")
    page.select_option("#control-guidance", "one-time")
    page.fill("#control-negative_prompt", "grey")
    page.locator("#control-strength").fill("0.8")
    page.uncheck("#control-similarity")
    page.get_by_role("button", name="Shuffle", exact=True).first.click()  # the second seed has one, too
    expected = {
        "second_prompt": "a dog",
        "blend": 0.5,
        "guidance": "one-time",
        "negative_prompt": "grey",
        "strength": 0.8,
    }

    def arrived() -> bool:
        page.wait_for_timeout(50)
        now = next(iter(stub.connections.values())).session.controls.model_dump()
        return expected.items() <= now.items() and now["negative_prompt"] == "grey"

    until(arrived)
    assert page.locator("#control-similarity_threshold").is_disabled()
    press(page, "Reset controls")
    until(lambda: page.wait_for_timeout(50) or page.input_value("#control-guidance") == "self")


@pytest.mark.slow
def test_undo_clear_and_fill(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    press(page, "Clear")
    pictures(page, 3)
    assert average(page) == pytest.approx([0, 0, 0], abs=2)  # the stub inverts white paper
    draw(page, (0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8))
    pictures(page, 3)
    assert average(page)[1] > 60
    page.keyboard.press("Control+z")
    pictures(page, 3)
    assert average(page) == pytest.approx([0, 0, 0], abs=2)


@pytest.mark.slow
def test_no_camera_is_explained_with_a_way_on(stub: LiveServer, open_page: OpenPage) -> None:
    none = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream=device-count=0")
    page = open_page(stub.url, arguments=none)
    page.get_by_role("tab", name="Camera").click()
    assert "No camera was found" in message(page)
    press(page, "Draw instead")
    assert page.locator("#message").is_hidden()
    pictures(page, 2)


@pytest.mark.slow
def test_a_refused_camera_is_explained(stub: LiveServer, open_page: OpenPage) -> None:
    refused = ("--use-fake-device-for-media-stream", "--deny-permission-prompts")
    page = open_page(stub.url, arguments=refused)
    page.get_by_role("tab", name="Camera").click()
    assert "may not use the camera" in message(page)


@pytest.mark.slow
def test_a_camera_that_comes_when_something_else_was_chosen_is_switched_off(
    stub: LiveServer, open_page: OpenPage
) -> None:
    page = open_page(stub.url)
    page.evaluate("""() => {
      const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      const asked = new Promise((answer) => (window.allow = answer));
      navigator.mediaDevices.getUserMedia = async (what) => { await asked; return (window.given = await ask(what)); };
    }""")
    page.get_by_role("tab", name="Camera").click()
    page.get_by_role("tab", name="Draw").click()
    page.evaluate("() => allow()")
    page.wait_for_function("() => window.given?.getTracks().every((track) => track.readyState === 'ended')")
    assert page.evaluate("() => video.srcObject") is None
    pictures(page, 2)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["camera", "picture"])
def test_a_source_may_be_chosen_before_the_server_has_answered(
    source: str, stub: LiveServer, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page("about:blank")
    held: list[Any] = []
    page.route("**/schema*", lambda route: held.append(route))
    page.goto(stub.url)
    if source == "camera":
        page.get_by_role("tab", name="Camera").click()
    else:
        Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
        page.set_input_files("#picture-file", tmp_path / "red.png")
    press(page, "Save")
    while not held:
        page.wait_for_timeout(50)
    held[0].continue_()
    pictures(page, 2)
    assert page.locator(f"[data-source={source}]").get_attribute("aria-selected") == "true"
    assert page.locator("#message").is_hidden()
    if source == "picture":
        until(lambda: average(page)[2] > average(page)[0] + 50)  # red, which the stub inverts


@pytest.mark.slow
def test_strokes_are_seen_at_once_where_the_network_is_slow(open_page: OpenPage) -> None:
    with serving(lambda c: StubStream(c, 1.6)) as server:
        page = open_page(server.url)
        press(page, "Clear")
        pictures(page, 5)  # by now the page knows how slow it is, and sends a frame for each picture
        draw(page, (0.3, 0.5), (0.7, 0.5))
        seen = "() => input.getContext('2d').getImageData(256, 256, 1, 1).data[1] < 100"
        page.wait_for_function(seen, timeout=800)


@pytest.mark.slow
def test_the_keyboard_reaches_everything(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    page.focus("#sources [aria-selected=true]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.activeElement.textContent") == "Camera"
    assert page.get_attribute("[data-source=camera]", "aria-selected") == "false"
    page.keyboard.press("Enter")
    assert page.get_attribute("[data-source=camera]", "aria-selected") == "true"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.focus("#colours [aria-checked=true]")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#colours [aria-checked=true]", "aria-label") == "orange"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("() => document.activeElement.type") == "color"
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#colours [aria-checked=true]", "aria-label") == "white"
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.parentElement.id") == "brushes"


@pytest.mark.slow
def test_an_unplugged_camera_is_explained_and_comes_back(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    page.get_by_role("tab", name="Camera").click()
    pictures(page, 2)
    page.evaluate("() => video.srcObject.getVideoTracks()[0].dispatchEvent(new Event('ended'))")
    assert "unplugged" in message(page)
    press(page, "Try again")
    pictures(page, 2)
    assert page.locator("#message").is_hidden()


@pytest.mark.slow
def test_a_camera_may_change_its_size_again_and_again(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    page.get_by_role("tab", name="Camera").click()
    page.wait_for_function("() => video.srcObject")
    pictures(page, 2)
    for width in (160, 320) * 10:
        page.evaluate("(width) => video.srcObject.getVideoTracks()[0].applyConstraints({ width })", width)
        pictures(page)
    until(lambda: page.wait_for_timeout(50) or page.locator("#failed").text_content() == "0")


@pytest.mark.slow
def test_one_too_many_is_told_and_may_try_again(stub: LiveServer, open_page: OpenPage) -> None:
    token = stub.options.token
    with Client(stub, token=token) as one, Client(stub, token=token) as two:
        one.wait("hello"), two.wait("hello")
        page = open_page(stub.url)
        assert "limit" in message(page)
        press(page, "Try again")
        assert "limit" in message(page)
    pictures(page)  # by itself, once somebody left
    assert page.locator("#message").is_hidden()


@pytest.mark.slow
def test_a_lost_connection_is_told_and_restored_with_the_controls(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    page.fill("#control-prompt", "a fox")
    page.keyboard.press("Enter")
    pictures(page, 2)
    connection = next(iter(stub.connections.values()))
    asyncio.run_coroutine_threadsafe(connection._socket.close(1001), connection.loop)
    assert "connection" in message(page)
    pictures(page, 2)
    assert next(iter(stub.connections.values())).session.controls.prompt == "a fox"


def test_a_wrong_token_is_told(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(f"http://127.0.0.1:{stub.port}/?token=wrong")
    assert "open the address that the program printed" in message(page)


@pytest.mark.slow
def test_a_phone_in_the_dark(live: LiveServer, open_page: OpenPage, keep: Any) -> None:
    page = open_page(
        live.url, viewport={"width": 375, "height": 812}, device_scale_factor=2, is_mobile=True, has_touch=True,
        color_scheme="dark",
    )  # fmt: skip
    settled(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    keep(page, "live-phone")
