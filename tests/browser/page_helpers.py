"""What the tests of the page do and ask, with a stub network behind it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from live_client import SIZE, StubStream, until
from page_scripts import AVERAGE, PICTURES

from diffaccel.realtime.hub import Hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import Controls

SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1360, "height": 850}},
    "phone upright": {"viewport": {"width": 375, "height": 812}, "is_mobile": True, "has_touch": True},
    "phone on its side": {"viewport": {"width": 812, "height": 375}, "is_mobile": True, "has_touch": True},
}


def serving(
    open_stream: Callable[[Controls], Any] = StubStream, *, size: tuple[int, int] = (SIZE, SIZE), **options: Any
) -> LiveServer:
    about = {"model": "stub", "width": size[0], "height": size[1]}
    hub = Hub(open_stream, controls=options.pop("controls", Controls()), limit=options.pop("limit", 4))
    return LiveServer(hub, ServerOptions(port=0, token="secret", **options), about)


def pictures(page: Any, count: int = 1) -> None:
    page.evaluate(PICTURES, count)


def average(page: Any) -> np.ndarray:
    return np.array(page.evaluate(AVERAGE))


def becomes(page: Any, condition: Callable[[], Any]) -> None:
    """Wait for what the page says or shows soon."""
    until(lambda: page.wait_for_timeout(50) or condition())


def becomes_coloured(page: Any, colour: Sequence[int], within: float) -> None:
    """Wait for pictures of this mean colour."""
    becomes(page, lambda: average(page) == pytest.approx(colour, abs=within))


def press(page: Any, label: str) -> None:
    page.get_by_role("button", name=label, exact=True).click()


def message(page: Any) -> str:
    page.wait_for_selector("#message:not([hidden])")
    return page.locator("#message p").text_content()


def box(page: Any, what: str) -> dict[str, float]:
    found: dict[str, float] = page.locator(what).bounding_box()
    return found


def asked(server: LiveServer) -> Controls:
    return next(iter(server.connections.values())).session.asked
