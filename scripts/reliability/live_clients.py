"""Clients and sick networks for the reliability checks of the live server, and what is measured about them."""

import gc
import threading
import time
from typing import Any

import numpy as np
import psutil
from realtime.live_client import Client, jpeg

from diffaccel.realtime import protocol
from diffaccel.realtime.engine_stream import EngineStream
from diffaccel.realtime.server import LiveServer
from diffaccel.realtime.settings import Controls, LiveSettings


class Camera:
    """A client that sends ``fps`` frames a second and shows every picture at once, on a thread of its own.

    Attributes:
        ages: seconds from sending a frame to having its picture.
        problems: what the server complained about.
    """

    def __init__(self, server: LiveServer, fps: float, *, still: bool = False) -> None:
        self.ages: list[float] = []
        self.problems: list[str] = []
        self.ids: list[int] = []
        self.sent: dict[int, float] = {}
        self.error: BaseException | None = None
        self._server, self._fps, self._still = server, fps, still
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with Client(self._server) as client:
                client.wait("hello")
                due = time.monotonic()
                while not self._stop.is_set():
                    due = max(due + 1 / self._fps, time.monotonic() - 1)
                    pixels = jpeg((128, 80, 40) if self._still else (len(self.sent) * 37 % 256, 80, 40))
                    self.sent[client.frame(pixels)] = time.monotonic()
                    self._read(client, due)
        except BaseException as error:
            self.error = error

    def _read(self, client: Client, until_time: float) -> None:
        while (left := until_time - time.monotonic()) > 0:
            try:
                message = client.read(left)
            except TimeoutError:
                return
            if isinstance(message, protocol.PictureMessage):
                client.shown(message.id)
                self.ids.append(message.id)
                self.ages.append(time.monotonic() - self.sent[message.id])
            elif isinstance(message, dict) and message["type"] == "problem":
                self.problems.append(message["kind"])

    def stop(self) -> "Camera":
        """Hang up. Raises what went wrong."""
        self._stop.set()
        self._thread.join()
        assert self.error is None, repr(self.error)
        assert len(self.ids) == len(set(self.ids)), "a picture came twice"
        return self


def milliseconds(ages: list[float], percentile: float) -> float:
    """A percentile of seconds, in milliseconds."""
    return 1000 * float(np.percentile(ages, percentile))


def megabytes() -> float:
    """Memory of this process that is in use."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


class Sick(EngineStream):
    """A real stream on a network that returns NaN, or raises, on every n-th call."""

    def __init__(self, pipe: Any, settings: LiveSettings, every: int, error: Exception | None = None) -> None:
        super().__init__(pipe, settings)
        self._handle = pipe.unet.register_forward_hook(self._spoil)
        self._every, self._error, self._calls = every, error, 0
        self._end, self.close = self.close, self._close  # type: ignore[method-assign]

    def _spoil(self, _module: Any, _inputs: Any, output: Any) -> Any:
        self._calls += 1
        if self._calls % self._every:
            return output
        if self._error is not None:
            raise self._error
        return (output[0] * float("nan"), *output[1:])

    def _close(self) -> None:
        self._handle.remove()
        self._end()


PLAIN = {"steps": 1, "cache": 1, "similarity": False, "guidance": "none"}


def settings_for(model: str, **controls: Any) -> LiveSettings:
    """A small stream of the model."""
    return LiveSettings(model=model, controls=Controls(**PLAIN | controls))
