"""Numbers in sentences agree with what they count."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffaccel.cli.video import summary
from diffaccel.config.words import counted


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0 pictures"), (1, "1 picture"), (2, "2 pictures"), (10_000, "10,000 pictures")],
)
def test_one_is_singular(number: int, expected: str) -> None:
    assert counted(number, "picture") == expected


def test_a_plural_of_its_own() -> None:
    assert counted(2, "entry", "entries") == "2 entries"
    assert counted(1, "entry", "entries") == "1 entry"


def test_what_became_of_a_video_of_one_frame() -> None:
    stream = SimpleNamespace(frames_not_finite=1)
    report: Any = SimpleNamespace(frames=1, seconds=1, audio_streams=0, repeated=1, damaged=2, stream=stream)
    assert summary(Path("a.mp4"), report) == (
        "a.mp4: 1 frame, 1.0 per second, 1 picture shown again for the next frame, 1 picture not finite, 2 damaged "
        "pieces of the input left out"
    )
