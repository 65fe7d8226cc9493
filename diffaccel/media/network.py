"""Video over a network: RTMP, RTSP, SRT, UDP, TCP and HTTP addresses, through PyAV, both ways.

An address that connects to no one but waits for a caller says so with ``?listen=1`` (RTMP, TCP, RTSP) or
``?mode=listener`` (SRT).
"""

from __future__ import annotations

import logging
import multiprocessing
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np

from diffaccel.config.words import counted
from diffaccel.media.errors import MediaError, need, pyav
from diffaccel.media.pixels import upright
from diffaccel.media.sources import FrameSource
from diffaccel.media.video_reader import DecodedFrame

logger = logging.getLogger(__name__)

FORMATS = {"rtmp": "flv", "rtmps": "flv", "rtsp": "rtsp", "srt": "mpegts", "udp": "mpegts", "tcp": "mpegts"}
"""What is sent under each scheme, by FFmpeg's name of it."""
READABLE = frozenset(FORMATS) | {"rtp", "http", "https"}
TIMEOUT = 10.0
"""Seconds to wait for a server, and for the next packet."""
HANGS_UP_WITHIN = 2.0
"""Seconds that a sender has to say goodbye once every picture is sent."""
MOST_UNSENT = 4
"""Pictures on the way to the network; while so many are, newer ones are left out."""
TICKS = Fraction(1, 90_000)
KEYFRAME_EVERY = 60


def is_address(name: str) -> bool:
    """Whether a name is an address, not a file."""
    return "://" in name


def check_address(name: str, *, sink: bool) -> None:
    """Raise `MediaError` for a scheme that cannot be used, an address without a host, and where PyAV is missing."""
    schemes = sorted(FORMATS) if sink else sorted(READABLE)
    try:
        parts = urlsplit(name)
        complete = bool(parts.hostname and (parts.scheme not in ("udp", "tcp", "srt") or parts.port))
    except ValueError as error:
        raise MediaError(f"{name} is no address: {error}") from error
    if parts.scheme not in schemes:
        verb = "send to" if sink else "read from"
        raise MediaError(f"cannot {verb} {parts.scheme}:// addresses: use {', '.join(schemes)}")
    if not complete:
        raise MediaError(f"{name} is no address: it has to look like {parts.scheme}://host:port/name")
    need("av", extra="video", purpose=f"{parts.scheme}://")


def waits(address: str) -> bool:
    """Whether an address connects to no one but waits for a caller, however long that takes."""
    return re.search(r"[?&](listen=1|mode=listener)(&|$)", address) is not None


def without_options(address: str) -> tuple[str, dict[str, str]]:
    """An address, and the options of FFmpeg that its query asks for."""
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query))
    if parts.scheme not in ("rtmp", "rtmps", "rtsp") or query.pop("listen", "0") != "1":
        return address, {"rtsp_transport": "tcp"} if parts.scheme == "rtsp" else {}
    bare = parts._replace(query=urlencode(query)).geturl()
    if parts.scheme == "rtsp":
        return bare, {"rtsp_flags": "listen", "listen_timeout": "86400"}
    return bare, {"listen": "1"}


class NetworkVideo(FrameSource):
    """Frames that come over a network, each as soon as it is there.

    Args:
        address: where from.

    Raises:
        MediaError: where nothing can be opened there, and where it breaks off before the first frame.
    """

    def __init__(self, address: str) -> None:
        check_address(address, sink=False)
        from av.error import FFmpegError

        self.address = address
        bare, options = without_options(address)
        options |= {"analyzeduration": "1000000"}  # a second, to find out what comes
        if waits(address):
            logger.warning("%s waits for a sender", address)
        try:
            self._container = pyav().open(bare, options=options, timeout=None if waits(address) else TIMEOUT)
        except (FFmpegError, OSError) as error:
            raise MediaError(f"cannot open {address}: {_words(error)}") from error
        if not self._container.streams.video:
            self._container.close()
            raise MediaError(f"{address} sends no video")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels, as the sender tells them."""
        context = self._container.streams.video[0].codec_context
        return context.width, context.height

    def __iter__(self) -> Iterator[DecodedFrame]:
        """Frames as they come; those of a file on a web server at its own speed."""
        from av.error import EOFError as Ended
        from av.error import FFmpegError

        stream, begin = self._container.streams.video[0], time.perf_counter()
        shape, first = stream.sample_aspect_ratio or Fraction(1), None
        paced = self.address.startswith("http") and bool(self._container.duration)
        came = False
        try:
            for frame in self._container.decode(stream):
                came = True
                if paced and frame.time is not None:
                    first = frame.time if first is None else first
                    self._rest(begin + frame.time - first)
                yield DecodedFrame(upright(frame, shape), time.perf_counter() - begin)
        except Ended:
            return
        except (FFmpegError, OSError) as error:  # how a server hangs up, or a network fails, is all one to FFmpeg
            if not came:
                raise MediaError(f"{self.address} broke off: {_words(error)}") from error
            logger.warning("%s ended: %s", self.address, _words(error))

    def close(self) -> None:
        """Hang up."""
        self._container.close()


class NetworkWriter:
    """Sends pictures as H.264, in a process of its own: PyAV lets nothing else run while it connects.

    Args:
        address: where to.

    Raises:
        MediaError: for an address that cannot be sent to.
    """

    def __init__(self, address: str) -> None:
        check_address(address, sink=True)
        self.address, self.left_out = address, 0
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=send, args=(theirs, address), daemon=True, name="diffaccel-network")
        self._process.start()
        theirs.close()
        self._unsent = 0
        self._heard = time.monotonic()
        self._waits = waits(address)
        if self._waits:
            logger.warning("%s waits for a viewer", address)

    def write(self, pixels: np.ndarray, at: Fraction | float) -> None:
        """Send a picture ``(H, W, 3)`` uint8 RGB of ``at`` seconds, or leave it out where the network is slow.

        An address that waits for a viewer takes the first pictures when one comes, however long that takes.

        Raises:
            MediaError: where the server refuses, hangs up, or takes nothing for too long.
        """
        self._listen(0)
        if self._unsent >= MOST_UNSENT:
            if self._waits:
                return
            self.left_out += 1
            if time.monotonic() - self._heard > TIMEOUT:
                raise self._broken(f"{self.address} takes no pictures for {TIMEOUT:.0f} s: is its server running?")
            return
        if self._unsent == 0:
            self._heard = time.monotonic()
        self._unsent += 1
        try:
            self._pipe.send((float(at), pixels.shape))
            self._pipe.send_bytes(np.ascontiguousarray(pixels).tobytes())
        except OSError:
            self._listen(1)
            raise self._broken(f"{self.address} broke off") from None

    def _listen(self, seconds: float) -> None:
        """Hear of pictures that were sent. Raises `MediaError` for what the process says is wrong."""
        try:
            while self._unsent and self._pipe.poll(seconds):
                words = self._pipe.recv()
                if words is not None:
                    raise self._broken(f"cannot send to {self.address}: {words}")
                self._unsent, self._heard, self._waits = self._unsent - 1, time.monotonic(), False
        except (EOFError, OSError):
            raise self._broken(f"{self.address} broke off") from None

    def _broken(self, words: str) -> MediaError:
        """An error after which nothing waits to be sent any more."""
        self._unsent = 0
        return MediaError(words)

    def close(self) -> None:
        """Send what waits, and hang up.

        Raises:
            MediaError: where the network did not take all that it was given.
        """
        try:
            self._listen(0)
            if self._unsent and self._waits:
                raise self._broken(f"nobody called at {self.address}, so that no picture was sent")
            with suppress(OSError):
                self._pipe.send(None)
            end = time.monotonic() + TIMEOUT
            while self._unsent and time.monotonic() < end:
                self._listen(0.05)
            if self._unsent:
                raise self._broken(f"{self.address} did not take the last pictures within {TIMEOUT:.0f} s")
            self._process.join(HANGS_UP_WITHIN)
        finally:
            if self.left_out:
                logger.warning("%s: the network had no room for %s", self.address, counted(self.left_out, "picture"))
            if self._process.is_alive():
                self._process.kill()
            self._process.join()
            self._pipe.close()


def send(pipe: Connection, address: str) -> None:
    """Send every picture that comes through a pipe; the main function of the writer's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    from av.error import FFmpegError

    av = pyav()
    bare, options = without_options(address)
    container = av.open(bare, "w", format=FORMATS[urlsplit(address).scheme], options=options)
    stream: Any = None
    last = -1
    try:
        while (message := pipe.recv()) is not None:
            at, shape = message
            pixels = np.frombuffer(pipe.recv_bytes(), np.uint8).reshape(shape)
            stream = stream or _stream(container, shape[1], shape[0])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", dst_colorspace=1)
            last = frame.pts = max(round(at / TICKS), last + 1)
            frame.time_base = TICKS
            container.mux(stream.encode(frame))
            pipe.send(None)
        if stream is not None:
            container.mux(stream.encode(None))
            container.close()
    except EOFError:  # whoever sends pictures was killed
        return
    except (FFmpegError, OSError, ValueError) as error:
        with suppress(OSError):
            pipe.send(_words(error))


def _stream(container: Any, width: int, height: int) -> Any:
    options = {"preset": "veryfast", "tune": "zerolatency", "crf": "20", "g": str(KEYFRAME_EVERY)}
    stream = container.add_stream("libx264", rate=30, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.time_base = TICKS
    stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
    stream.codec_context.color_range = 1
    return stream


def _words(error: Exception) -> str:
    from av.error import ExitError, ProtocolNotFoundError

    if isinstance(error, ExitError):
        return f"nothing came for {TIMEOUT:g} s: is its sender running?"
    if isinstance(error, ProtocolNotFoundError):
        return "this PyAV's FFmpeg was built without its protocol; use rtmp:// or udp://, or build PyAV with it"
    return str(getattr(error, "strerror", None) or error)
