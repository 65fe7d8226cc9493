"""Without a browser: cameras, screens and files into windows, files and moving JPEG."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import videos

from diffaccel.media import sources
from diffaccel.media.errors import MediaError
from diffaccel.media.sources import Camera, FrameSource, Playback, open_source
from diffaccel.media.video_reader import DecodedFrame
from diffaccel.realtime import local, sinks, watchdog
from diffaccel.realtime.local import FAILURES_IN_A_ROW, LiveReport, run
from diffaccel.realtime.protocol import decode
from diffaccel.realtime.sinks import Recording, open_sink
from diffaccel.stream.engine import StreamEngine

OpenEngine = Callable[..., StreamEngine]
cv2 = pytest.importorskip("cv2", reason="tests of cameras and windows need OpenCV", exc_type=ImportError)


class Ticker(FrameSource):
    """A live source: frames, by their times ``interval`` seconds apart, that tell their number by their colour.

    It and an engine that it leads keep step: while the engine is at one frame, ``burst`` more of them come.
    """

    size = (64, 32)

    def __init__(self, count: int, interval: float, end: Exception | None = None, burst: int = 1) -> None:
        self.count, self.interval, self.end, self.burst = count, interval, end, burst
        self.made, self.ended, self.closed = 0, False, False
        self.changed, self.begun = threading.Condition(), threading.Semaphore(0)

    def __iter__(self) -> Iterator[DecodedFrame]:
        try:
            for number in range(self.count):
                yield DecodedFrame(videos.picture(number, 64, 32), number * self.interval)
                with self.changed:
                    self.made += 1
                    self.changed.notify()
                if number % self.burst == 0:
                    assert self.begun.acquire(timeout=30)
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify()
        if self.end is not None:
            raise self.end

    def leads(self, engine: StreamEngine) -> StreamEngine:
        push = engine.push

        def paced(*arguments: Any, frame_id: int, **named: Any) -> Any:
            self.begun.release()
            with self.changed:
                assert self.changed.wait_for(lambda: self.ended or self.made > frame_id + self.burst, timeout=30)
            return push(*arguments, frame_id=frame_id, **named)

        engine.push = paced  # type: ignore[method-assign]
        return engine

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def ticker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ticker]:
    """Puts a ticker in the place of the camera."""

    def put(*arguments: Any, **named: Any) -> Ticker:
        source = Ticker(*arguments, **named)
        monkeypatch.setattr(sources, "open_source", lambda _: source)
        return source

    return put


def test_a_file_into_a_file_keeps_every_frame(tmp_path: Path, open_engine: OpenEngine) -> None:
    source = videos.make(tmp_path / "in.mp4", times=videos.UNEVEN)
    announced: list[str] = []
    run(open_engine, source=str(source), sink=str(tmp_path / "out.mp4"), announce=announced.append)
    assert videos.times(tmp_path / "out.mp4") == videos.UNEVEN
    assert videos.sound(tmp_path / "out.mp4") == videos.sound(source)
    assert announced == [str(tmp_path / "out.mp4")]


def test_a_live_source_is_recorded_with_its_times(
    tmp_path: Path, open_engine: OpenEngine, ticker: Callable[..., Ticker]
) -> None:
    source = ticker(10, 0.1)
    report = run(lambda: source.leads(open_engine()), source="camera", sink=str(tmp_path / "out.mp4"))
    assert isinstance(report, LiveReport)
    assert source.closed
    assert report.shown == report.stream.frames_out == 10
    written = videos.times(tmp_path / "out.mp4")
    assert [float(time) for time in written] == pytest.approx([k / 10 for k in range(10)])
    assert list(tmp_path.iterdir()) == [tmp_path / "out.mp4"]


def test_the_latest_frame_wins_where_the_network_is_slow(
    tmp_path: Path, open_engine: OpenEngine, ticker: Callable[..., Ticker]
) -> None:
    source = ticker(61, 0.01, burst=10)
    report = run(lambda: source.leads(open_engine()), source="camera", sink=str(tmp_path / "out.mp4"))
    assert (report.stream.frames_in, report.stream.frames_out, report.stream.frames_dropped) == (61, 7, 54)
    times = [float(time) for time in videos.times(tmp_path / "out.mp4")]
    assert times == pytest.approx([k / 10 for k in range(7)])


def test_an_unplugged_camera_is_an_error_that_keeps_the_recording(
    tmp_path: Path, open_engine: OpenEngine, ticker: Callable[..., Ticker]
) -> None:
    source = ticker(5, 0.05, MediaError("camera 0 delivers no more pictures: was it unplugged?"))
    with pytest.raises(MediaError, match="unplugged"):
        run(lambda: source.leads(open_engine()), source="camera", sink=str(tmp_path / "out.mp4"))
    assert len(videos.times(tmp_path / "out.mp4")) == 5


class Silent(FrameSource):
    """A device that opens and gives no frame."""

    size = (64, 32)

    def __iter__(self) -> Iterator[DecodedFrame]:
        threading.Event().wait(20)
        yield from ()


@pytest.mark.parametrize("where", ["opening", "reading"])
def test_a_source_that_does_not_answer_ends_the_run(
    tmp_path: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(local, "GRACE", 0.1)
    monkeypatch.setattr(local, "PATIENCE", 0.3)
    monkeypatch.setattr(
        sources, "open_source", lambda _: threading.Event().wait(20) if where == "opening" else Silent()
    )
    begin = time.monotonic()
    with pytest.raises(MediaError, match=r"camera does not answer after|no frame came for"):
        run(open_engine, source="camera", sink=str(tmp_path / "out.mp4"))
    assert time.monotonic() - begin < 15


def test_a_source_that_waits_for_its_sender_waits(open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_: str) -> FrameSource:
        time.sleep(0.4)
        raise MediaError("the sender came, and went")

    monkeypatch.setattr(local, "PATIENCE", 0.1)
    monkeypatch.setattr(sources, "open_source", opened)
    with pytest.raises(MediaError, match="came, and went"):
        run(open_engine, source="tcp://127.0.0.1:9?listen=1", sink="mjpeg:0")
    with pytest.raises(MediaError, match="does not answer"):
        run(open_engine, source="tcp://127.0.0.1:9", sink="mjpeg:0")


@pytest.mark.slow
def test_a_source_that_rests_until_its_next_frame_is_left_in_peace(
    tmp_path: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PATIENCE", 0.8)
    source = videos.make(tmp_path / "in.mp4", times=[Fraction(0), Fraction(2), Fraction(21, 10)])
    assert run(open_engine, source=str(source), sink="mjpeg:0").stream.frames_in == 3


def test_a_sink_that_hangs_is_given_up(
    tmp_path: Path, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[str] = []
    hung = threading.Event()

    class Hanging(Recording):
        def write(self, pixels: np.ndarray, time: Fraction | float) -> None:
            hung.wait(20)

    def give_up(words: str) -> None:
        given_up.append(words)
        hung.set()

    monkeypatch.setattr(sinks, "Recording", Hanging)
    monkeypatch.setattr(watchdog, "PATIENCE", 0.5)
    source = videos.make(tmp_path / "in.mp4", times=[Fraction(0)])
    monkeypatch.setattr(sources, "is_file", lambda _: False)
    monkeypatch.setattr(sources, "open_source", lambda _: Playback(source))
    with pytest.raises(MediaError, match="no picture came"):
        run(open_engine, source="camera", sink=str(tmp_path / "out.mp4"), stuck=give_up)
    assert given_up == ["the sink does not answer for 0 s: it was given up"]


def test_a_run_ends_after_its_time(
    tmp_path: Path, open_engine: OpenEngine, ticker: Callable[..., Ticker], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ticker(10_000, 0.1)
    monkeypatch.setattr(local, "time", SimpleNamespace(perf_counter=lambda: source.made / 10))
    report = run(lambda: source.leads(open_engine()), source="camera", sink=str(tmp_path / "out.mp4"), duration=0.8)
    assert 0.8 <= report.seconds <= source.made / 10 < 1000
    assert videos.times(tmp_path / "out.mp4")


def test_frames_that_the_network_fails_on_are_counted(
    tmp_path: Path, open_engine: OpenEngine, ticker: Callable[..., Ticker], caplog: pytest.LogCaptureFixture
) -> None:
    source = ticker(12, 0.05)

    def failing() -> StreamEngine:
        engine = open_engine()
        push = engine.push

        def sometimes(image: np.ndarray, *rest: Any, frame_id: int, **options: Any) -> Any:
            if frame_id % 4 == 3:
                engine.discard(1)
                raise RuntimeError("out of memory")
            return push(image, *rest, frame_id=frame_id, **options)

        engine.push = sometimes  # type: ignore[method-assign]
        return source.leads(engine)

    report = run(failing, source="camera", sink=str(tmp_path / "out.mp4"))
    assert report.failed == 3
    assert report.shown >= 3
    assert "the network failed on a frame, which is left out: out of memory" in caplog.text


def test_a_network_that_always_fails_ends_the_run(
    tmp_path: Path, open_engine: OpenEngine, ticker: Callable[..., Ticker]
) -> None:
    source = ticker(10_000, 0.002)

    def failing() -> StreamEngine:
        engine = open_engine()

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("broken for good")

        engine.push = fail  # type: ignore[method-assign]
        return source.leads(engine)

    with pytest.raises(RuntimeError, match="broken for good"):
        run(failing, source="camera", sink=str(tmp_path / "out.mp4"))
    assert list(tmp_path.iterdir()) == []
    assert FAILURES_IN_A_ROW == 10


def test_signals_end_a_run_in_good_order() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with local.stopped_by_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(20)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_playback_keeps_the_files_speed(tmp_path: Path) -> None:
    path = videos.make(tmp_path / "in.mp4", times=[Fraction(k, 10) for k in range(6)])
    begin, arrivals = time.perf_counter(), []
    with Playback(path) as source:
        for frame in source:
            arrivals.append(time.perf_counter() - begin)
            assert arrivals[-1] >= float(frame.time) - 0.001
    assert len(arrivals) == 6
    assert arrivals[-1] < 15


def test_a_camera_gives_frames_in_rgb_until_it_ends(tmp_path: Path) -> None:
    path = videos.make(
        tmp_path / "camera.avi", codec="mjpeg", pix_fmt="yuvj420p", audio=None, time_base=Fraction(1, 25)
    )
    with open_source(f"camera:{path}") as camera:
        frames = list(camera)
    assert len(frames) == 12
    assert [frame.time for frame in frames] == sorted(frame.time for frame in frames)
    assert np.abs(frames[7].pixels.astype(int) - videos.picture(7, 64, 48)).mean() < 8


def test_a_camera_that_is_not_there_or_goes_away_is_said(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    with pytest.raises(MediaError, match="cannot open camera 77: is it plugged in, free"):
        open_source("camera:77")
    assert capfd.readouterr().err == ""

    class Unplugged:
        def __init__(self, address: object) -> None:
            self.left = 2

        def isOpened(self) -> bool:
            return True

        def set(self, *_: object) -> None:
            pass

        def release(self) -> None:
            pass

        def read(self) -> tuple[bool, np.ndarray]:
            self.left -= 1
            return self.left >= 0, np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(cv2, "VideoCapture", Unplugged)
    with Camera(0) as camera, pytest.raises(MediaError, match="camera 0 delivers no more pictures"):
        list(camera)


@pytest.mark.parametrize(
    ("module", "source", "sink", "extra"),
    [
        ("cv2", "camera", "out.mp4", "camera"),
        ("cv2", "VIDEO", "window", "camera"),
        ("mss", "screen", "out.mp4", "screen"),
        ("av", "VIDEO", "mjpeg", "video"),
    ],
)
def test_a_missing_library_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str, sink: str, extra: str
) -> None:
    video = videos.make(tmp_path / "in.mp4")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MediaError, match=re.escape(f"pip install 'diffaccel[{extra}]'")):
        run(lambda: pytest.fail("the model was loaded"), source=source.replace("VIDEO", str(video)), sink=sink)
    assert list(tmp_path.iterdir()) == [video]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("kamera", r"no source 'kamera' \(did you mean camera\?\): say camera"),
        ("screen:left", "is no screen"),
        ("", "no source"),
    ],
)
def test_a_source_that_means_nothing_is_said(source: str, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        open_source(source)


@pytest.mark.parametrize(
    ("sink", "message"),
    [
        ("wndow", r"no sink 'wndow' \(did you mean window\?\): say window"),
        ("mjpeg:x", "no sink"),
        ("out.gif", "must end in"),
        ("mjpeg:1", "port 1"),
        ("mjpeg:99999", "port 99999: .* must be 0-65535; choose another, as in mjpeg:8091"),
    ],
)
def test_a_sink_that_means_nothing_is_said(sink: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sink == "mjpeg:1":
        import socket

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(MediaError, match=message):
        open_sink(sink)


def test_without_a_display_there_is_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MediaError, match="no display for a window: use --sink mjpeg"):
        open_sink("window")
    with pytest.raises(MediaError, match="cannot see the screen"):
        open_source("screen")


def test_a_recording_without_a_picture_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no picture came"), Recording(tmp_path / "out.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_moving_jpeg_shows_the_latest_picture_to_whoever_knows_the_token() -> None:
    with open_sink("mjpeg:0", token="secret") as sink:
        url = sink.where
        sink.write(videos.picture(1, 64, 48), 0)
        for wrong, headers in ((url.replace("secret", "wrong"), {}), (url, {"Host": "evil.example"})):
            with pytest.raises(urllib.error.HTTPError, match="403") as error:
                urllib.request.urlopen(urllib.request.Request(wrong, headers=headers), timeout=20)
            error.value.close()
        with urllib.request.urlopen(url, timeout=20) as one, urllib.request.urlopen(url, timeout=20) as two:
            for number in (1, 5, 9):
                sink.write(videos.picture(number, 64, 48), 0)
                for watcher in (one, two):
                    assert number in (_number(_next(watcher)) for _ in range(4))
            closer = threading.Thread(target=sink.close, kwargs={"complete": True})
            begin = time.monotonic()
            closer.start()
            one.read()
            closer.join()
            assert time.monotonic() - begin < 15


def _next(watcher: Any) -> np.ndarray:
    head = b"".join(iter(watcher.readline, b"\r\n"))
    jpeg = watcher.read(int(head.split(b"Content-Length: ")[1]))
    watcher.readline()
    return decode(jpeg)


def _number(pixels: np.ndarray) -> int:
    return round(float(pixels[:, 4:28, 0].mean()) / 20)


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """An X server without a screen of its own."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    with subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", "800x700x24"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdout is not None
        yield f":{server.stdout.readline().decode().strip()}"
        server.terminate()


SCREEN_INTO_WINDOW = """
import sys, threading, time
import cv2, numpy as np
from diffaccel.realtime.sinks import open_sink
from diffaccel.media.sources import open_source

with open_sink("window") as window, open_source("screen") as screen:
    green = np.zeros((128, 128, 3), np.uint8)
    green[..., 1] = 255
    frames, seen, end = iter(screen), 0.0, time.monotonic() + 60
    while seen < 0.2 and time.monotonic() < end:
        window.write(green, 0)
        assert window.wanted()
        pixels = next(frames).pixels
        assert pixels.shape == (700, 800, 3)
        seen = float((pixels == (0, 255, 0)).all(-1).mean())
    print("seen", seen)
    cv2.destroyAllWindows()
    cv2.waitKey(1)
    assert not window.wanted()
try:
    open_source("screen:9")
except ValueError as error:
    print(error)
"""


def test_a_system_whose_windows_may_stay_black_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str, **_: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sinks.ctypes, "CDLL", missing)
    sinks._share_xlib()
    assert "a window may stay black (libX11-xcb.so.1: cannot open" in caplog.text
    assert "apt-get install libx11-xcb1" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import av\n"], ids=["opencv-first", "pyav-first"])
def test_a_window_is_drawn_and_the_screen_is_seen(display: str, first: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", first + SCREEN_INTO_WINDOW],
        env=os.environ | {"DISPLAY": display},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[1]) >= 0.2
    assert "there is no monitor 9: choose from 0 (all) to 1" in result.stdout
