"""Where pictures go without a browser: a window, a video file, or a stream that OBS and browsers can show."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from abc import ABC, abstractmethod
from contextlib import nullcontext, suppress
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np

from diffaccel.config.words import did_you_mean
from diffaccel.media.errors import MediaError, need, pyav
from diffaccel.media.network import NetworkWriter, check_address, is_address
from diffaccel.media.sources import opencv
from diffaccel.media.video_writer import VideoWriter, check_target
from diffaccel.realtime.mjpeg import MjpegServer

logger = logging.getLogger(__name__)

NAMES = ("window", "mjpeg", "virtual-camera")

HELPERS = frozenset({"shape", "shm", "xfixes"})
"""X libraries that need libxcb alone, so that loading them loads no other of these."""

TICKS = Fraction(1, 90_000)
"""Unit of a recording's times, in seconds: that of MPEG, which 24, 25, 29.97, 30 and 60 frames a second divide."""


class FrameSink(ABC):
    """Takes pictures; used with ``with``.

    Attributes:
        where: what to tell the user, in words that go on after "Pictures go to ".
    """

    where: str

    @abstractmethod
    def write(self, pixels: np.ndarray, time: Fraction | float) -> None:
        """Take one picture ``(H, W, 3)`` uint8 RGB that belongs at ``time`` seconds."""

    def wanted(self) -> bool:
        """Whether the user still wants pictures; asked between pictures, many times a second."""
        return True

    def close(self, *, complete: bool) -> None:  # noqa: B027 (most sinks hold nothing)
        """End it; ``complete`` is False after an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(complete=kind is None)


class Window(FrameSink):
    """A window of OpenCV; q, Esc or its close button ends it. Used on the main thread only.

    Raises:
        MediaError: without OpenCV (extra ``camera``), with one that was built without windows, or without a display.
    """

    where = "a window; q, Esc or closing it ends this"
    TITLE = "diffaccel"
    SMALLEST = 512

    def __init__(self) -> None:
        _require_display()
        _share_xlib()
        os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")  # OpenCV ships Qt without its fonts
        self._cv2, self._shape = opencv("a window"), (0, 0)
        plain = self._cv2.WINDOW_NORMAL | self._cv2.WINDOW_KEEPRATIO | self._cv2.WINDOW_GUI_NORMAL
        try:
            self._cv2.namedWindow(self.TITLE, plain)
        except self._cv2.error as error:
            raise MediaError(
                "this OpenCV was built without windows: pip uninstall opencv-python-headless, "
                "then pip install --force-reinstall opencv-python"
            ) from error

    def write(self, pixels: np.ndarray, time: Fraction | float) -> None:  # noqa: ARG002
        """Show one picture."""
        if pixels.shape[:2] != self._shape:
            self._shape = height, width = pixels.shape[:2]
            scale = max(1, round(self.SMALLEST / max(height, width)))
            self._cv2.resizeWindow(self.TITLE, width * scale, height * scale)
        self._cv2.imshow(self.TITLE, self._cv2.cvtColor(pixels, self._cv2.COLOR_RGB2BGR))

    def wanted(self) -> bool:
        """Let the window draw itself; False once it was closed."""
        key = self._cv2.waitKey(1) & 0xFF
        return key not in (27, ord("q")) and self._cv2.getWindowProperty(self.TITLE, self._cv2.WND_PROP_VISIBLE) > 0

    def close(self, *, complete: bool) -> None:  # noqa: ARG002
        """Close the window."""
        self._cv2.destroyAllWindows()
        self._cv2.waitKey(1)


def _require_display() -> None:
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise MediaError("there is no display for a window: use --sink mjpeg or --sink file.mp4 here")


def _share_xlib() -> None:
    """Let OpenCV's Qt, its helpers and Xlib all speak through one libxcb: the system's.

    OpenCV's wheels bring a libX11-xcb that is older than most systems' libX11, and writes into another field of its
    display that Xlib is to leave events alone. Xlib then swallows events now and then, also the one that a window has
    come up, which stays black. And PyAV's wheels bring some of the same helpers, linked to a libxcb of their own: where
    PyAV was loaded first, Qt got those, and waited for ever for answers that had come to the other libxcb. What is
    loaded here, for everyone, is what Qt finds.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL("libX11-xcb.so.1", mode=ctypes.RTLD_GLOBAL)
        for library in _helpers_of_both():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        logger.warning("a window may stay black (%s); on Debian and Ubuntu: apt-get install libx11-xcb1", error)


def _helpers_of_both() -> list[Path]:
    """OpenCV's copies of the X libraries that PyAV's wheel brings as well, under the same names."""
    places = {name: find_spec(name) for name in ("cv2", "av")}
    if any(place is None or place.origin is None for place in places.values()):
        return []
    site = {name: Path(place.origin).parents[1] for name, place in places.items()}  # type: ignore[union-attr,arg-type]
    theirs = {file.name for file in site["av"].glob("av.libs/libxcb-*.so.*")}
    ours = site["cv2"].glob("opencv_*.libs/libxcb-*.so.*")
    return sorted(file for file in ours if file.name in theirs and file.name.split("-")[1] in HELPERS)


class Recording(FrameSink):
    """A video file, complete once the stream ends; pictures keep the times they were taken at.

    Args:
        path, overwrite: as `VideoWriter`, which also says what it raises.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.where = f"{path}; Ctrl-C completes it"
        self._writer = VideoWriter(path, rate=Fraction(30), time_base=TICKS, overwrite=overwrite)

    def write(self, pixels: np.ndarray, time: Fraction | float) -> None:
        """Add one picture."""
        if not self._writer.written:
            self._writer.start(pixels.shape[1], pixels.shape[0])
        self._writer.write(pixels, time)

    def close(self, *, complete: bool) -> None:
        """Complete the file, also after an error: what was recorded is worth keeping."""
        with nullcontext() if complete else suppress(MediaError):
            self._writer.finish()


class NetworkSink(FrameSink):
    """An RTMP, RTSP, SRT, UDP or TCP address, see `NetworkWriter`."""

    def __init__(self, address: str) -> None:
        self._writer, self.where = NetworkWriter(address), address

    def write(self, pixels: np.ndarray, time: Fraction | float) -> None:
        """Send one picture."""
        self._writer.write(pixels, time)

    def close(self, *, complete: bool) -> None:
        """Send what waits, and hang up."""
        with nullcontext() if complete else suppress(MediaError):
            self._writer.close()


class VirtualCamera(FrameSink):
    """A camera that other programs see: v4l2loopback on Linux, OBS's on Windows and macOS.

    Args:
        device: which one, such as ``/dev/video2``; None for any.

    Raises:
        MediaError: without pyvirtualcam (extra ``virtual-camera``), or without such a device.
    """

    RATE = 30

    def __init__(self, device: str | None) -> None:
        self._module = need("pyvirtualcam", extra="virtual-camera", purpose="a virtual camera")
        self._device, self.where = device, device or "a virtual camera"
        self._camera: Any = None

    def write(self, pixels: np.ndarray, time: Fraction | float) -> None:  # noqa: ARG002
        """Show one picture; the first one gives the camera its size."""
        if self._camera is None:
            height, width = pixels.shape[:2]
            try:
                self._camera = self._module.Camera(width=width, height=height, fps=self.RATE, device=self._device)
            except RuntimeError as error:
                raise MediaError(
                    f"no virtual camera: {error}; on Linux: modprobe v4l2loopback, elsewhere install OBS"
                ) from error
        self._camera.send(np.ascontiguousarray(pixels))

    def close(self, *, complete: bool) -> None:  # noqa: ARG002
        """Take it away."""
        if self._camera is not None:
            self._camera.close()


class Mjpeg(FrameSink):
    """Moving JPEG over HTTP, see `MjpegServer`."""

    def __init__(self, server: MjpegServer) -> None:
        self._server, self.where = server, server.url
        server.start()

    def write(self, pixels: np.ndarray, time: Fraction | float) -> None:  # noqa: ARG002
        """Show one picture to everyone who watches."""
        self._server.show(pixels)

    def close(self, *, complete: bool) -> None:  # noqa: ARG002
        """Hang up."""
        self._server.close()


def is_file(sink: str) -> bool:
    """Whether a sink's name means a video file."""
    return sink.partition(":")[0] not in NAMES and not is_address(sink)


def check_sink(sink: str, *, overwrite: bool = False) -> None:
    """Raise `MediaError` for a name that means nothing, and a window or file that cannot be; opens nothing."""
    kind, _, port = sink.partition(":")
    if is_address(sink):
        check_address(sink, sink=True)
    elif kind == "window" and not port:
        _require_display()
    elif kind == "virtual-camera":
        need("pyvirtualcam", extra="virtual-camera", purpose="a virtual camera")
    elif is_file(sink) and Path(sink).suffix:
        pyav()
        check_target(Path(sink), overwrite=overwrite)
    elif kind != "mjpeg" or not (port.isdecimal() or not port):
        hint = did_you_mean(sink, NAMES)
        raise MediaError(
            f"no sink {sink!r}{hint}: say window, mjpeg, mjpeg:8090, virtual-camera, rtmp://..., or name a .mp4 file"
        )


def open_sink(sink: str, *, overwrite: bool = False, token: str | None = None) -> FrameSink:
    """Open what a name means.

    That is ``window``, ``mjpeg``, ``mjpeg:8090`` (the port), ``virtual-camera``, ``virtual-camera:/dev/video2``, an
    address such as ``rtmp://...``, or a video file.

    Args:
        sink: the name.
        overwrite: whether an existing file may be replaced.
        token: of the MJPEG stream's URL; None for a random one.

    Raises:
        MediaError: where it cannot be opened.
    """
    check_sink(sink, overwrite=overwrite)
    if is_file(sink):
        return Recording(Path(sink), overwrite=overwrite)
    if is_address(sink):
        return NetworkSink(sink)
    kind, _, port = sink.partition(":")
    if kind == "virtual-camera":
        return VirtualCamera(port or None)
    return Window() if kind == "window" else Mjpeg(MjpegServer(port=int(port or MjpegServer.PORT), token=token))
