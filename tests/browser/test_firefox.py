"""The page in Firefox: pictures come, a stroke changes them, and a prompt that is typed arrives."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from firefox import FIREFOX, Firefox, firefox
from live_client import serving
from page_scripts import AVERAGE, PICTURES
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FIREFOX is None, reason="no Firefox: apt-get install firefox-esr, or set FIREFOX to its path"),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Firefox]:
    profile = tmp_path / "profile"
    profile.mkdir()
    with firefox(profile) as window:
        yield window


def test_a_drawing_is_painted(browser: Firefox, tmp_path: Path) -> None:
    with serving() as server:
        browser.goto(server.url)
        assert browser.evaluate(f"({PICTURES})(8)")
        box = browser.evaluate("document.getElementById('input').getBoundingClientRect()")
        before = np.array(browser.evaluate(f"({AVERAGE})()"))
        middle, left, right = box["y"] + box["height"] / 2, box["x"] + 10, box["x"] + box["width"] - 10
        browser.evaluate("document.querySelectorAll('#brushes button')[2].click()")
        for offset in (-60, -30, 0, 30, 60):
            browser.drag((left, middle + offset), (right, middle + offset))
        assert browser.evaluate(f"({PICTURES})(8)")
        assert np.abs(np.array(browser.evaluate(f"({AVERAGE})()")) - before).max() > 5
        browser.evaluate("""(() => {
          const box = document.querySelector("#prompt-bar input[type=text], #prompt-bar input");
          box.value = "a cat";
          for (const kind of ["input", "change"]) box.dispatchEvent(new Event(kind, { bubbles: true }));
        })()""")
        assert browser.evaluate(f"({PICTURES})(8)")
        session = next(iter(server.connections.values())).session
        assert session.controls.prompt == "a cat"
        assert browser.evaluate("document.getElementById('state').textContent.trim()") == "Connected"
        picture = Image.open(io.BytesIO(browser.screenshot()))
        picture.save(tmp_path / "firefox.png")
        assert len(picture.convert("RGB").resize((200, 160)).getcolors(40_000) or ()) > 100
