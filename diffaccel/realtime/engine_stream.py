"""A stream of a `StreamEngine`, as sessions use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from diffaccel.realtime.controls import Controls
from diffaccel.realtime.remarks import unread
from diffaccel.realtime.settings import LiveSettings, open_engine, stream_arguments
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.host import HostFull, StreamHost
from diffaccel.stream.report import StreamOutput


class EngineStream:
    """A `StreamEngine` as sessions use it, on a pipeline that they share; another size is another engine.

    Args:
        pipe: the pipeline.
        settings: to begin with.
        host: of the pipeline, so that streams share calls; None has each make its own.

    Raises:
        ValueError: for settings that the model cannot follow, or that the host has no room for.
    """

    def __init__(self, pipe: Any, settings: LiveSettings, host: StreamHost | None = None) -> None:
        self._pipe, self._settings, self._host = pipe, settings, host
        with no_room_in_words():
            self._engine: StreamEngine = open_engine(pipe, settings, host=host)
        self._size = settings.controls.picture_size
        self._arguments = stream_arguments(pipe, settings.controls)
        self._withheld = 0

    def push(self, image: Any, *, frame_id: int) -> list[StreamOutput]:
        """Put in a frame, and get what is finished."""
        return self._engine.push(image, frame_id=frame_id)

    def flush(self) -> list[StreamOutput]:
        """Finish the frames in flight."""
        return self._engine.flush()

    def making_room(self) -> AbstractContextManager[None]:
        """Within, another stream may take its place."""
        return self._engine.making_room()

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

    @property
    def pace(self) -> str:
        """What is painted more cheaply to hold the rate, in words; empty where nothing is."""
        pace = self._engine.pace
        return pace.setting if pace is not None and pace.rung else ""

    def configure(self, controls: Controls) -> None:
        """Change what is different; frames in flight follow from their next stage on, but not into another size."""
        arguments = stream_arguments(self._pipe, controls)
        if controls.picture_size != self._size:
            with no_room_in_words(), self.making_room():
                new = open_engine(self._pipe, replace(self._settings, controls=controls), host=self._host)
            self._withheld = self.not_finite
            self._engine.close()
            self._engine, self._size = new, controls.picture_size
        else:
            changes = {name: value for name, value in arguments.items() if value != self._arguments[name]}
            with no_room_in_words():
                if changes:
                    self._engine.update(**changes)
        self._arguments = arguments

    def remark(self, controls: Controls) -> str:
        """What the model does not do of the controls, in words."""
        return unread(self._pipe, controls)


@contextmanager
def no_room_in_words() -> Iterator[None]:
    """Say to a person that there is no room."""
    try:
        yield
    except HostFull as error:
        raise ValueError(
            "Others use too much of the network for that: take fewer steps or another guidance, or wait until someone "
            "leaves; whoever runs this can allow more with --max-rows."
        ) from error
