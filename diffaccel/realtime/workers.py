"""Several processes that paint, each with a pipeline and a host of its own; a session goes where least is to do.

Each process is spoken to over pipes of this machine: one for the process, on which the pipe of every new session is
sent, and one for each session, on which its calls and their answers go to and fro. A process that dies loses the frames
that it worked on; its sessions go on in the others, with their next frame.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Self

from diffaccel.media.errors import MediaError
from diffaccel.models.placement import Placement, devices
from diffaccel.realtime.controls import Controls
from diffaccel.realtime.opening import Studio
from diffaccel.realtime.settings import LiveSettings
from diffaccel.stream.report import StreamOutput
from diffaccel.stream.shared_calls import OnCall

CLOSES_WITHIN = 5.0
"""Seconds that a process has for its last frame."""
ENDED = "the process that painted this picture has ended; the next one is painted by another"


@dataclass(frozen=True)
class Answer:
    """What a process says after each call of a session.

    Attributes:
        value: what was returned.
        error: what was raised instead.
        frames_in_flight, not_finite, pace: of the session's stream.
        rows: of all streams of the process.
        calls: kind and rows of calls since its last answer.
    """

    value: Any = None
    error: Exception | None = None
    frames_in_flight: int = 0
    not_finite: int = 0
    pace: str = ""
    rows: int = 0
    calls: Sequence[tuple[str, int]] = ()


class Worker:
    """One process, as the server sees it.

    Attributes:
        rows: that its streams have, as it said last.
        sessions: that were sent to it.
        alive: whether it answers.
    """

    def __init__(self, settings: LiveSettings, max_rows: int, threads: int, places: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, settings, max_rows, threads, places)
        self.process = context.Process(target=_paint, args=arguments, name="diffaccel-painter", daemon=True)
        self.process.start()
        theirs.close()
        self.rows = self.sessions = 0
        self.alive = True
        self._lock = threading.Lock()

    def ready(self) -> tuple[dict[str, Any], Controls]:
        """Wait until its pipeline is loaded. Raises what was raised there, and `MediaError` where it died."""
        try:
            told = self._pipe.recv()
        except EOFError as error:
            raise MediaError("a process that should paint ended while it loaded its model") from error
        if isinstance(told, Exception):
            raise told
        about, controls = told
        return about, controls

    def connect(self) -> Connection:
        """A pipe for a new session."""
        ours, theirs = multiprocessing.Pipe()
        with self._lock:
            self._pipe.send(theirs)
        theirs.close()
        return ours

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self.process.join(CLOSES_WITHIN)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Workers:
    """The processes.

    Args:
        settings: of the model, and to begin with.
        count: how many processes.
        max_rows: rows of the streams of one process.
        on_call: told of every call in any of them.
        places: sessions that each is expected to have; 0 keeps no room for them.

    Attributes:
        about: what a page is told.
        controls: that a session begins with.

    Raises:
        MediaError, ModelError: where the model cannot be loaded, or cannot follow the settings.
    """

    def __init__(self, settings: LiveSettings, count: int, max_rows: int, on_call: OnCall, places: int = 0) -> None:
        found = devices(Placement(device=settings.device), count)
        threads = max(1, (os.cpu_count() or 1) // count)
        self.on_call, self._lock = on_call, threading.Lock()
        self._workers = [
            Worker(replace(settings, device=str(found[k % len(found)])), max_rows, threads, places)
            for k in range(count)
        ]
        try:
            told = [worker.ready() for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.about, self.controls = told[0]

    def stream(self, controls: Controls) -> RemoteStream:
        """A session's stream, where least is to do. Raises ValueError where it cannot be had."""
        return RemoteStream(self, controls)

    def place(self) -> Worker:
        """The process with the fewest rows, and of those with the fewest sessions; a session more is noted there.

        Raises:
            RuntimeError: where none is left.
        """
        with self._lock:
            alive = [worker for worker in self._workers if worker.alive]
            if not alive:
                raise RuntimeError("every process that painted has ended: start diffaccel live again")
            least = min(alive, key=lambda worker: (worker.rows, worker.sessions))
            least.sessions += 1
            return least

    def left(self, worker: Worker, *, dead: bool = False) -> None:
        """Note that a session is no longer in a process."""
        with self._lock:
            worker.sessions -= 1
            worker.rows = worker.rows if worker.sessions else 0  # it says no more how many it has
            worker.alive = worker.alive and not dead

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RemoteStream:
    """A session's stream in another process; used on one thread.

    Raises:
        ValueError: for controls that the model cannot follow, or that there is no room for.
    """

    def __init__(self, workers: Workers, controls: Controls) -> None:
        self._workers, self._controls = workers, controls
        self.frames_in_flight = self.not_finite = self._withheld = 0
        self.pace = ""
        self._worker: Worker | None = None
        self._open()

    def _open(self) -> None:
        self._worker = self._workers.place()
        self._withheld = self.not_finite
        try:
            self._pipe = self._worker.connect()
            self._ask("open", self._controls)
        except OSError:
            self._lose()
        except BaseException:
            self.close()
            raise

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self._worker is None:
            self._open()
        assert self._worker is not None
        try:
            self._pipe.send((name, args, kwargs))
            answer: Answer = self._pipe.recv()
        except (EOFError, OSError):
            self._lose()
        self.frames_in_flight, self.not_finite = answer.frames_in_flight, self._withheld + answer.not_finite
        self.pace = answer.pace
        self._worker.rows = answer.rows
        for kind, rows in answer.calls:
            self._workers.on_call(kind, rows)
        if answer.error is not None:
            raise answer.error
        return answer.value

    def _lose(self) -> None:
        """Let go of a process that is gone; the next call goes to another. Raises RuntimeError."""
        assert self._worker is not None
        self._workers.left(self._worker, dead=True)
        self._worker, self.frames_in_flight = None, 0
        self._pipe.close()
        raise RuntimeError(ENDED)

    def push(self, image: Any, *, frame_id: int) -> list[StreamOutput]:
        """Put in a frame, and get what is finished."""
        outputs: list[StreamOutput] = self._ask("push", image, frame_id=frame_id)
        return outputs

    def flush(self) -> list[StreamOutput]:
        """Finish the frames in flight."""
        outputs: list[StreamOutput] = self._ask("flush")
        return outputs

    def configure(self, controls: Controls) -> None:
        """Change what is different."""
        self._ask("configure", controls)
        self._controls = controls

    def remark(self, controls: Controls) -> str:
        """What the model does not do of the controls, in words."""
        words: str = self._ask("remark", controls)
        return words

    def close(self) -> None:
        """Close the stream."""
        if self._worker is not None:
            self._pipe.close()
            self._workers.left(self._worker)
            self._worker = None


def _paint(pipe: Connection, settings: LiveSettings, max_rows: int, threads: int, places: int) -> None:
    """A process: load, and serve every session whose pipe arrives, until the server closes its end."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's business
    torch.set_num_threads(threads)
    calls: deque[tuple[str, int]] = deque()
    try:
        studio = Studio.open(settings, max_rows, lambda kind, rows: calls.append((kind, rows)), places)
    except Exception as error:
        pipe.send(_portable(error))
        return
    pipe.send((studio.about, studio.controls))
    while True:
        try:
            session = pipe.recv()
        except EOFError:
            return
        threading.Thread(target=_serve, args=(session, studio, calls), daemon=True).start()


def _serve(pipe: Connection, studio: Studio, calls: deque[tuple[str, int]]) -> None:
    """One session, until its pipe is closed."""
    stream: Any = None
    try:
        while True:
            name, args, kwargs = pipe.recv()
            value, error = None, None
            try:
                if name == "open":
                    stream = studio.stream(*args)
                else:
                    value = getattr(stream, name)(*args, **kwargs)
            except Exception as caught:
                error = _portable(caught)
            told = _taken(calls)
            account = (stream.frames_in_flight, stream.not_finite, stream.pace) if stream is not None else (0, 0, "")
            flying, withheld, pace = account
            pipe.send(Answer(value, error, flying, withheld, pace, studio.host.report().rows, told))
    except (EOFError, OSError):
        pass
    finally:
        if stream is not None:
            stream.close()


def _taken(calls: deque[tuple[str, int]]) -> list[tuple[str, int]]:
    """What waits to be told, which threads of several sessions take at the same time."""
    told = []
    with suppress(IndexError):
        for _ in range(len(calls)):
            told.append(calls.popleft())
    return told


def _portable(error: Exception) -> Exception:
    """An error that can be sent: itself, or one of its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
