"""What the page says, and how it looks: in Chromium, on a desktop, on a phone upright and on its side."""

import io
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import videos
from live_client import Client, StubStream, until
from page_helpers import SCREENS, asked, box, message, pictures, press, serving
from PIL import Image

from diffaccel.realtime.hub import Hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import Controls
from diffaccel.stream.report import StreamOutput

pytestmark = pytest.mark.slow

OpenPage = Callable[..., Any]
screens = pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS.keys())


@screens
def test_the_pictures_are_seen_and_nothing_is_wider_than_the_screen(
    stub: LiveServer, open_page: OpenPage, screen: dict[str, Any]
) -> None:
    page = open_page(stub.url, **screen)
    pictures(page, 2)
    width, height = screen["viewport"].values()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    shown = box(page, "#output")
    assert shown["y"] + shown["height"] <= height
    if width > height:  # both beside each other
        drawn = box(page, "#input")
        assert drawn["y"] + drawn["height"] <= height
    page.locator("label[for=control-blend]").scroll_into_view_if_needed()
    label = box(page, "label[for=control-blend]")
    assert label["width"] > 30
    assert label["height"] > 10


@screens
def test_a_message_moves_nothing_and_is_seen_whole(
    stub: LiveServer, open_page: OpenPage, screen: dict[str, Any]
) -> None:
    page = open_page(stub.url, **screen)
    pictures(page)
    page.get_by_role("tab", name="Video").click()
    before = [box(page, what) for what in ("#input", "#output", "#save")]
    page.evaluate("() => document.getElementById('message').hidden = true")
    assert [box(page, what) for what in ("#input", "#output", "#save")] == before
    page.get_by_role("tab", name="Video").click()
    told, (width, height) = box(page, "#message"), screen["viewport"].values()
    assert told["x"] >= 0
    assert told["y"] >= 0
    assert told["x"] + told["width"] <= width
    assert told["y"] + told["height"] <= height
    if width > 1000:  # what can be pressed is not under it
        for what in ("#save", "#choose", "#control-prompt", "#state"):
            other = box(page, what)
            assert other["y"] >= told["y"] + told["height"] or other["x"] >= told["x"] + told["width"]


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (96, 96)])
def test_the_opening_heart_is_whole_in_every_shape(open_page: OpenPage, size: tuple[int, int]) -> None:
    server = serving(size=size)
    with server.hub, server:
        page = open_page(server.url)
        pictures(page, 2)
        edges = page.evaluate("""() => {
          const { width, height } = input, data = input.getContext("2d").getImageData(0, 0, width, height).data;
          const red = (x, y) => data[4 * (y * width + x) + 1] < 150;
          let [edge, inside] = [0, 0];
          for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) if (red(x, y)) {
            inside += 1;
            edge += x === 0 || y === 0 || x === width - 1 || y === height - 1;
          }
          return [edge, inside, width / height];
        }""")
    assert edges[0] == 0
    assert edges[1] > 10_000
    assert edges[2] == pytest.approx(size[0] / size[1], rel=0.01)


def test_an_emptied_prompt_and_a_bad_seed_are_said(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    page.fill("#control-prompt", "  ")
    assert page.locator("#wrong-prompt").text_content() == "Empty; still used: “a purple heart”"
    assert page.get_attribute("#control-prompt", "aria-invalid") == "true"
    page.fill("#control-prompt", "a fox")
    assert page.locator("#wrong-prompt").is_hidden()
    for bad in ("-3", "1.5", "4294967296", ""):
        page.fill("#control-seed", bad)
        assert "0 to 4294967295; 0 is used until then" in page.locator("#wrong-seed").text_content()
    page.fill("#control-seed", "7")
    assert page.locator("#wrong-seed").is_hidden()
    until(lambda: page.wait_for_timeout(50) or (asked(stub).prompt, asked(stub).seed) == ("a fox", 7))


@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS.keys())
def test_a_long_prompt_is_neither_cut_off_nor_in_the_way(
    stub: LiveServer, open_page: OpenPage, screen: dict[str, Any]
) -> None:
    page = open_page(stub.url, **screen)
    pictures(page)
    longest = "very " * 99 + "long🍏"
    page.fill("#control-prompt", longest)
    until(lambda: page.wait_for_timeout(50) or asked(stub).prompt == longest)
    page.fill("#control-prompt", longest + " and so on")
    assert page.locator("#wrong-prompt").text_content() == f"10 characters too many; still used: “{longest}”"
    page.fill("#control-prompt", "")
    said = box(page, "#wrong-prompt")
    assert said["height"] < 25
    assert said["x"] + said["width"] <= screen["viewport"]["width"]
    page.wait_for_timeout(300)
    assert asked(stub).prompt == longest


class Skipping(StubStream):
    """Paints one frame slowly, then shows it again, as a still scene does."""

    def push(self, image: np.ndarray, *, frame_id: int) -> list[StreamOutput]:
        if frame_id < 3:
            self.seconds = 0.12
            return super().push(image, frame_id=frame_id)
        return [StreamOutput(Image.fromarray(255 - image), frame_id, skipped=True)]


def test_a_still_scene_is_called_still_and_its_latency_is_that_of_painting(open_page: OpenPage) -> None:
    server = serving(Skipping)
    with server.hub, server:
        page = open_page(server.url)
        page.wait_for_selector("#live-badge:not([hidden]):text-is('still')")
        for figure in ("latency", "network"):
            page.wait_for_function(f"() => +document.getElementById('{figure}').textContent >= 110")


def test_the_negative_prompts_hint_names_its_guidances(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    hint = page.locator(".field:has(#control-negative_prompt) small").first.text_content()
    options = page.locator("#control-guidance option").all_text_contents()
    assert "the negative prompt, once a frame" in hint
    assert "every step" in hint
    assert sum("the negative prompt" in option for option in options) == 2


def test_a_full_server_shows_its_own_defaults(open_page: OpenPage) -> None:
    server = serving(limit=1, controls=Controls(prompt="a green apple", strength=0.65))
    with server.hub, server, Client(server) as client:
        client.wait("hello")
        page = open_page(server.url)
        assert "limit" in message(page)
        assert page.input_value("#control-prompt") == "a green apple"
        assert float(page.input_value("#control-strength")) == 0.65


@pytest.mark.parametrize("kind", ["sound", "words"])
def test_a_file_that_cannot_be_played_is_said_and_the_old_picture_is_not_live(
    stub: LiveServer, open_page: OpenPage, tmp_path: Path, kind: str
) -> None:
    page = open_page(stub.url)
    pictures(page, 2)
    bad = tmp_path / "song.webm"
    if kind == "sound":
        with av.open(str(bad), "w") as container:
            videos.add_sound(container, container.add_stream("libopus", rate=48000, layout="mono"), 1.0,
                             np.random.default_rng(0))  # fmt: skip
    else:
        bad.write_text("no video")
    page.set_input_files("#file", bad)
    assert "cannot play song.webm" in message(page)
    page.wait_for_selector("#live-badge", state="hidden")
    page.wait_for_selector("#output.old")
    press(page, "Draw instead")
    pictures(page, 2)
    page.wait_for_selector("#live-badge", state="visible")


def test_what_the_model_does_not_read_is_said(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    page.fill("#control-prompt", "a very long story")
    page.wait_for_selector(".remark:not([hidden]):text-is('the end is not read')")
    page.fill("#control-prompt", "a cat")
    page.wait_for_selector(".remark", state="hidden")


def test_the_streams_address_survives_a_reload(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    press(page, "Copy address")
    address = page.evaluate("() => copied")
    assert "stays the same" in message(page)
    with urllib.request.urlopen(address, timeout=10) as watcher:
        for _ in range(2):
            seen = watcher.read(2000)
            page.reload()
            pictures(page, 3)
        assert b"image/jpeg" in seen
        assert watcher.read(2000)
    named = open_page(f"{stub.url}&session=stage")
    pictures(named)
    assert {each.name for each in stub.connections.values()} >= {"stage"}


def test_a_restarted_program_with_another_secret_is_said(open_page: OpenPage) -> None:
    server = serving()
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        view = open_page(server.url.replace("/?", "/view?"))
        port = server.port
    again = LiveServer(
        Hub(StubStream), ServerOptions(port=port, token="other"), {"model": "s", "width": 8, "height": 8}
    )
    with again.hub, again:
        page.wait_for_function("() => document.querySelector('#message p').textContent.includes('started again')")
        page.wait_for_selector("#state span:text-is('Refused')", state="attached")
        view.wait_for_function("() => document.title.startsWith('Refused')")


def test_the_picture_alone_comes_back_after_the_program(open_page: OpenPage) -> None:
    server = serving()
    with server.hub, server:
        page = open_page(server.url)
        pictures(page)
        view = open_page(page.evaluate("() => location.href").replace("/?", "/view?"))
        view.wait_for_function("() => picture.naturalWidth > 0")
        port = server.port
    view.wait_for_timeout(3000)
    about = {"model": "s", "width": 64, "height": 64}
    again = LiveServer(Hub(StubStream), ServerOptions(port=port, token="secret"), about)
    with again.hub, again:
        before = view.evaluate("() => picture.src")
        view.wait_for_function("(before) => picture.naturalWidth > 0 && picture.src !== before", arg=before)


def test_the_picture_alone_comes_back_after_the_page(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(f"{stub.url}&session=stage")
    pictures(page)
    view = open_page(page.evaluate("() => location.href").replace("/?", "/view?"))
    view.wait_for_function("() => picture.naturalWidth > 0")
    assert box(view, "#picture")["height"] == 960
    page.close()
    page = open_page(f"{stub.url}&session=stage")
    press(page, "Clear")
    pictures(page, 3)
    shown = np.asarray(Image.open(io.BytesIO(view.screenshot())).convert("RGB"))
    assert shown[480, 590].max() < 10  # the stub inverts white paper
