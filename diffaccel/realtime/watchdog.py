"""Ends a run whose source or sink does not answer: neither Ctrl-C nor an exception reaches a thread inside a driver."""

from __future__ import annotations

import _thread
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self, TypeVar

from diffaccel.media.errors import MediaError

logger = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a source or a sink may take to open, or for one frame."""

T = TypeVar("T")
Stuck = Callable[[str], None]


def interrupt(words: str) -> None:
    """Say what is stuck, and interrupt the main thread, which sees it once its library returns."""
    logger.error(words)
    _thread.interrupt_main()


def answered(what: str, work: Callable[[], T], patience: float | None) -> T:
    """What ``work`` returns, on a thread of its own, which is left alone where it takes too long (None: nothing is).

    Raises:
        MediaError: where there is no answer in time.
        Exception: what ``work`` raises.
    """
    answer: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="diffaccel-open", daemon=True)
    thread.start()
    thread.join(patience)
    if errors:
        raise errors[0]
    if not answer:
        raise MediaError(f"{what} does not answer after {patience:.0f} s: is it free, and reachable?")
    return answer[0]


class Watchdog:
    """Watches work that has to stay on its thread, such as a window's; used with ``with``.

    Args:
        stuck: called on the watchdog's thread, with what does not answer in words.
    """

    def __init__(self, stuck: Stuck) -> None:
        self._stuck = stuck
        self._since: tuple[float, str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="diffaccel-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Work that has to end in time."""
        self._since = time.monotonic(), what
        try:
            yield
        finally:
            self._since = None

    def _run(self) -> None:
        while not self._ended.wait(PATIENCE / 20):
            since = self._since
            if since is not None and time.monotonic() - since[0] > PATIENCE:
                self._since = None
                self._stuck(f"{since[1]} does not answer for {PATIENCE:.0f} s: it was given up")
