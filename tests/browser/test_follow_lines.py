"""The switch "Follow my lines": off at first, and on, what one draws is what is painted along."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from page_scripts import PICTURES

from diffaccel.cli.live import _with_lines
from diffaccel.measure import edge_agreement
from diffaccel.realtime.controls import Controls
from diffaccel.realtime.opening import open_hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import LiveSettings
from diffaccel.stream.control import edges

OpenPage = Callable[..., Any]
PIXELS = """selector => { const canvas = document.querySelector(selector), small = new OffscreenCanvas(128, 128);
const pen = small.getContext("2d"); pen.drawImage(canvas, 0, 0, 128, 128);
return Array.from(pen.getImageData(0, 0, 128, 128).data); }"""


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    """The bundled model, as `diffaccel live` serves it."""
    start = Controls(prompt="a yellow star", strength=0.9, guidance_scale=1.4, steps=4)
    with (
        open_hub(_with_lines(LiveSettings(device="cpu", controls=start)), limit=2) as (hub, about),
        LiveServer(hub, ServerOptions(port=0), about) as server,
    ):
        yield server


def edges_of(page: Any, selector: str) -> torch.Tensor:
    """Edges of what a canvas of the page shows, ``(1, 3, 128, 128)``."""
    pixels = torch.tensor(page.evaluate(PIXELS, selector), dtype=torch.float32).view(128, 128, 4)
    return edges(pixels[..., :3].movedim(-1, 0) / 255)[None]


def agreement(page: Any) -> float:
    """How well the picture follows what is drawn."""
    return float(edge_agreement(edges_of(page, "#output"), edges_of(page, "#input")))


def comes_to(page: Any, holds: Callable[[float], bool]) -> bool:
    """Whether pictures come to follow, or not to: one that was begun before a change may still be shown after it."""
    for _ in range(60):
        page.evaluate(PICTURES, 1)
        if holds(agreement(page)):
            return True
    return False


def test_lines_are_followed_where_the_switch_is_on(live: LiveServer, open_page: OpenPage, keep: Any) -> None:
    page = open_page(live.url, reduced_motion="reduce")  # a still drawing, which slow pictures do not lag behind
    switch = page.locator("#control-follow_lines")
    assert not switch.is_checked()
    assert page.locator("#control-controlnet_scale").is_disabled()
    assert comes_to(page, lambda found: found < 0.4)
    switch.check()
    assert comes_to(page, lambda found: found > 0.7)
    page.evaluate("() => window.scrollTo(0, 0)")
    keep(page, "live-lines")
    switch.uncheck()
    assert comes_to(page, lambda found: found < 0.4)


def test_other_models_are_as_they_were() -> None:
    other = LiveSettings(model="path/to/model")
    assert _with_lines(other) is other
    chosen = replace(LiveSettings(), controlnet=("emoji-control",))
    assert _with_lines(chosen) is chosen
