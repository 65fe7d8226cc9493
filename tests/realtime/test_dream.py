"""Clips without end, and what else a person may change to: without a restart, and without the others' noticing."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest

from diffaccel import models
from diffaccel.realtime.controls import ControlNetControls, Controls
from diffaccel.realtime.dream import CHUNK, FPS, DreamStream
from diffaccel.realtime.offers import ChosenStream
from diffaccel.realtime.opening import Studio
from diffaccel.realtime.settings import LiveSettings
from diffaccel.stream.host import StreamHost

RED = np.full((128, 128, 3), (200, 30, 30), np.uint8)


class Engine:
    """Clips of grey pictures, each a bit lighter than the last."""

    def __init__(self, controls: Controls) -> None:
        self.controls, self.pipe = controls, None
        self.given: list[Any] = []
        self.prompts: list[str] = []
        self.closed, self.trouble = False, 0

    def reset(self, given: Any = None) -> None:
        self.given.append(given)
        self.made = 0

    def update(self, **told: Any) -> None:
        self.prompts.append(told["prompt"])

    def next(self) -> Any:
        if len(self.prompts) == self.trouble:
            raise RuntimeError("it melts")
        self.made += CHUNK
        return type("Chunk", (), {"frames": list(range(self.made - CHUNK, self.made))})

    def making_room(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    monkeypatch.setattr("diffaccel.realtime.dream.FPS", 1000)
    return []


def dreaming(engines: list[Engine], **controls: Any) -> DreamStream:
    def opened(controls: Controls) -> Any:
        engines.append(Engine(controls))
        return engines[-1]

    return DreamStream(opened, Controls(**{"dream": "words", **controls}))


def shown(stream: DreamStream, count: int) -> list[Any]:
    return [stream.push(RED, frame_id=k)[0].image for k in range(count)]


def test_a_clip_is_shown_picture_by_picture_and_made_a_chunk_ahead(engines: list[Engine]) -> None:
    stream = dreaming(engines)
    assert shown(stream, 10) == list(range(10))
    time.sleep(0.05)
    assert engines[0].made <= 10 + 2 * CHUNK
    assert engines[0].given == [None]
    stream.close()
    assert engines[0].closed


def test_words_change_with_the_next_chunk_and_a_seed_begins_another_clip(engines: list[Engine]) -> None:
    stream = dreaming(engines, prompt="a cat")
    shown(stream, 2)
    stream.configure(Controls(dream="words", prompt="a dog"))
    shown(stream, 3 * CHUNK)
    assert engines[0].prompts[0] == "a cat"
    assert engines[0].prompts[-1] == "a dog"
    stream.configure(Controls(dream="words", prompt="a dog", seed=7))
    assert engines[0].closed
    assert shown(stream, 3) == [0, 1, 2]
    assert engines[1].controls.seed == 7
    stream.close()


def test_it_begins_with_the_frame_at_hand(engines: list[Engine]) -> None:
    stream = dreaming(engines, dream="input")
    shown(stream, 1)
    assert engines[0].given[0].getpixel((5, 5)) == (200, 30, 30)
    stream.close()


def test_after_a_failure_the_clip_begins_anew(engines: list[Engine]) -> None:
    stream = dreaming(engines)
    engines[0].trouble = 2
    assert shown(stream, CHUNK) == list(range(CHUNK))
    with pytest.raises(RuntimeError, match="it melts"):
        stream.push(RED, frame_id=CHUNK)
    assert shown(stream, 2) == [0, 1]
    stream.close()


def test_pictures_come_at_an_even_rate(monkeypatch: pytest.MonkeyPatch, engines: list[Engine]) -> None:
    monkeypatch.setattr("diffaccel.realtime.dream.FPS", 50)
    stream = dreaming(engines)
    begin = time.monotonic()
    shown(stream, 11)
    assert time.monotonic() - begin > 0.19
    stream.close()
    assert FPS == 8


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    settings = LiveSettings(device="cpu", offers=("emoji-sd-small",), offered_loras=(("lcm", "emoji-lcm-lora"),))
    studio = Studio.open(settings, 16, lambda *_: None)
    with studio.host:
        yield studio


def painted(stream: ChosenStream, count: int = 3, first: int = 0) -> np.ndarray:
    return np.asarray([o.image for k in range(count) for o in stream.push(RED, frame_id=first + k)][-1], float)


@pytest.mark.slow
def test_a_session_dreams_while_another_paints(studio: Studio) -> None:
    painter, dreamer = studio.stream(studio.controls), studio.stream(studio.controls)
    before = painted(painter)
    dreamer.configure(studio.controls.model_copy(update={"dream": "words", "steps": 1}))
    assert studio.host.report().rows == 2 + CHUNK
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.extend(painted(dreamer, 1, k) for k in range(6)))
    thread.start()
    again = [painted(painter, 1, 3 + k) for k in range(6)][-1]
    thread.join()
    assert len(found) == 6
    assert np.abs(found[0] - found[5]).mean() > 0.5  # it moves
    assert np.abs(before - again).mean() < 2  # the other one's stream is as it was
    dreamer.configure(studio.controls)
    painted(dreamer)
    assert studio.host.report().rows == 4
    painter.close(), dreamer.close()


@pytest.mark.slow
def test_more_dreams_than_there_is_room_for_are_refused_and_the_stream_goes_on(studio: Studio) -> None:
    streams = [studio.stream(studio.controls.model_copy(update={"dream": "words"})) for _ in range(3)]
    painter, other = (studio.stream(studio.controls) for _ in range(2))
    dreams = studio.controls.model_copy(update={"dream": "words"})
    with pytest.raises(ValueError, match="Others use too much of the network"):
        painter.configure(dreams)
    assert painted(painter).shape == (128, 128, 3)
    other.close()
    painter.configure(dreams)  # in the room of its own pictures
    assert painted(painter).shape == (128, 128, 3)
    for stream in [*streams, painter]:
        stream.close()


@pytest.mark.slow
def test_a_clip_of_a_host_is_that_of_an_engine_alone(studio: Studio) -> None:
    dream = studio.offers._dream
    assert dream is not None
    controls = studio.controls.model_copy(update={"dream": "words", "steps": 2, "picture_size": "64x64"})
    with dream.open(controls) as shared:
        found = [np.asarray(frame) for chunk in islice(shared, 2) for frame in chunk.frames]
        config = {name: getattr(shared.config, name) for name in ("prompt", "num_steps", "sampler", "context", "seed")}
        from diffaccel.video.engine import VideoEngine

        with VideoEngine(shared.pipe, **config, height=64, width=64) as alone:
            expected = [np.asarray(frame) for chunk in islice(alone, 2) for frame in chunk.frames]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
def test_another_model_and_a_lora_are_for_one_session_alone(studio: Studio) -> None:
    plain = studio.controls.model_copy(update={"similarity": False, "cache": 1})
    one, other = studio.stream(plain), studio.stream(plain)
    before, change = painted(one), plain.model_copy
    assert np.abs(painted(other) - before).max() <= 1
    other.configure(change(update={"model": "emoji-sd-small"}))
    assert np.abs(painted(other) - before).mean() > 2
    other.configure(change(update={"lora": "lcm", "lora_scale": 0.0}))
    assert np.abs(painted(other) - before).max() <= 2  # of no weight
    assert "MiB" in other.remark(change(update={"lora": "lcm"}))
    other.configure(change(update={"lora": "lcm", "lora_scale": 1.5}))
    assert np.abs(painted(other, first=9) - before).mean() > 1
    assert np.abs(painted(one, first=9) - before).max() <= 1
    other.configure(plain)
    assert np.abs(painted(other, first=20) - before).max() <= 1
    one.close(), other.close()


@pytest.mark.slow
def test_what_is_not_offered_is_said(studio: Studio) -> None:
    assert studio.about["models"] == ["emoji-sd", "emoji-sd-small"]
    assert studio.about["loras"] == ["", "lcm"]
    assert studio.about["dream"] is True
    stream, change = studio.stream(studio.controls), studio.controls.model_copy
    for values, words in (
        ({"model": "emoji-sd-smal"}, "not offered here .did you mean"),
        ({"lora": "style"}, "style is not offered here"),
        ({"model": "emoji-sd-small", "dream": "words"}, "no clips of emoji-sd-small here"),
    ):
        with pytest.raises(ValueError, match=words):
            stream.configure(change(update=values))
    assert painted(stream).shape == (128, 128, 3)
    stream.close()


@pytest.mark.slow
def test_a_model_without_a_controlnet_does_not_follow_lines() -> None:
    begin = ControlNetControls(follow_lines=False)
    settings = LiveSettings(device="cpu", offers=("emoji-sd-small",), controlnet=("emoji-control",), controls=begin)
    studio = Studio.open(settings, 16, lambda *_: None)
    stream = studio.stream(studio.controls)
    stream.configure(studio.controls.model_copy(update={"model": "emoji-sd-small"}))
    with pytest.raises(ValueError, match="has no ControlNet here"):
        stream.configure(studio.controls.model_copy(update={"model": "emoji-sd-small", "follow_lines": True}))
    stream.close()


def test_two_offers_have_two_names(tmp_path: Any) -> None:
    from diffaccel.realtime.offers import Offers

    settings = replace(LiveSettings(), offers=("some/emoji-sd",))
    with pytest.raises(models.ModelError, match="the same name"):
        Offers(settings, None, StreamHost(None))
