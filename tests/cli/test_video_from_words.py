"""`diffaccel video` without an input: so many pictures, that go on from a clip, under prompts that change."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stock_cases
import torch
from click.testing import CliRunner, Result
from PIL import Image

from diffaccel.cli import main
from diffaccel.cli.film import _pictures
from diffaccel.cli.model_options import ModelChoice
from diffaccel.media.clip import sampled
from diffaccel.media.video_reader import DecodedFrame, VideoReader
from diffaccel.media.video_writer import VideoWriter
from diffaccel.models.quiet import quiet_loading
from diffaccel.video.engine import VideoEngine
from diffaccel.video.film import made
from diffaccel.video.report import FramesNotFinite


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    loaded: list[Any] = []
    with quiet_loading():
        pipe = stock_cases.animatediff()

    def load(_: Any, source: Any, *__: Any) -> Any:
        loaded.append(source.name)
        return pipe

    monkeypatch.setattr(ModelChoice, "open", load)
    return loaded


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["video", *map(str, arguments)])


def pictures(file: Path) -> tuple[list[np.ndarray], Fraction]:
    with VideoReader(file) as reader:
        return [item.pixels for item in reader if isinstance(item, DecodedFrame)], reader.rate


def clip(file: Path, fps: int | Fraction, count: int) -> None:
    with VideoWriter(file, rate=Fraction(fps), time_base=Fraction(1, 1000)) as writer:
        writer.start(64, 64)
        for k in range(count):
            writer.write(np.full((64, 64, 3), 255 * k // count, np.uint8), Fraction(k) / fps, 1 / Fraction(fps))


SHORT = ("--steps", 2, "--size", 32, "--chunk", 2, "--window", 4)


def test_a_video_from_words(tmp_path: Path, tiny: list[Any]) -> None:
    result = run("--prompt", "a cat", "-o", tmp_path / "cat.mp4", "--seconds", 0.7, "--fps", 10, *SHORT)
    assert result.exit_code == 0, result.output
    assert tiny == ["emoji-video"]
    made, rate = pictures(tmp_path / "cat.mp4")
    assert (len(made), made[0].shape, rate) == (7, (32, 32, 3), 10)
    assert "cat.mp4: 7 pictures, " in result.output


@pytest.mark.slow
def test_it_goes_on_from_a_clip_and_prompts_change(tmp_path: Path, tiny: list[Any], tiny_sd: Path) -> None:
    clip(tmp_path / "in.mp4", 20, 10)
    common = ("--prompt", "a cat", "--continue", tmp_path / "in.mp4", "--seconds", 0.4, "--fps", 10, "-q", *SHORT)
    for name, more in (("plain", ()), ("then", ("--then", 0.2, "a dog", "--cache", 2, "--model", tiny_sd))):
        assert run(*common, *more, "-o", tmp_path / f"{name}.mp4").output == ""
    plain, then = (pictures(tmp_path / f"{name}.mp4")[0] for name in ("plain", "then"))
    assert len(plain) == len(then) == 5 + 4  # half a second of the clip, at half its rate
    assert abs(float(plain[3].mean()) - 255 * 6 / 10) < 3  # the clip's picture after 0.3 seconds
    assert tiny == ["emoji-video", str(tiny_sd)]


class Told:
    """An engine of a network whose first latent frame is one picture and each later one four."""

    def __init__(self) -> None:
        self.made, self.prompt = 0, "first"
        self.config = SimpleNamespace(prompt="first")

    @property
    def pictures_next(self) -> int:
        return 8 if self.made else 5

    def update(self, prompt: str) -> None:
        self.prompt = prompt

    def next(self) -> SimpleNamespace:
        frames, self.made = [self.prompt] * self.pictures_next, self.made + 1
        return SimpleNamespace(frames=frames)


def test_a_prompt_begins_with_the_chunk_that_holds_its_first_picture(caplog: pytest.LogCaptureFixture) -> None:
    engine: Any = Told()
    prompts = [(14, "fourth"), (6, "second"), (13, "third")]
    assert list(made(engine, 16, prompts)) == ["first"] * 5 + ["second"] * 8 + ["fourth"] * 3
    assert "'third' is never read: 'fourth' begins in the same chunk of frames" in caplog.text
    assert "'first' is never read" not in caplog.text
    at_once: Any = Told()
    assert list(made(at_once, 6, [(4, "second")])) == ["second"] * 6
    assert "'first' is never read: 'second' begins in the same chunk of frames" in caplog.text


def test_seconds_count_as_they_are_written() -> None:
    assert [_pictures(seconds, Fraction(10)) for seconds in (1.1, 0.3, 2.2, 0.05)] == [11, 3, 22, 1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: use a smaller --size, --chunk or --window"),
        (FramesNotFinite("frames 0 to 1 are not finite"), "not finite; use --dtype float32 or bfloat16"),
        (ValueError("prompts of 77 and 154 tokens"), "prompts of 77 and 154 tokens"),
    ],
)
def test_what_stops_a_video_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def stopped(_: VideoEngine) -> None:
        raise error

    monkeypatch.setattr(VideoEngine, "next", stopped)
    result = run("--prompt", "a cat", "-o", tmp_path / "out.mp4", *SHORT)
    assert result.exit_code == 2
    assert words in result.output
    assert not list(tmp_path.iterdir())


def test_what_comes_too_late_and_what_is_cut_off_is_said(tmp_path: Path) -> None:
    clip(tmp_path / "in.mp4", 25, 3)
    common = ["--prompt", "a cat", "--continue", tmp_path / "in.mp4", "--seconds", 0.2, "--then", 3, "a dog", *SHORT]
    said = run(*common, "--size", "32x64", "-o", tmp_path / "out.mp4").output
    assert "'a dog' is never reached" in said
    assert "the clip is 64x64, and the video 32x64: it is cropped" in said
    assert "in.mp4 has 25 pictures a second, and the video 8; --fps gives another rate." in said
    assert "pictures a second, and" not in run(*common, "--fps", 8, "-o", tmp_path / "chosen.mp4").output
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png")
    common[common.index(tmp_path / "in.mp4")] = tmp_path / "in.png"
    assert "pictures a second, and" not in run(*common, "-o", tmp_path / "still.mp4").output  # it has no rate


def test_pictures_are_taken_when_they_are_shown(tmp_path: Path) -> None:
    clip(tmp_path / "in.mp4", 4, 4)
    shown = [round(float(pixels.mean()) / 64) for pixels in sampled(tmp_path / "in.mp4", Fraction(8))]
    assert shown == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(list(sampled(tmp_path / "in.mp4", Fraction(2)))) == 2


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30), Fraction(30000, 1001), Fraction(60)])
def test_a_clip_at_its_own_rate_gives_every_picture_once_though_its_times_are_rounded(
    tmp_path: Path, fps: Fraction
) -> None:
    clip(tmp_path / "in.mkv", fps, 16)
    shown = [round(float(pixels.mean()) / 16) for pixels in sampled(tmp_path / "in.mkv", fps)]
    assert shown == list(range(16))


WRONG = [
    ((), 2, "give INPUT and OUTPUT to paint a video anew, or -o OUTPUT"),
    (("in.mp4",), 2, "give OUTPUT, too"),
    (("in.mp4", "out.mp4", "-o", "other.mp4"), 2, "out.mp4 and --output other.mp4: give one of them"),
    (("-o", "out.mp4", "--batch-size", 2), 2, "--batch-size needs an INPUT"),
    (("in.mp4", "out.mp4", "--seconds", 2), 2, "--seconds needs no INPUT"),
    (("-o", "out.gif"), 2, "its name must end in"),
    (("-o", "out.mp4", "--continue", "nothing.mp4"), 2, "no video file at"),
    (("-o", "out.mp4", "--window", 2), 2, "window=2 is shorter than a chunk of 4"),
    (("-o", "out.mp4", "--size", 33), 2, "height must be a multiple of"),
    (("-o", "out.mp4", "--seconds", 0), 2, "--seconds"),
    (("-o", "out.mp4", "--seconds", "nan"), 2, "'nan' is not a finite number"),
    (("-o", "out.mp4", "--fps", "nan"), 2, "'nan' is not a finite number"),
    (("-o", "out.mp4", "--then", "inf", "a dog"), 2, "'inf' is not a finite number"),
    (("-o", "out.mp4", "--guidance-scale", "nan"), 2, "'nan' is not a finite number"),
    (("-o", "out.mp4", "--guidance-scale", 0.5), 2, "0.5 is not in the range x>=1"),
    (("-o", "out.mp4", "--size", "fit"), 2, "--size fit needs an INPUT"),
    (("-o", "out.mp4", "--steps", 0), 2, "--steps"),
    (("-o", "out.mp4", "--strength", 0), 2, "strength must be above 0"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code", "words"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_done_is_said(
    arguments: tuple[Any, ...], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--prompt", "a cat", *arguments)
    assert (result.exit_code, words in result.output) == (code, True), result.output
    assert not list(tmp_path.iterdir())
