"""A video file painted anew has the frames, times and sound of the old one, or is not there at all."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import videos
from click.testing import CliRunner, Result
from PIL import Image

from diffaccel.cli import main
from diffaccel.media.errors import MediaError
from diffaccel.media.repaint import repaint, size_like
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.similarity import SimilarityFilter

OpenEngine = Callable[..., StreamEngine]


@pytest.mark.slow
@pytest.mark.parametrize("times", [videos.STEADY, videos.UNEVEN, [Fraction(0)]], ids=["steady", "uneven", "one"])
def test_every_frame_keeps_its_time_and_the_sound_its_bytes(
    tmp_path: Path, open_engine: OpenEngine, times: list[Fraction]
) -> None:
    source, target = videos.make(tmp_path / "in.mp4", times=times, audio_streams=2), tmp_path / "out.mp4"
    counts: list[int | None] = []
    report = repaint(open_engine, source, target, on_frame=counts.append)
    assert videos.times(target) == times
    assert videos.rate(target) == videos.rate(source)
    for stream in (0, 1):
        assert videos.sound(target, stream) == videos.sound(source, stream)
    assert (report.frames, report.repeated, report.damaged, report.audio_streams) == (len(times), 0, 0, 2)
    assert counts == [len(times)] * len(times)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


@pytest.mark.slow
def test_the_pictures_are_the_engines_in_order(tmp_path: Path, open_engine: OpenEngine) -> None:
    source, target = videos.make(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    repaint(open_engine, source, target)
    with open_engine() as engine:
        expected = [np.asarray(output.image) for output in engine.stream(videos.pictures(source))]
    for pixels, wanted in zip(videos.pictures(target), expected, strict=True):
        assert np.abs(pixels.astype(int) - wanted).mean() < 8


@pytest.mark.slow
def test_side_by_side_shows_the_input_of_the_same_moment(tmp_path: Path, open_engine: OpenEngine) -> None:
    source, target = videos.make(tmp_path / "in.mp4", size=(64, 32)), tmp_path / "out.mkv"
    repaint(open_engine, source, target, side_by_side=True)
    for before, after in zip(videos.pictures(source), videos.pictures(target), strict=True):
        assert after.shape == (32, 128, 3)
        assert np.abs(after[:, :64].astype(int) - before).mean() < 8


@pytest.mark.slow
def test_sound_can_be_left_out_and_what_a_container_does_not_take_is_encoded(
    tmp_path: Path, open_engine: OpenEngine
) -> None:
    source = videos.make(tmp_path / "in.mkv", audio="wavpack")
    assert repaint(open_engine, source, tmp_path / "out.mkv").encoded_streams == 0
    assert [data for _, data in videos.sound(tmp_path / "out.mkv")] == [data for _, data in videos.sound(source)]
    for name in ("out.mov", "out.mp4"):
        assert repaint(open_engine, source, tmp_path / name).encoded_streams == 1
        before, after = (videos.samples(path) for path in (source, tmp_path / name))
        assert abs(after.size - before.size) <= 2048
        shared = min(before.size, after.size)
        assert np.corrcoef(before[:shared], after[:shared])[0, 1] > 0.5  # it is noise; one sample late it is 0
    assert repaint(open_engine, source, tmp_path / "silent.mov", audio=False).audio_streams == 0
    assert len(videos.times(tmp_path / "silent.mov")) == 12


@pytest.mark.slow
def test_the_muxer_is_asked_not_a_list(tmp_path: Path, open_engine: OpenEngine) -> None:
    """PyAV lists this sound for MOV, whose muxer refuses it."""
    source = videos.make(tmp_path / "in.mkv", audio="flac")
    assert repaint(open_engine, source, tmp_path / "out.mp4").encoded_streams == 0
    assert repaint(open_engine, source, tmp_path / "out.mov").encoded_streams == 1


def test_sound_of_another_container_is_copied(tmp_path: Path, open_engine: OpenEngine) -> None:
    source = videos.make(tmp_path / "in.avi", codec="mpeg4", time_base=Fraction(1, 25), audio="mp3")
    repaint(open_engine, source, tmp_path / "out.mp4")
    assert [data for _, data in videos.sound(tmp_path / "out.mp4")] == [data for _, data in videos.sound(source)]


def test_skipped_frames_repeat_the_picture_before_them(tmp_path: Path, open_engine: OpenEngine) -> None:
    still = [videos.picture(0, 64, 32)] * 6 + [videos.picture(9, 64, 32)] * 6
    source = tmp_path / "in.mkv"
    videos.make(source, size=(64, 32), codec="ffv1", pix_fmt="bgr0", audio=None, frames=still)
    report = repaint(lambda: open_engine(similarity=SimilarityFilter(0.99, max_skip=100)), source, tmp_path / "out.mp4")
    assert report.frames == 12
    assert report.repeated == report.stream.frames_skipped >= 6
    assert len(videos.times(tmp_path / "out.mp4")) == 12


class Sick:
    """An engine whose network gives NaN for some frames: these never come out."""

    def __init__(self, engine: StreamEngine, sick: Callable[[int], bool]) -> None:
        self._engine, self._sick = engine, sick

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __enter__(self) -> "Sick":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def push(self, image: np.ndarray) -> list[Any]:
        return [output for output in self._engine.push(image) if not self._sick(output.frame_id)]

    def flush(self) -> list[Any]:
        return [output for output in self._engine.flush() if not self._sick(output.frame_id)]


@pytest.mark.slow
@pytest.mark.parametrize("sick", [{0, 1}, {4, 5}, {11}, set(range(11))], ids=["first", "middle", "last", "most"])
def test_pictures_that_are_not_finite_are_replaced_by_their_neighbour(
    tmp_path: Path, open_engine: OpenEngine, sick: set[int]
) -> None:
    source, target = videos.make(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    report = repaint(lambda: Sick(open_engine(), sick.__contains__), source, target)  # type: ignore[arg-type, return-value]
    assert videos.times(target) == videos.STEADY
    assert report.repeated == len(sick)


def test_a_network_that_only_overflows_is_an_error(tmp_path: Path, open_engine: OpenEngine) -> None:
    source = videos.make(tmp_path / "in.mp4")
    with pytest.raises(MediaError, match=r"none of the 12 frames has a finite picture.*--dtype float32"):
        repaint(lambda: Sick(open_engine(), lambda _: True), source, tmp_path / "out.mp4")  # type: ignore[arg-type, return-value]
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_the_middle_leaves_nothing(
    tmp_path: Path, open_engine: OpenEngine, error: type[BaseException]
) -> None:
    source = videos.make(tmp_path / "in.mp4")

    def stop(_: object) -> None:
        raise error

    with pytest.raises(error):
        repaint(open_engine, source, tmp_path / "out.mp4", on_frame=stop)
    assert list(tmp_path.iterdir()) == [source]


def test_files_are_checked_before_the_model_loads(tmp_path: Path) -> None:
    def never() -> StreamEngine:
        raise AssertionError("the model was loaded")

    source = videos.make(tmp_path / "in.mp4")
    (tmp_path / "link.mp4").symlink_to(source)
    for target, message in (
        (source, "is the input itself"),
        (tmp_path / "link.mp4", "is the input itself"),
        (tmp_path / "out.avi", "must end in"),
    ):
        with pytest.raises(MediaError, match=message):
            repaint(never, source, target, overwrite=True)
    with pytest.raises(MediaError, match="no video file at"):
        repaint(never, tmp_path / "missing.mp4", tmp_path / "out.mp4")


def test_the_default_size_keeps_shape_and_area() -> None:
    assert size_like(1920, 1080, 512) == (672, 384)
    assert size_like(1080, 1920, 512) == (384, 672)
    assert size_like(100, 100, 128) == (128, 128)
    assert size_like(640, 480, 128) == (128, 96)
    assert size_like(480, 640, 128) == (96, 128)
    assert size_like(4000, 10, 128)[1] == 32


def invoke(tiny_sd: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["video", *map(str, arguments), "--model", str(tiny_sd), "--prompt", "a cat"])


@pytest.mark.slow
def test_the_command_paints_a_video(tmp_path: Path, tiny_sd: Path) -> None:
    source, target = videos.make(tmp_path / "in.mp4", size=(96, 48)), tmp_path / "out.mp4"
    result = invoke(tiny_sd, source, target, "--steps", 1, "--cache", 1)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{target}: 12 frames, ")
    told = invoke(tiny_sd, source, target, "--steps", 1, "--size", "fit", "--fit", "pad", "--overwrite")
    assert "next to the shape of the input, 96 x 48" in told.output
    assert "sound copied" in result.output
    assert videos.times(target) == videos.times(source)
    assert Image.fromarray(videos.pictures(target)[0]).size == (64, 32)
    again = invoke(tiny_sd, source, target)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert invoke(tiny_sd, source, target, "--overwrite", "-q", "--size", "64x32", "--side-by-side").output == ""
    assert videos.pictures(target)[0].shape == (32, 128, 3)


@pytest.mark.slow
def test_batches_change_the_speed_alone(tmp_path: Path, tiny_sd: Path) -> None:
    source, videos_out = videos.make(tmp_path / "in.mp4", size=(64, 32)), []
    for size in (1, 5):
        target = tmp_path / f"{size}.mkv"
        assert invoke(tiny_sd, source, target, "--batch-size", size).exit_code == 0
        videos_out.append(list(videos.pictures(target)))
    for one, five in zip(*videos_out, strict=True):
        assert np.abs(one.astype(int) - five).max() <= 8  # rounding, and what H.264 makes of it


def test_a_lack_of_memory_names_the_remedy(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    source = videos.make(tmp_path / "in.mp4")
    monkeypatch.setattr(StreamEngine, "push", too_large)
    for size, remedy in ((4, "use a smaller --batch-size"), (1, "use a smaller --size")):
        result = invoke(tiny_sd, source, tmp_path / "out.mp4", "--batch-size", size)
        assert result.exit_code == 2
        assert f"out of memory at --batch-size {size}: {remedy}" in result.stderr
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strength", "2"], "--strength"),
        (["--guidance-scale", "nan"], "--guidance-scale"),
        (["--size", "big"], "is not a size"),
        (["--size", "33"], "multiple of"),
        (["--device", "cuda:9"], "no device"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, tiny_sd: Path, options: list[str], message: str) -> None:
    source = videos.make(tmp_path / "in.mp4")
    result = invoke(tiny_sd, source, tmp_path / "out.mp4", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_a_full_disk_is_a_failure_and_no_mistake_of_the_user(tmp_path: Path, tiny_sd: Path) -> None:
    import resource
    import signal

    source = videos.make(tmp_path / "in.mp4")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    try:
        result = invoke(tiny_sd, source, tmp_path / "out.mp4", "--steps", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert result.exit_code == 1
    assert "File too large" in result.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_an_interrupted_command_says_so(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    source = videos.make(tmp_path / "in.mp4")
    monkeypatch.setattr(StreamEngine, "push", interrupted)
    result = invoke(tiny_sd, source, tmp_path / "out.mp4")
    assert result.exit_code == 130
    assert f"Interrupted; {tmp_path / 'out.mp4'} was not written.\n" in result.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_without_pyav_the_extra_is_named(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    result = invoke(tiny_sd, tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert result.exit_code == 2
    assert "pip install 'diffaccel[video]'" in result.stderr
