"""One network, many people: a thread for each session, and calls that the sessions share."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Self

import torch

from diffaccel.realtime import protocol
from diffaccel.realtime.client import Client, Post, Stream
from diffaccel.realtime.controls import Controls
from diffaccel.realtime.metrics import Metrics

logger = logging.getLogger(__name__)


def spare_a_core() -> None:
    """Compute on all cores but one, which the server and a browser on this machine need.

    Threads of one tensor operation wait for each other, so a core that is shared with a browser slows all of them: on
    two cores, one thread paints 21 frames per second beside a browser, two paint 13. Where ``OMP_NUM_THREADS`` is set,
    that is what counts.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


class HubFull(RuntimeError):
    """Everyone's place is taken."""


class Hub:
    """Runs the streams of all sessions, each on a thread of its own, so that those of one `StreamHost` share calls.

    Args:
        open_stream: builds a session's stream; called on the session's thread.
        controls: the controls that a session begins with.
        limit: most sessions at a time.
        metrics: what is counted; None for new ones.
        fps: most pictures of a session a second; None for as many as can be.
    """

    def __init__(
        self,
        open_stream: Callable[[Controls], Stream],
        *,
        controls: Controls | None = None,
        limit: int = 4,
        metrics: Metrics | None = None,
        fps: float | None = None,
    ) -> None:
        self.open_stream, self.limit, self._fps = open_stream, limit, fps
        self.controls = controls or Controls()
        self.metrics = Metrics() if metrics is None else metrics
        self._lock = threading.RLock()
        self._sessions: dict[Client, threading.Condition] = {}
        self._threads: set[threading.Thread] = set()
        self._closing = False

    @property
    def count(self) -> int:
        """Sessions now."""
        return len(self._sessions)

    @property
    def alive(self) -> bool:
        """Whether sessions are served."""
        return not self._closing

    def join(self, post: Post) -> Client:
        """A new session; ``post`` gets its messages, on the session's thread or the caller's, and must not wait.

        Raises:
            HubFull: where the limit is reached; the message says so to a person.
        """
        with self._lock:
            if len(self._sessions) >= self.limit:
                people = "1 person paints" if self.limit == 1 else f"{self.limit} people paint"
                self.metrics.refused.labels("full").inc()
                raise HubFull(
                    f"{people} here already, which is the limit. Wait until someone leaves; "
                    "whoever runs this can allow more with --max-sessions."
                )
            session = Client(self.controls, post, self.metrics, self._fps)
            changed = self._sessions[session] = threading.Condition(self._lock)
            self.metrics.sessions.set(len(self._sessions))
            work = session, changed
            thread = threading.Thread(target=self._serve, args=work, name="diffaccel-session", daemon=True)
            self._threads.add(thread)
            thread.start()
        return session

    def leave(self, session: Client) -> None:
        """End a session. Leaving twice is harmless."""
        with self._lock:
            changed = self._sessions.pop(session, None)
            self.metrics.sessions.set(len(self._sessions))
            if changed is not None:
                changed.notify()

    def offer(self, session: Client, frame: protocol.FrameMessage) -> None:
        """Hand over a frame without waiting; one of this session that still waits is replaced."""
        with self._lock:
            session.offer(frame)
            self._wake(session)

    def change(self, session: Client, values: dict[str, Any]) -> Controls:
        """Change some controls of a session, and get all of them, with the change.

        Raises:
            pydantic.ValidationError: for unknown names and values out of range; nothing has changed then.
        """
        with self._lock:
            asked = session.ask(values)
            self._wake(session)
        return asked

    def _wake(self, session: Client) -> None:
        if session in self._sessions:
            self._sessions[session].notify()

    def close(self) -> None:
        """End all sessions; waits for the frames that are being painted. Closing twice is harmless."""
        with self._lock:
            self._closing = True
            threads = list(self._threads)
            for changed in self._sessions.values():
                changed.notify()
        for thread in threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, session: Client, changed: threading.Condition) -> None:
        """Paint a session's frames until it leaves."""
        while self._is_wanted(session, changed):
            with self._lock:
                work = session.take()
            session.work(*work, self.open_stream)
        session.drop()
        session.close()
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _is_wanted(self, session: Client, changed: threading.Condition) -> bool:
        """Wait until there is something to do; False at the end."""
        with self._lock:
            while not self._closing and session in self._sessions:
                now = monotonic()
                if session.ready(now):
                    return True
                changed.wait(session.wakes(now))
        return False
