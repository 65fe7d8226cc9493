"""A stream between threads: producers put frames, consumers get pictures, one thread in the middle runs the network.

Both sides are bounded, and the latest frame wins: what nobody had time for is dropped and counted, never queued.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch

from diffaccel.stream.control import Given
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.images import Picture
from diffaccel.stream.report import StreamOutput

Pushed = tuple[int, Picture | None, torch.Tensor | None, dict[str, Any]]


class StreamClosed(RuntimeError):
    """The worker was closed, and there is nothing left to get."""


class StreamWorker:
    """Runs an engine on a thread of its own.

    Any number of threads may call `put` and `get`. An exception in the engine reaches the consumer at the place of the
    frame that caused it, and the stream goes on with the next frame.

    Args:
        engine: the engine; its `update` may be called from any thread. It stays open when the worker is closed.
        input_size: frames that may wait; one more drops the oldest.
        output_size: pictures that may wait; one more drops the oldest.
        drain_after: seconds without a new frame after which frames in flight are finished; None leaves them in flight.

    Raises:
        ValueError: for a size below 1 or a negative time.
    """

    def __init__(
        self, engine: StreamEngine, *, input_size: int = 1, output_size: int = 8, drain_after: float | None = 0.25
    ) -> None:
        if input_size < 1 or output_size < 1:
            raise ValueError(f"queues hold at least one item, not input_size={input_size}, output_size={output_size}")
        if drain_after is not None and not drain_after >= 0:
            raise ValueError(f"drain_after must not be negative, not {drain_after}")
        self.engine, self.drain_after = engine, drain_after
        self.outputs_dropped = self._dropped = 0
        self._inputs: deque[Pushed] = deque()
        self._outputs: deque[StreamOutput | Exception] = deque()
        self._sizes = input_size, output_size
        self._changed = threading.Condition()
        self._next_id = engine.next_frame_id
        self._closing = self._flushing = self._ended = False
        self._thread = threading.Thread(target=self._run, name="diffaccel-stream", daemon=True)
        self._thread.start()

    def put(
        self,
        image: Picture | None = None,
        latents: torch.Tensor | None = None,
        *,
        control: Given | None = None,
        mask: Picture | None = None,
    ) -> int:
        """Hand over one frame without waiting, as `StreamEngine.push` takes it, and get its number.

        The frame is read once the engine takes it: hand over what nobody writes into.

        Raises:
            StreamClosed: after `close`.
        """
        with self._changed:
            if self._closing:
                raise StreamClosed("this StreamWorker is closed: build a new one")
            frame_id, self._next_id = self._next_id, self._next_id + 1
            self._inputs.append((frame_id, image, latents, {"control": control, "mask": mask}))
            if len(self._inputs) > self._sizes[0]:
                self._inputs.popleft()
                self._dropped += 1
            self._changed.notify_all()
        return frame_id

    def get(self, timeout: float | None = None) -> StreamOutput:
        """Wait for the next picture.

        Raises:
            TimeoutError: after ``timeout`` seconds.
            StreamClosed: when the worker was closed and nothing is left.
            Exception: whatever the engine raised for a frame.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._outputs or self._ended, timeout):
                raise TimeoutError(f"no picture within {timeout} seconds")
            if not self._outputs:
                raise StreamClosed("this StreamWorker is closed, and every picture was taken")
            item = self._outputs.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def __iter__(self) -> Iterator[StreamOutput]:
        """Pictures until the worker is closed."""
        while True:
            try:
                output = self.get()
            except StreamClosed:
                return
            yield output

    def close(self, *, flush: bool = False) -> None:
        """End both sides; waits for the tick that is running. Closing twice is harmless.

        Args:
            flush: finish waiting frames and frames in flight first; their pictures can still be taken. Otherwise they
                are dropped.
        """
        with self._changed:
            if not self._closing:
                self._closing, self._flushing = True, flush
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while (waiting := self._next_input()) is not None:
                self._step(waiting)
            if self._flushing:
                self._deliver_from(self.engine.flush)
        finally:
            self._end()

    def _next_input(self) -> Pushed | None:
        """The oldest waiting frame, or None at the end; finishes frames in flight while nothing comes."""
        while True:
            with self._changed:
                idle = not self._changed.wait_for(lambda: self._inputs or self._closing, self.drain_after)
                if self._inputs and (self._flushing or not self._closing):
                    return self._inputs.popleft()
                if self._closing:
                    return None
            if idle and self.engine.frames_in_flight:
                self._deliver_from(self.engine.flush)

    def _step(self, waiting: Pushed) -> None:
        frame_id, image, latents, given = waiting
        self._account()
        self._deliver_from(lambda: self.engine.push(image, latents, frame_id=frame_id, **given))

    def _deliver_from(self, work: Callable[[], list[StreamOutput]]) -> None:
        items: list[StreamOutput | Exception]
        try:
            items = list(work())
        except Exception as error:  # handed to the consumer
            items = [error]
        with self._changed:
            self._outputs.extend(items)
            while len(self._outputs) > self._sizes[1]:
                self._outputs.popleft()
                self.outputs_dropped += 1
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._dropped += len(self._inputs)
            self._inputs.clear()
            self._ended = True
            self._changed.notify_all()
        self._account()

    def _account(self) -> None:
        """Tell the engine what was dropped, on this thread: `put` must not wait for a tick to end."""
        with self._changed:
            dropped, self._dropped = self._dropped, 0
        self.engine.discard(dropped)
