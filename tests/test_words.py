"""Numbers in sentences agree with what they count."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from diffaccel.batch.settings import PictureSettings
from diffaccel.cli.video import summary
from diffaccel.config.words import counted, what_is_wrong, with_article


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0 pictures"), (1, "1 picture"), (2, "2 pictures"), (10_000, "10,000 pictures")],
)
def test_one_is_singular(number: int, expected: str) -> None:
    assert counted(number, "picture") == expected


def test_a_plural_of_its_own() -> None:
    assert counted(2, "entry", "entries") == "2 entries"
    assert counted(1, "entry", "entries") == "1 entry"


def test_articles_are_those_that_are_spoken() -> None:
    assert [
        with_article(noun) for noun in ("autoencoder", "adapter", "classifier", "UNet2DModel", "AutoencoderTiny")
    ] == [
        "an autoencoder",
        "an adapter",
        "a classifier",
        "a UNet2DModel",
        "an AutoencoderTiny",
    ]


def test_what_became_of_a_video_of_one_frame() -> None:
    stream = SimpleNamespace(frames_not_finite=1)
    report: Any = SimpleNamespace(frames=1, seconds=1, audio_streams=0, repeated=1, damaged=2, stream=stream)
    assert summary(Path("a.mp4"), report) == (
        "a.mp4: 1 frame, 1.0 per second, 1 picture shown again for the next frame, 1 picture not finite, 2 damaged "
        "pieces of the input left out"
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, "must be at least 1"),
        ({"steps": "many"}, "must be a whole number"),
        ({"guidance_scale": float("nan")}, "must be a finite number"),
        ({"width": 33}, "must be a multiple of 8"),
        ({"strength": 0}, "must be more than 0"),
        ({"negative_prompt": 3}, "must be text"),
        ({"colour": 3}, "is no setting"),
        ({"negative_prompt": "a\0"}, "holds a NUL character"),
    ],
)
def test_checks_of_settings_speak_plainly(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PictureSettings.model_validate(values)
    assert what_is_wrong(caught.value.errors()[0]) == words
