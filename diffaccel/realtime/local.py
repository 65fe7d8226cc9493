"""`diffaccel live` without a browser: frames from a source through the network into a sink, the latest frame first."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from diffaccel.media import sources
from diffaccel.media.errors import MediaError
from diffaccel.media.network import waits
from diffaccel.media.repaint import OpenEngine, VideoReport, repaint, to_pixels
from diffaccel.media.sources import FrameSource
from diffaccel.media.video_reader import VideoReader
from diffaccel.realtime import sinks
from diffaccel.realtime.sinks import FrameSink
from diffaccel.realtime.watchdog import PATIENCE, Stuck, Watchdog, answered, interrupt
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.report import StreamReport
from diffaccel.stream.worker import StreamClosed, StreamWorker

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 10
"""So many frames in a row that the network fails on end the run: it will not get better."""

GRACE = 3.0
"""Seconds that a source gets to deliver its last frame before it is left alone: a camera can hang."""

POLL = 0.02
"""Seconds between two looks at a window's buttons while no picture comes."""


@dataclass(frozen=True)
class LiveReport:
    """What became of a live run: pictures shown, frames that failed, seconds, and the engine's account."""

    shown: int
    failed: int
    seconds: float
    stream: StreamReport

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.shown / self.seconds if self.seconds else 0.0


def run(
    open_engine: OpenEngine,
    *,
    source: str,
    sink: str,
    overwrite: bool = False,
    duration: float | None = None,
    token: str | None = None,
    on_source: Callable[[int, int], None] = lambda _width, _height: None,
    announce: Callable[[str], None] = lambda _: None,
    stuck: Stuck = interrupt,
    fps: float | None = None,
) -> LiveReport | VideoReport:
    """Paint what a source shows into a sink, until it ends or the user ends it.

    A file into a file keeps every frame (see `repaint`). Everything else is live: where the network is slower than the
    source, frames are dropped and counted, so that what is shown is never old. Ctrl-C and SIGTERM end a live run in
    good order, and a second one at once; a recording is completed. A source or a sink that does not answer for ten
    seconds ends it, too; a source that waits for its sender waits for as long as it takes.

    Args:
        open_engine: builds the engine; called once source and sink are open. It is closed at the end.
        source: ``camera``, ``camera:1``, ``camera:rtsp://...``, ``screen``, ``screen:2``, an address such as
            ``rtmp://...``, or a video file.
        sink: as `diffaccel.realtime.sinks.open_sink` takes it.
        overwrite: whether an existing file may be replaced.
        duration: seconds after which a live run ends; None for no end.
        token: of the MJPEG stream's URL; None for a random one.
        on_source: called with the width and height of the input, before the engine is built.
        announce: called once with where pictures go, when everything is ready.
        stuck: called, on another thread, with words about a sink that hangs inside its library, which nothing but the
            end of the process may get it out of. The default logs them and interrupts the main thread.
        fps: most frames a second that are taken from a live source; None for all that the network has time for.

    Raises:
        MediaError: where source or sink cannot be used; the message says what to do.
        Exception: what the network raised for ten frames in a row.
    """
    if sources.is_file(source) and sinks.is_file(sink):
        with VideoReader(Path(source), audio=False) as reader:
            on_source(reader.width, reader.height)
        announce(sink)
        return repaint(open_engine, Path(source), Path(sink), overwrite=overwrite)
    with (
        Watchdog(stuck) as watchdog,
        answered(source, lambda: sources.open_source(source), None if waits(source) else PATIENCE) as frames,
        _opened(sink, watchdog, overwrite=overwrite, token=token) as shown,
        _built(open_engine, frames, on_source) as engine,
        StreamWorker(engine) as worker,
        stopped_by_signals() as stop,
    ):
        announce(shown.where)
        return Show(frames, shown, worker, stop, watchdog, fps).run(duration)


def _built(open_engine: OpenEngine, source: FrameSource, on_source: Callable[[int, int], None]) -> StreamEngine:
    on_source(*source.size)
    return open_engine()


def _opened(sink: str, watchdog: Watchdog, *, overwrite: bool, token: str | None) -> FrameSink:
    with watchdog.watching(sink):
        return sinks.open_sink(sink, overwrite=overwrite, token=token)


class Show:
    """A live run: a thread feeds the worker, and the caller's thread shows what comes out."""

    def __init__(
        self,
        source: FrameSource,
        sink: FrameSink,
        worker: StreamWorker,
        stop: threading.Event,
        watchdog: Watchdog,
        fps: float | None = None,
    ) -> None:
        self._period = 0.0 if fps is None else 1 / fps
        self._source, self._sink, self._worker, self._stop, self._watchdog = source, sink, worker, stop, watchdog
        self._heard = time.perf_counter()
        self._times: deque[tuple[int, Fraction | float]] = deque()
        self._error: Exception | None = None
        self._shown = self._failed = self._failed_in_a_row = 0

    def run(self, duration: float | None) -> LiveReport:
        """Show pictures until the source ends, the user has enough, ``stop`` is set, or ``duration`` is over."""
        feeder = threading.Thread(target=self._feed, name="diffaccel-source", daemon=True)
        begin = time.perf_counter()
        feeder.start()
        try:
            while not self._stop.is_set() and (duration is None or time.perf_counter() - begin < duration):
                try:
                    self._show()
                except StreamClosed:
                    break
                with self._watchdog.watching("the sink"):
                    if not self._sink.wanted():
                        break
                if feeder.is_alive():
                    self._check_source()
        finally:
            self._stop.set()
            feeder.join(timeout=GRACE)
            self._source.stuck = feeder.is_alive()
        if self._error is not None:
            raise self._error
        return LiveReport(self._shown, self._failed, time.perf_counter() - begin, self._worker.engine.report())

    def _check_source(self) -> None:
        """Raise `MediaError` where the source owes a frame for too long."""
        silent = time.perf_counter() - max(self._heard, self._source.rested)
        if silent > PATIENCE and not self._source.resting:
            raise MediaError(f"no frame came for {PATIENCE:.0f} s: is the source still there?")

    def _feed(self) -> None:
        """Put every frame into the worker, which keeps the latest; close it where the source ends."""
        number, due = self._worker.engine.next_frame_id, 0.0
        try:
            for frame in self._source:
                if self._stop.is_set():
                    return
                now = self._heard = time.perf_counter()
                if now < due:
                    continue
                due = max(due, now - self._period) + self._period
                self._times.append((number, frame.time))
                self._worker.put(frame.pixels)
                number += 1
        except StreamClosed:
            return
        except Exception as error:  # raised where the pictures are shown
            self._error = error
        self._worker.close(flush=True)

    def _show(self) -> None:
        """Show the next picture if there is one now; count a frame that the network failed on."""
        try:
            output = self._worker.get(timeout=POLL)
        except StreamClosed:
            raise
        except TimeoutError:
            return
        except Exception as error:
            self._failed, self._failed_in_a_row = self._failed + 1, self._failed_in_a_row + 1
            if self._failed_in_a_row >= FAILURES_IN_A_ROW:
                raise
            logger.warning("the network failed on a frame, which is left out: %s", error)
            return
        self._failed_in_a_row = 0
        with self._watchdog.watching("the sink"):
            self._sink.write(to_pixels(output.image), self._time(output.frame_id))
        self._shown += 1

    def _time(self, frame_id: int) -> Fraction | float:
        while self._times[0][0] < frame_id:
            self._times.popleft()
        return self._times[0][1]


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that a run ends between two pictures; a second Ctrl-C raises.

    On a thread other than the main one, which gets no signals, nothing is changed.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
