"""One person's share of the network: the latest frame, the controls, a stream of their own."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from diffaccel.media.repaint import to_pixels
from diffaccel.models.placement import is_out_of_memory
from diffaccel.realtime import protocol
from diffaccel.realtime.controls import LONGEST_INTERVAL, Controls
from diffaccel.realtime.metrics import Metrics, Served
from diffaccel.stream.report import StreamOutput

logger = logging.getLogger(__name__)

DRAIN_AFTER = 0.25
"""Seconds without a new frame after which the frames in flight are finished."""


class Stream(Protocol):
    """What paints one session's frames; used on the session's thread only."""

    @property
    def frames_in_flight(self) -> int:
        """Frames that were accepted and have not come out."""

    @property
    def pace(self) -> str:
        """What is painted more cheaply to hold a rate, in words; empty where nothing is."""

    @property
    def not_finite(self) -> int:
        """Pictures that were withheld so far because the network returned NaN or infinity."""

    def push(self, image: Any, *, frame_id: int) -> list[StreamOutput]:
        """Put in a frame ``(H, W, 3)`` uint8, and get what is finished."""

    def flush(self) -> list[StreamOutput]:
        """Finish the frames in flight."""

    def configure(self, controls: Controls) -> None:
        """Take other controls. Raises ValueError where they cannot be followed; nothing has changed then."""

    def remark(self, controls: Controls) -> str:
        """What the model does not do of the controls, in words for a person; empty where it does everything."""

    def close(self) -> None:
        """Let go of everything."""


@dataclass(frozen=True)
class Notice:
    """A JSON message; a newer one of the same type replaces one that waits to be sent."""

    type: str
    values: dict[str, Any]


Message = protocol.PictureMessage | protocol.Taken | Notice
Post = Callable[[Message], None]


@dataclass
class Arrived:
    """A frame, when it arrived, and the milliseconds for which the network has worked on it."""

    frame: protocol.FrameMessage
    at: float
    busy_ms: float = 0.0


class Client:
    """What the hub keeps for one client.

    The box holds the latest frame only. `offer` and `ready` are called under the hub's lock; `work` and `close` on the
    session's thread.

    Attributes:
        pace: what is painted more cheaply to hold the rate, in words.
    """

    def __init__(self, controls: Controls, post: Post, metrics: Metrics, fps: float | None = None) -> None:
        self.id = secrets.token_urlsafe(6)
        self.tally, self.post = Served(metrics), post
        self.controls = self._asked = controls
        self._refused: tuple[Controls, str] | None = None
        self._decided = threading.Condition()
        self._box: Arrived | None = None
        self._stream: Stream | None = None
        self.pace = ""
        self._count = self._not_finite = 0
        self._inside: dict[int, Arrived] = {}
        self._last = self._free_at = monotonic()
        self._remarked = ""
        self._ticks: deque[float] = deque([0.0], maxlen=LONGEST_INTERVAL)
        self._period = 0.0 if fps is None else 1 / fps
        self._paint_at = self._last

    def offer(self, frame: protocol.FrameMessage) -> None:
        """Put a frame into the box; one that was there is dropped."""
        self.tally.arrive()
        if self._box is not None:
            self.tally.add("dropped")
            self._tell_taken(self._box)
        self._box = Arrived(frame, monotonic())

    def ask(self, values: Mapping[str, Any]) -> Controls:
        """Ask for a change of some controls, before the next frame; all of them, with the change.

        Raises:
            pydantic.ValidationError: for unknown names and values out of range; nothing has changed then.
        """
        with self._decided:
            self._asked = asked = type(self._asked).model_validate({**self._asked.model_dump(), **values})
        return asked

    def drop(self) -> None:
        """Count what is left as dropped: the client is gone."""
        self.tally.add("dropped", (self._box is not None) + len(self._inside))
        self._box = None
        self._inside.clear()

    @property
    def asked(self) -> Controls:
        """The controls, with every change that was asked for."""
        return self._asked

    def answer(self, controls: Controls, patience: float) -> str | None:
        """Why controls that were asked for are not followed, "" where they are; None where nobody knows in time.

        Controls that others replaced before they were followed count as followed.
        """

        def known() -> bool:
            return self.controls is controls or self._asked is not controls

        with self._decided:
            if not self._decided.wait_for(known, patience):
                return None
            return self._refused[1] if self._refused and self._refused[0] is controls else ""

    def ready(self, now: float) -> bool:
        """Whether there is something to do."""
        waits = self._box is not None and now >= self._paint_at
        return waits or self._asked is not self.controls or self.due(now) == 0.0

    def due(self, now: float) -> float | None:
        """Seconds until the frames in flight have to be finished; None where there are none."""
        return max(0.0, self._last + DRAIN_AFTER - now) if self._inside else None

    def wakes(self, now: float) -> float | None:
        """Seconds until there is something to do without anybody's doing; None where there is not."""
        times = [self.due(now), None if self._box is None else max(0.0, self._paint_at - now)]
        return min((time for time in times if time is not None), default=None)

    def take(self) -> tuple[Controls, Arrived | None]:
        """Empty the box."""
        arrived, self._box = self._box, None
        if arrived is not None:  # a frame that came late may be followed by one that comes a period early
            self._paint_at = max(self._paint_at, monotonic() - self._period) + self._period
        return self._asked, arrived

    def work(self, controls: Controls, arrived: Arrived | None, open_stream: Callable[[Controls], Stream]) -> None:
        """Follow the controls, and paint a frame or finish those in flight."""
        if arrived is not None:
            self._free_at = monotonic() + self._expected()
            self._tell_taken(arrived)
        try:
            self._follow(controls, open_stream)
            self._paint(arrived)
        except protocol.BadMessage as error:
            self.tally.add("rejected")
            self.post(Notice("problem", {"kind": "frame", "message": str(error)}))
        except Exception as error:
            self._fail(error)

    def _tell_taken(self, arrived: Arrived) -> None:
        self.post(protocol.Taken(arrived.frame.id, 1000 * max(0.0, self._free_at - monotonic())))

    def _expected(self) -> float:
        """Seconds until the next frame is taken: ticks that compute and ticks that reuse come round with the cache."""
        return max(self._ticks[-min(self.controls.cache, len(self._ticks))], self._paint_at - monotonic())

    def _follow(self, controls: Controls, open_stream: Callable[[Controls], Stream]) -> None:
        if self._stream is not None and controls is self.controls:
            return
        try:
            if self._stream is None:
                self._stream = open_stream(controls)
            else:
                self._stream.configure(controls)
        except Exception as error:
            with self._decided:
                self._refused = controls, str(error)
                self._asked = _without(controls, self._asked, self.controls)  # or it would be tried for ever
                self._decided.notify_all()
            if not isinstance(error, TypeError | ValueError):
                raise
            self.post(Notice("problem", {"kind": "controls", "message": str(error)}))
        else:
            with self._decided:
                self.controls = controls
                self._decided.notify_all()
            self._remark(self._stream.remark(controls))
        finally:  # with what was asked for since then, or a control would jump back under the hand that moves it
            self.post(self.as_asked())

    def as_asked(self) -> Notice:
        """Controls that were asked for, and the model that paints until another one is loaded."""
        return Notice("controls", {"values": self.asked.model_dump(), "model": self.controls.model})

    def _remark(self, words: str) -> None:
        if words != self._remarked:
            self._remarked = words
            self.post(Notice("remark", {"message": words}))

    def _paint(self, arrived: Arrived | None) -> None:
        stream, begin = self._stream, monotonic()
        if stream is None:
            if arrived is not None:
                self.tally.add("failed")
            return
        if arrived is not None:
            pixels = protocol.decode(arrived.frame.jpeg)
            self._inside[self._count] = arrived
            self._count += 1
            outputs = stream.push(pixels, frame_id=self._count - 1)
            self._last = monotonic()  # a tick may be longer than the wait, and nobody sends a frame while it lasts
            if not any(output.skipped for output in outputs):
                self._ticks.append(monotonic() - begin)
        elif self.due(begin) == 0.0:
            self._last = begin
            outputs = stream.flush()
        else:
            return
        self._deliver(stream, outputs, 1000 * (monotonic() - begin))

    def _deliver(self, stream: Stream, outputs: list[StreamOutput], network_ms: float) -> None:
        """Send what came out, and count what will not come out any more: the oldest, for the others are in flight.

        A skipped frame comes out at once, before older ones in flight.
        """
        self.pace = stream.pace
        for arrived in self._inside.values():
            arrived.busy_ms += network_ms
        for output in outputs:
            self._send(output, self._inside.pop(output.frame_id), network_ms)
        lost = len(self._inside) - stream.frames_in_flight
        for frame_id in list(self._inside)[: max(0, lost)]:
            del self._inside[frame_id]
        if lost > 0:
            self._account(stream, lost)

    def _send(self, output: StreamOutput, arrived: Arrived, network_ms: float) -> None:
        jpeg = protocol.encode(to_pixels(output.image))
        network_ms = output.timings.get("network alone", network_ms)  # without the time that it waited until it was due
        server = monotonic() - arrived.at
        self.tally.add("skipped" if output.skipped else "shown")
        self.tally.metrics.network.observe(network_ms / 1000)
        self.tally.metrics.latency.observe(server)
        self.post(protocol.PictureMessage(arrived.frame.id, jpeg, output.skipped, network_ms, arrived.busy_ms))

    def _account(self, stream: Stream, lost: int) -> None:
        withheld, self._not_finite = stream.not_finite - self._not_finite, stream.not_finite
        self.tally.add("not_finite", withheld)
        self.tally.add("dropped", lost - withheld)
        if withheld:
            self.post(Notice("problem", {"kind": "not_finite", "message": NOT_FINITE}))

    def _fail(self, error: Exception) -> None:
        """Count the frames that the error took with it, and tell the client."""
        logger.warning("the network failed on a frame of session %s", self.id, exc_info=error)
        left = self._stream.frames_in_flight if self._stream is not None else 0
        self.tally.add("failed", len(self._inside) - left)
        while len(self._inside) > left:
            self._inside.popitem()
        memory = is_out_of_memory(error)
        kind, text = ("memory", OUT_OF_MEMORY) if memory else ("network", f"The network failed on a frame: {error}")
        self.post(Notice("problem", {"kind": kind, "message": text}))

    def close(self) -> None:
        """Close the stream; one that cannot be closed must not end the thread that serves the others."""
        try:
            if self._stream is not None:
                self._stream.close()
        except Exception:
            logger.exception("the stream of session %s could not be closed", self.id)


def _without(refused: Controls, asked: Controls, kept: Controls) -> Controls:
    """What was asked for since, without what was refused: that is again as in the controls that are kept."""
    if asked is refused:
        return kept
    names = [name for name in type(asked).model_fields if getattr(asked, name) == getattr(refused, name)]
    return asked.model_copy(update={name: getattr(kept, name) for name in names})


OUT_OF_MEMORY = "The machine ran out of memory on a frame. Use fewer steps, or start it with a smaller --size."
NOT_FINITE = "The network returned numbers that are no picture, so it was left out. Try a lower guidance scale."
