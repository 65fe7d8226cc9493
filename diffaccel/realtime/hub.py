"""One thread, one network, many people: sessions take turns, a frame each."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any, Self

import torch

from diffaccel.realtime import protocol
from diffaccel.realtime.client import Client, Post, Stream
from diffaccel.realtime.controls import Controls
from diffaccel.realtime.metrics import Metrics
from diffaccel.realtime.remarks import remark
from diffaccel.realtime.settings import LiveSettings, open_engine, stream_arguments
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.report import StreamOutput

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


class EngineStream:
    """A `StreamEngine` as sessions use it, on a pipeline that they share; another size is another engine."""

    def __init__(self, pipe: Any, settings: LiveSettings) -> None:
        self._pipe, self._settings = pipe, settings
        self._engine: StreamEngine = open_engine(pipe, settings)
        self._size = settings.controls.picture_size
        self._arguments = stream_arguments(pipe, settings.controls)
        self._withheld = 0

    def push(self, image: Any, *, frame_id: int) -> list[StreamOutput]:
        """Put in a frame, and get what is finished."""
        return self._engine.push(image, frame_id=frame_id)

    def flush(self) -> list[StreamOutput]:
        """Finish the frames in flight."""
        return self._engine.flush()

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    @property
    def frames_in_flight(self) -> int:
        """Frames that were accepted and have not come out."""
        return self._engine.frames_in_flight

    @property
    def not_finite(self) -> int:
        """Pictures that were withheld so far."""
        return self._withheld + self._engine.report().frames_not_finite

    def configure(self, controls: Controls) -> None:
        """Change what is different; frames in flight follow from their next stage on, but not into another size."""
        arguments = stream_arguments(self._pipe, controls)
        if controls.picture_size != self._size:
            new = open_engine(self._pipe, replace(self._settings, controls=controls))
            self._withheld = self.not_finite
            self._engine.close()
            self._engine, self._size = new, controls.picture_size
        else:
            changes = {name: value for name, value in arguments.items() if value != self._arguments[name]}
            if changes:
                self._engine.update(**changes)
        self._arguments = arguments

    def remark(self, controls: Controls) -> str:
        """What the model does not do of the controls, in words."""
        prompts = {"Prompt": controls.prompt, "Second prompt": controls.second_prompt if controls.blend else ""}
        if controls.guidance in ("one-time", "full"):
            prompts["Negative prompt"] = controls.negative_prompt
        return remark(self._pipe, prompts)


class Hub:
    """Runs the streams of all sessions on one thread, in turn, so that nobody waits longer than the others.

    Args:
        open_stream: builds a session's stream; called on the hub's thread.
        controls: the controls that a session begins with.
        limit: most sessions at a time.
    """

    def __init__(
        self, open_stream: Callable[[Controls], Stream], *, controls: Controls | None = None, limit: int = 4
    ) -> None:
        self.open_stream, self.limit = open_stream, limit
        self.controls = controls or Controls()
        self.metrics = Metrics()
        self._sessions: list[Client] = []
        self._leaving: list[Client] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="diffaccel-network", daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """Sessions now."""
        return len(self._sessions)

    @property
    def alive(self) -> bool:
        """Whether the network's thread runs."""
        return self._thread.is_alive()

    def join(self, post: Post) -> Client:
        """A new session; ``post`` gets its messages, on the hub's thread or the caller's, and must not wait.

        Raises:
            HubFull: where the limit is reached; the message says so to a person.
        """
        with self._changed:
            if len(self._sessions) >= self.limit:
                people = "1 person paints" if self.limit == 1 else f"{self.limit} people paint"
                self.metrics.refused.labels("full").inc()
                raise HubFull(
                    f"{people} here already, which is the limit. Wait until someone leaves; "
                    "whoever runs this can allow more with --max-sessions."
                )
            session = Client(self.controls, post, self.metrics)
            self._sessions.append(session)
            self.metrics.sessions.set(len(self._sessions))
        return session

    def leave(self, session: Client) -> None:
        """End a session. Leaving twice is harmless."""
        with self._changed:
            if session in self._sessions:
                self._sessions.remove(session)
                self._leaving.append(session)
                self.metrics.sessions.set(len(self._sessions))
                self._changed.notify_all()

    def offer(self, session: Client, frame: protocol.FrameMessage) -> None:
        """Hand over a frame without waiting; one of this session that still waits is replaced."""
        with self._changed:
            session.offer(frame)
            self._changed.notify_all()

    def change(self, session: Client, values: dict[str, Any]) -> None:
        """Change some controls of a session.

        Raises:
            pydantic.ValidationError: for unknown names and values out of range; nothing has changed then.
        """
        with self._changed:
            session.ask(type(self.controls).model_validate({**session.asked.model_dump(), **values}))
            self._changed.notify_all()

    def close(self) -> None:
        """End all sessions and the thread; waits for the frame that is being painted. Closing twice is harmless."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while (session := self._next()) is not None:
            with self._changed:
                work = session.take()
            session.work(*work, self.open_stream)
        for session in (*self._sessions, *self._leaving):
            session.close()

    def _next(self) -> Client | None:
        """The next session with something to do, which goes to the end of the line; None at the end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._leaving or self._ready(), self._patience())
                if self._closing:
                    return None
                gone, self._leaving = self._leaving, []
                session = self._ready()
                if session is not None:
                    self._sessions.remove(session)
                    self._sessions.append(session)
            for left in gone:
                left.drop()
                left.close()
            if session is not None:
                return session

    def _ready(self) -> Client | None:
        now = monotonic()
        return next((s for s in self._sessions if s.ready(now)), None)

    def _patience(self) -> float | None:
        """Seconds until a session's frames in flight have to be finished."""
        now = monotonic()
        return min((due for s in self._sessions if (due := s.due(now)) is not None), default=None)
