"""Where frames come from without a browser: a camera, the screen, or a video file played at its own speed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from diffaccel.config.words import did_you_mean
from diffaccel.media.errors import MediaError, need, no_clip
from diffaccel.media.video_reader import DecodedFrame, VideoReader


class FrameSource(ABC):
    """Frames in real time: iterate to get them as they come, until there are no more. Iterate on one thread only.

    Attributes:
        stuck: set where a thread still waits for the next frame, which may never come; the device then stays open.
        resting: set while it waits of its own accord until the next frame is due.
        rested: when it last did, a time of `time.perf_counter`.
    """

    stuck = False
    resting = False
    rested = 0.0

    def _rest(self, until: float) -> None:
        """Wait until a time of `time.perf_counter`."""
        self.resting = True
        time.sleep(max(0.0, until - time.perf_counter()))
        self.rested = time.perf_counter()
        self.resting = False

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Width and height of its frames, in pixels."""

    @abstractmethod
    def __iter__(self) -> Iterator[DecodedFrame]:
        """Frames, each when its time has come."""

    def close(self) -> None:  # noqa: B027 (most sources hold nothing)
        """Let go of the device or file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.stuck:
            self.close()


class Camera(FrameSource):
    """A camera that OpenCV can open.

    Args:
        address: number of a camera of this machine, a device file, or the URL of a network camera.

    Raises:
        MediaError: where OpenCV is missing (extra ``camera``), the camera does not open, or it is unplugged.
    """

    def __init__(self, address: int | str = 0) -> None:
        self._cv2, self.address = opencv("a camera"), address
        self._capture = self._cv2.VideoCapture(address)
        if not self._capture.isOpened():
            self._capture.release()
            raise MediaError(
                f"cannot open camera {address}: is it plugged in, free, and may this program use it? "
                "Another camera: camera:1. Without one: screen, or a video file"
            )
        self._capture.set(self._cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not the oldest that waits

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        sides = (self._cv2.CAP_PROP_FRAME_WIDTH, self._cv2.CAP_PROP_FRAME_HEIGHT)
        width, height = (round(self._capture.get(side)) for side in sides)
        return width, height

    def __iter__(self) -> Iterator[DecodedFrame]:
        """Frames as the camera delivers them."""
        begin = time.perf_counter()
        while True:
            good, picture = self._capture.read()
            if not good:
                break
            yield DecodedFrame(self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB), time.perf_counter() - begin)
        if not Path(str(self.address)).is_file():
            raise MediaError(f"camera {self.address} delivers no more pictures: was it unplugged?")

    def close(self) -> None:
        """Switch the camera off."""
        self._capture.release()


class Screen(FrameSource):
    """What a monitor shows.

    Args:
        monitor: number from 1; 0 for all together.

    Raises:
        MediaError: where mss is missing (extra ``screen``), there is no display, or no such monitor.
    """

    def __init__(self, monitor: int) -> None:
        self._mss, self.monitor, self._interval = need("mss", extra="screen", purpose="the screen"), monitor, 1 / 30
        with self._capture() as capture:
            if not 0 <= monitor < len(capture.monitors):
                raise MediaError(f"there is no monitor {monitor}: choose from 0 (all) to {len(capture.monitors) - 1}")

    def _capture(self) -> Any:
        try:
            return self._mss.MSS()
        except Exception as error:  # every platform has its own
            raise MediaError(f"cannot see the screen: {error}") from error

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        with self._capture() as capture:
            place = capture.monitors[self.monitor]
        return place["width"], place["height"]

    def __iter__(self) -> Iterator[DecodedFrame]:
        """Frames, at most ``rate`` a second; the capture belongs to the thread that iterates, as Windows wants it."""
        begin = due = time.perf_counter()
        with self._capture() as capture:
            while True:
                shot = capture.grab(capture.monitors[self.monitor])
                pixels = np.frombuffer(shot.rgb, np.uint8).reshape(shot.height, shot.width, 3)
                yield DecodedFrame(pixels, time.perf_counter() - begin)
                due = max(due + self._interval, time.perf_counter())
                self._rest(due)


class Playback(FrameSource):
    """A video file, frame by frame at its own speed, from its first frame's time on.

    Args:
        path: the file.

    Raises:
        MediaError: as `VideoReader`.
    """

    def __init__(self, path: Path) -> None:
        self._reader = VideoReader(path, audio=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self._reader.width, self._reader.height

    def __iter__(self) -> Iterator[DecodedFrame]:
        """Frames, each when its time has come."""
        begin = time.perf_counter()
        for frame in self._reader.frames():
            self._rest(begin + float(frame.time))
            yield frame

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()


def opencv(purpose: str) -> Any:
    """OpenCV, with its messages about devices that do not open held back: ours says the same in one sentence."""
    cv2 = need("cv2", extra="camera", purpose=purpose)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def is_file(source: str) -> bool:
    """Whether a source's name means a video file."""
    return source.partition(":")[0] not in ("camera", "screen") and "://" not in source


def check_source(source: str) -> None:
    """Raise `MediaError` for a name that means nothing, without opening anything."""
    kind, _, which = source.partition(":")
    if kind == "screen" and which and not which.isdecimal():
        raise MediaError(f"{source!r} is no screen: say screen, or screen:2 for the second monitor")
    if kind not in ("camera", "screen") and "://" in source:
        from diffaccel.media.network import check_address

        check_address(source, sink=False)
    if is_file(source) and (not source or not Path(source).exists()):
        if "%" in Path(source).name:
            raise MediaError(no_clip(Path(source)))
        hint = did_you_mean(source, ("camera", "screen"))
        raise MediaError(
            f"no source {source!r}{hint}: say camera, camera:1, screen, screen:2, rtmp://..., or name a video file"
        )


def open_source(source: str) -> FrameSource:
    """Open what a name means: ``camera``, ``camera:1``, ``screen``, ``screen:2``, ``rtmp://...``, or a file.

    ``camera:rtsp://...`` is read by OpenCV, ``rtsp://...`` by PyAV.

    Raises:
        MediaError: for a name that means nothing, and where the source cannot be opened.
    """
    check_source(source)
    kind, _, which = source.partition(":")
    if kind not in ("camera", "screen") and "://" in source:
        from diffaccel.media.network import NetworkVideo

        return NetworkVideo(source)
    if kind == "camera":
        return Camera(int(which) if which.isdecimal() else which or 0)
    return Screen(int(which or 1)) if kind == "screen" else Playback(Path(source))
