"""The page's tools, in Chromium: cameras, pictures, pause, recording, whole screen, presets, undo, keyboard, MIDI."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from live_client import until
from page_helpers import SCREENS, asked, becomes, becomes_coloured, box, message, pictures, press
from PIL import Image

from diffaccel.realtime.server import LiveServer
from diffaccel.realtime.settings import Controls

pytestmark = pytest.mark.slow

OpenPage = Callable[..., Any]
TWO_CAMERAS = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream=device-count=2")

FACING = """(ways) => {
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (what) => {
    const stream = await ask(what), [track] = stream.getVideoTracks(), settings = track.getSettings.bind(track);
    track.getSettings = () => ({ ...settings(), facingMode: ways[window.opened = (window.opened ?? -1) + 1] });
    return stream;
  };
}"""


@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS.keys())
def test_a_camera_is_chosen_and_the_mirror_follows_the_way_it_faces(
    stub: LiveServer, open_page: OpenPage, screen: dict[str, Any]
) -> None:
    page = open_page(stub.url, arguments=TWO_CAMERAS, **screen)
    pictures(page)
    page.wait_for_selector("#live-badge:text-is('live')")  # in sight, also where there is little room
    page.evaluate(FACING, ["user", "environment", "environment"])
    page.get_by_role("tab", name="Camera").click()
    pictures(page, 2)
    page.wait_for_selector("#cameras:not([hidden])")
    assert page.locator("#cameras option").all_text_contents() == ["fake_device_0", "fake_device_1"]
    assert page.is_checked("#mirror")
    page.select_option("#cameras", label="fake_device_1")
    page.wait_for_function("() => window.opened === 1 && !mirror.checked")
    pictures(page, 2)
    label = page.evaluate("() => video.srcObject.getVideoTracks()[0].label")
    assert label == "fake_device_1"
    page.check("#mirror")
    page.get_by_role("tab", name="Draw").click()
    assert page.locator("#cameras").is_hidden()
    page.get_by_role("tab", name="Camera").click()
    page.wait_for_selector("#cameras:not([hidden])")
    assert page.evaluate("() => video.srcObject.getVideoTracks()[0].label") == label  # and what was said of it
    assert page.is_checked("#mirror")


def still(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(file, "PNG")
    return file.getvalue()


GIVE = """([kind, data, name]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name, { type: name.endsWith("png") ? "image/png" : "text/plain" }));
  const ways = { bubbles: true, cancelable: true, clipboardData: files, dataTransfer: files };
  const event = kind === "paste" ? new ClipboardEvent("paste", ways) : new DragEvent("drop", ways);
  document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("way", ["upload", "paste", "drop"])
def test_a_still_picture_is_painted(stub: LiveServer, open_page: OpenPage, tmp_path: Path, way: str) -> None:
    page = open_page(stub.url)
    pictures(page)
    if way == "upload":
        (tmp_path / "still.png").write_bytes(still((200, 40, 40)))
        page.set_input_files("#picture-file", tmp_path / "still.png")
    else:
        page.evaluate(GIVE, [way, base64.b64encode(still((200, 40, 40))).decode(), "still.png"])
    page.wait_for_selector("#sources [data-source=picture][aria-selected=true]")
    becomes_coloured(page, [55, 215, 215], within=6)  # the stub inverts
    assert page.locator("#media-name").text_content() == "still.png"
    assert page.locator("#message").is_hidden()


def test_the_last_picture_is_there_again_however_it_came(stub: LiveServer, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(stub.url)
    chosen = tmp_path / "chosen.png"
    chosen.write_bytes(still((200, 40, 40)))

    def shows(name: str) -> None:
        page.wait_for_selector(f"#media-name:text-is('{name}')")

    page.set_input_files("#picture-file", chosen)
    shows("chosen.png")
    page.evaluate(GIVE, ["paste", base64.b64encode(still((40, 40, 200))).decode(), "pasted.png"])
    shows("pasted.png")
    for tab in ("Draw", "Picture"):
        page.get_by_role("tab", name=tab).click()
    page.wait_for_timeout(200)  # in which another one might come
    shows("pasted.png")
    page.set_input_files("#picture-file", chosen)  # the same as before
    shows("chosen.png")


DROP_WORDS = """(place) => {
  const words = new DataTransfer();
  words.setData("text/plain", "a fox");
  const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: words });
  document.getElementById(place).dispatchEvent(event);
  return event.defaultPrevented;
}"""


def test_words_can_be_dropped_where_words_belong(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    assert not page.evaluate(DROP_WORDS, "control-prompt")
    assert page.locator("#message").is_hidden()
    assert page.evaluate(DROP_WORDS, "output")
    assert message(page) == "Drop a picture or a video, as a file."


def test_a_picture_that_cannot_be_shown_is_said(stub: LiveServer, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(stub.url)
    (tmp_path / "broken.png").write_text("no picture")
    page.set_input_files("#picture-file", tmp_path / "broken.png")
    assert "cannot show broken.png" in message(page)
    press(page, "Draw instead")
    page.evaluate(GIVE, ["drop", base64.b64encode(b"words").decode(), "words.txt"])
    assert message(page) == "Drop a picture or a video, as a file."


def test_a_pause_holds_the_picture_and_rests_the_network(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page, 2)
    press(page, "Pause")
    tally = next(iter(stub.connections.values())).session.tally

    def rests() -> bool:
        received = tally.received
        page.wait_for_timeout(1200)
        return bool(tally.received == received)

    becomes(page, rests)
    page.wait_for_selector("#live-badge:text-is('paused')")
    assert "old" not in (page.get_attribute("#output", "class") or "")
    press(page, "Go on")
    pictures(page, 2)


def test_a_recording_is_a_video_of_the_output(stub: LiveServer, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(stub.url)
    page.fill("#control-prompt", "a red/blue fox")
    page.keyboard.press("Enter")
    press(page, "Clear")
    pictures(page, 4)
    press(page, "Record")
    pictures(page, 20)
    page.wait_for_function("() => /^Stop \\d+:(?!00)\\d\\d$/.test(document.getElementById('record').textContent)")
    with page.expect_download() as download:
        page.click("#record")
    assert download.value.suggested_filename in ("a red blue fox.mp4", "a red blue fox.webm")
    download.value.save_as(tmp_path / "recorded")
    with av.open(str(tmp_path / "recorded")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) >= 10
    assert frames[-1].mean() < 10  # the stub inverts white paper
    page.wait_for_selector("#record:text-is('Record')")
    name = "async (prompt) => (await import('/page/record.js')).fileName(prompt)"
    for prompt, called in (("एक हरा सेब?", "एक हरा सेब"), ("🍏", "picture")):
        assert page.evaluate(name, prompt) == called


def test_the_picture_fills_the_screen(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    press(page, "Full screen")
    page.wait_for_function("() => document.fullscreenElement?.contains(output)")
    shown, frame = box(page, "#output"), page.evaluate("() => [innerWidth, innerHeight]")
    assert [shown["width"], shown["height"]] == frame
    page.evaluate("() => document.exitFullscreen()")
    page.wait_for_function("() => !document.fullscreenElement")


def test_where_only_videos_fill_the_screen_the_picture_gets_a_page(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    page.evaluate("() => { output.parentElement.requestFullscreen = undefined; }")
    press(page, "Full screen")
    page.wait_for_url("**/view?token=secret&session=*")


def test_a_screen_that_the_browser_does_not_give_is_said(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    page.evaluate(
        "() => { output.parentElement.requestFullscreen = async () => { throw new TypeError('not granted'); }; }"
    )
    press(page, "Full screen")
    assert "“Picture only” opens the picture" in message(page)


def test_a_preset_is_saved_and_loaded(stub: LiveServer, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(stub.url)
    page.fill("#control-prompt", "a fox")
    page.locator("#control-strength").fill("0.8")
    with page.expect_download() as download:
        press(page, "Save preset")
    download.value.save_as(tmp_path / "a fox.json")
    saved = json.loads((tmp_path / "a fox.json").read_text())
    assert Controls(**saved) == Controls(prompt="a fox", strength=0.8)
    press(page, "Reset controls")
    until(lambda: page.wait_for_timeout(50) or asked(stub).prompt == "a purple heart")
    (tmp_path / "newer.json").write_text(json.dumps(saved | {"sparkle": 3}))
    page.set_input_files("#preset-file", tmp_path / "newer.json")
    assert "no sparkle" in message(page)
    until(lambda: page.wait_for_timeout(50) or asked(stub) == Controls(prompt="a fox", strength=0.8))
    assert page.input_value("#control-prompt") == "a fox"
    (tmp_path / "bad.json").write_text("[1, 2]")
    page.set_input_files("#preset-file", tmp_path / "bad.json")
    assert "bad.json is no preset" in message(page)
    (tmp_path / "wild.json").write_text(json.dumps(saved | {"strength": 9}))
    page.set_input_files("#preset-file", tmp_path / "wild.json")
    page.wait_for_function("() => document.querySelector('#message p').textContent.startsWith('strength:')")
    page.wait_for_function("() => Number(document.getElementById('control-strength').value) === 0.8")
    (tmp_path / "odd.json").write_text(json.dumps(saved | {"guidance": 7}))
    page.set_input_files("#preset-file", tmp_path / "odd.json")
    page.wait_for_function("() => document.querySelector('#message p').textContent.startsWith('guidance:')")
    page.wait_for_function("() => document.getElementById('control-guidance').value === 'self'")


def test_changes_are_taken_back_one_by_one(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    assert page.locator("#back").is_disabled()
    page.fill("#control-prompt", "a fox")
    page.wait_for_timeout(300)
    page.select_option("#control-guidance", "none")
    page.locator("#control-strength").fill("0.8")
    page.wait_for_timeout(300)
    for expected in (
        Controls(prompt="a fox", guidance="none"),
        Controls(prompt="a fox"),
        Controls(),
    ):
        press(page, "Undo change")
        until(lambda expected=expected: page.wait_for_timeout(50) or asked(stub) == expected)
    assert page.locator("#back").is_disabled()
    assert page.input_value("#control-prompt") == "a purple heart"


def test_the_keyboard_draws(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    press(page, "Clear")
    page.focus("#input")
    page.keyboard.press("Shift+ArrowLeft")
    assert page.locator("#pen").is_visible()
    page.keyboard.press("Space")
    for _ in range(8):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowDown")
    colours = page.evaluate("""() => [0, 1].map((down) => {
      const at = input.getContext("2d").getImageData(256, 256 + 40 * down, 1, 1).data;
      return [...at.slice(0, 3)];
    })""")
    page.wait_for_timeout(200)
    colours = page.evaluate("""() => [[256, 256], [256, 300], [420, 256]].map(([x, y]) =>
      [...input.getContext("2d").getImageData(x, y, 1, 1).data.slice(0, 3)])""")
    assert colours[0] == [0xE5, 0x39, 0x35]
    assert colours[1] == [255, 255, 255]
    assert colours[2] == [0xE5, 0x39, 0x35]
    page.keyboard.press("Control+z")
    page.wait_for_function("() => input.getContext('2d').getImageData(256, 256, 1, 1).data[1] === 255")
    page.focus("#control-prompt")
    assert page.locator("#pen").is_hidden()


MIDI = """() => {
  window.knob = { name: "Knobs", onmidimessage: null };
  navigator.requestMIDIAccess = async () => ({ inputs: new Map([["1", window.knob]]) });
}"""


def test_knobs_move_sliders(stub: LiveServer, open_page: OpenPage) -> None:
    page = open_page(stub.url)
    pictures(page)
    page.evaluate(MIDI)
    press(page, "MIDI")
    assert message(page).startswith("Knobs: touch a slider")
    page.focus("#control-strength")
    page.evaluate("() => knob.onmidimessage({ data: [0xb0, 7, 127] })")
    until(lambda: page.wait_for_timeout(50) or asked(stub).strength == 1)
    page.focus("#control-guidance_scale")
    page.evaluate("() => knob.onmidimessage({ data: [0xb0, 8, 0] })")
    page.evaluate("() => knob.onmidimessage({ data: [0x90, 7, 0] })")  # a key is no knob
    until(lambda: page.wait_for_timeout(50) or asked(stub).guidance_scale == 1)
    assert asked(stub).strength == 1
    page.evaluate("() => knob.onmidimessage({ data: [0xb0, 7, 0] })")
    until(lambda: page.wait_for_timeout(50) or asked(stub).strength == 0.05)
    assert np.isclose(float(page.input_value("#control-strength")), 0.05)
    page.focus("#control-steps")  # with the mouse, between two turns of a knob that has its slider
    page.evaluate("() => { const now = performance.now(); performance.now = () => now + 6000; }")
    page.evaluate("() => knob.onmidimessage({ data: [0xb0, 7, 127] })")
    until(lambda: page.wait_for_timeout(50) or asked(stub).strength == 1)
    assert asked(stub).steps == Controls().steps
