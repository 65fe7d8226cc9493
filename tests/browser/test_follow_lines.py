"""The switch "Follow my lines": off at first, and on, what one draws is what is painted along."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from page_scripts import PICTURES
from PIL import Image, ImageDraw

from diffaccel.cli.live import _with_lines
from diffaccel.measure import edge_agreement
from diffaccel.realtime.controls import Controls
from diffaccel.realtime.opening import Studio, open_hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import LiveSettings
from diffaccel.stream.control import edges

OpenPage = Callable[..., Any]
PIXELS = """selector => { const canvas = document.querySelector(selector), small = new OffscreenCanvas(128, 128);
const pen = small.getContext("2d"); pen.drawImage(canvas, 0, 0, 128, 128);
return Array.from(pen.getImageData(0, 0, 128, 128).data); }"""
START = Controls(prompt="a yellow star", strength=0.9, guidance_scale=1.4, steps=4)


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    """The bundled model, as `diffaccel live` serves it."""
    with (
        open_hub(_with_lines(LiveSettings(device="cpu", controls=START)), limit=2) as (hub, about),
        LiveServer(hub, ServerOptions(port=0), about) as server,
    ):
        yield server


def comes_to(page: Any, live: LiveServer, scale: float) -> bool:
    """Whether the session's stream comes to run its ControlNet at a scale."""
    for _ in range(30):
        page.evaluate(PICTURES, 1)
        (session,) = live.hub._sessions
        if session._stream is not None and session._stream._stream._engine.config.controlnet_scale == scale:
            return True
    return False


@pytest.mark.slow
def test_the_switch_reaches_the_stream(live: LiveServer, open_page: OpenPage) -> None:
    page = open_page(live.url)
    switch = page.locator("#control-follow_lines")
    assert not switch.is_checked()
    assert page.locator("#control-controlnet_scale").is_disabled()
    assert comes_to(page, live, 0.0)
    switch.check()
    assert comes_to(page, live, 1.0)
    switch.uncheck()
    assert comes_to(page, live, 0.0)


def shown(page: Any, selector: str) -> torch.Tensor:
    """Edges of what a canvas of the page shows, ``(1, 3, 128, 128)``."""
    pixels = np.array(page.evaluate(PIXELS, selector), np.uint8).reshape(128, 128, 4)
    return edges_of(pixels[..., :3])


@pytest.mark.slow
def test_the_page_shows_what_follows_the_drawing(live: LiveServer, open_page: OpenPage, keep: Any) -> None:
    page = open_page(live.url, reduced_motion="reduce")  # a still drawing, which slow pictures do not lag behind

    def comes_to_agree(holds: Callable[[float], bool]) -> bool:
        for _ in range(30):
            page.evaluate(PICTURES, 1)
            if holds(float(edge_agreement(shown(page, "#output"), shown(page, "#input")))):
                return True
        return False

    assert comes_to_agree(lambda found: found < 0.4)
    page.locator("#control-follow_lines").check()
    assert comes_to_agree(lambda found: found > 0.7)
    page.evaluate("() => window.scrollTo(0, 0)")
    keep(page, "live-lines")


@pytest.mark.slow
def test_frames_have_the_shape_of_the_picture(live: LiveServer, open_page: OpenPage) -> None:
    page = open_page(live.url)
    page.evaluate(PICTURES, 1)
    (session,) = live.hub._sessions
    sent: list[tuple[int, ...]] = []
    stream = session._stream._stream
    push = stream.push
    stream.push = lambda image, **given: sent.append(np.array(image).shape) or push(image, **given)
    page.evaluate(PICTURES, 6)  # those in flight, and some more
    assert set(sent) == {(128, 128, 3)}


def heart() -> np.ndarray[Any, Any]:
    """A red heart on white, (128, 128, 3)."""
    picture = Image.new("RGB", (512, 512), "white")
    pen = ImageDraw.Draw(picture)
    for corners in ((75, 95, 260, 280), (250, 95, 435, 280)):
        pen.ellipse(corners, fill=(229, 57, 53))
    pen.polygon([(85, 230), (255, 445), (427, 230)], fill=(229, 57, 53))
    return np.asarray(picture.resize((128, 128)))


def edges_of(picture: Any) -> torch.Tensor:
    """Edges of a picture, ``(1, 3, 128, 128)``."""
    return edges(torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255)[None]


@pytest.mark.slow
def test_lines_are_followed_where_the_switch_is_on() -> None:
    studio = Studio.open(_with_lines(LiveSettings(device="cpu", controls=START)), 32, lambda *_: None)
    drawn, stream, found = heart(), studio.stream(studio.controls), []
    for frame in range(16):
        if frame == 6:
            stream.configure(studio.controls.model_copy(update={"follow_lines": True}))
        for output in stream.push(drawn, frame_id=frame):
            found.append(float(edge_agreement(edges_of(output.image), edges_of(drawn))))
    stream.close()
    assert found[0] < 0.4
    assert found[-1] > 0.7


def test_other_models_are_as_they_were() -> None:
    other = LiveSettings(model="path/to/model")
    assert _with_lines(other) is other
    chosen = replace(LiveSettings(), controlnet=("emoji-control",))
    assert _with_lines(chosen) is chosen
