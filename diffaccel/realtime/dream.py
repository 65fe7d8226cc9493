"""A clip without end in the place of painted frames: each frame that comes in is answered by its next picture."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from PIL import Image

from diffaccel import models
from diffaccel.models.lora import merge_loras
from diffaccel.realtime.controls import Controls
from diffaccel.realtime.engine_stream import no_room_in_words
from diffaccel.realtime.remarks import unread
from diffaccel.realtime.settings import (
    COMPANIONS,
    DREAMS,
    LiveSettings,
    blended,
    picture_size,
    reading,
)
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.sampling.samplers import LCM
from diffaccel.stream.host import StreamHost
from diffaccel.stream.report import StreamOutput
from diffaccel.video.engine import VideoEngine

FPS = 8
"""Pictures a second that the bundled clips are made for; slower machines show them evenly at the rate they reach."""
CHUNK = WINDOW = 4
FROM_INPUT = "input"
"""The start that is the frame at hand."""


class DreamModel:
    """The causal video model beside a picture model that is served: loaded on first use, and shared from then on.

    Args:
        settings: of the picture model.
        pipe: its pipeline, whose autoencoder it shares.
        host: whose turns and room it shares.
    """

    def __init__(self, settings: LiveSettings, pipe: Any, host: StreamHost) -> None:
        self._settings, self._still, self._beside = settings, pipe, host
        self._lock = threading.Lock()
        self._host: StreamHost | None = None

    def host(self) -> StreamHost:
        """Its pipeline and turns. Raises `ModelError` where it cannot be loaded."""
        with self._lock:
            if self._host is None:
                settings, still = self._settings, self._still
                kept = {"dtype": still.unet.dtype, "device": still.unet.device, "vae": still.vae}
                pipe = models.load(DREAMS[settings.model], **kept)
                merge_loras(pipe, COMPANIONS[settings.model][0])
                self._host = StreamHost(reading(pipe, settings), beside=self._beside)
            return self._host

    def open(self, controls: Controls) -> VideoEngine:
        """An engine for clips. Raises ValueError where it cannot be had."""
        host = self.host()
        width, height = picture_size(self._still, replace(self._settings, controls=controls))
        with no_room_in_words():
            return VideoEngine(
                host.pipe,
                **told(controls),
                chunk=CHUNK,
                context=CausalContext(window=WINDOW, refresh="prompt"),
                sampler=LCM(),
                width=width,
                height=height,
                seed=controls.seed,
                fit=self._settings.fit,
                host=host,
            )


def told(controls: Controls) -> dict[str, Any]:
    """What of the controls a clip follows while it plays."""
    return {"prompt": blended(controls), "num_steps": controls.steps}


def begun(controls: Controls) -> tuple[Any, ...]:
    """What of the controls begins another clip where it changes."""
    return controls.dream, controls.seed, controls.picture_size


class DreamStream:
    """A session's clip; it begins with the first frame, and makes at most two chunks more than were asked for.

    Args:
        open_engine: as of `DreamModel`.
        controls: to begin with.

    Raises:
        ValueError: where the engine cannot be had.
    """

    frames_in_flight = not_finite = 0
    pace = ""

    def __init__(self, open_engine: Callable[[Controls], VideoEngine], controls: Controls) -> None:
        self._open, self._controls = open_engine, controls
        self._engine = open_engine(controls)
        self._clip: _Clip | None = None
        self._due = 0.0

    def push(self, image: Any, *, frame_id: int) -> list[StreamOutput]:
        """The clip's next picture, when it is due. Raises what the network raised; the clip begins anew then."""
        if self._clip is None:
            given = Image.fromarray(image) if self._controls.dream == FROM_INPUT else None
            self._clip = _Clip(self._engine, self._controls, given)
        try:
            picture, seconds = self._clip.next()
        except Exception:
            self._end()
            raise
        time.sleep(max(0.0, self._due - time.monotonic()))
        period = max(seconds, 1 / FPS)
        self._due = max(self._due, time.monotonic() - period / 4) + period  # who comes late catches up by a bit
        return [StreamOutput(picture, frame_id, timings={"network alone": 1000 * seconds})]

    def remark(self, controls: Controls) -> str:
        """What of the prompts is not read, in words."""
        return unread(self._engine.pipe, controls)

    def flush(self) -> list[StreamOutput]:
        """Nothing is in flight."""
        return []

    def configure(self, controls: Controls) -> None:
        """Other words from the next chunk on; another seed, size or start is another clip."""
        if begun(controls) != begun(self._controls):
            with self.making_room():
                engine = self._open(controls)
            self.close()
            self._engine = engine
        elif self._clip is not None:
            self._clip.controls = controls
        self._controls = controls

    def making_room(self) -> AbstractContextManager[None]:
        """Within, another stream may take its place."""
        return self._engine.making_room()

    def _end(self) -> None:
        if self._clip is not None:
            self._clip.close()
            self._clip = None

    def close(self) -> None:
        """End the clip; waits for the chunk that is being made."""
        self._end()
        self._engine.close()


class _Clip:
    """A clip, made on a thread of its own, a chunk ahead of who watches.

    Attributes:
        controls: that the next chunk follows.
    """

    def __init__(self, engine: VideoEngine, controls: Controls, given: Any) -> None:
        self.controls = controls
        self._engine, self._given = engine, given
        self._changed = threading.Condition()
        self._pictures: deque[tuple[Any, float]] = deque()
        self._error: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._make, name="diffaccel-dream", daemon=True)
        self._thread.start()

    def next(self) -> tuple[Any, float]:
        """Wait for the next picture, and the seconds that it took to make. Raises what making it raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._pictures or self._error)
            if self._error is not None and not self._pictures:
                raise self._error
            taken = self._pictures.popleft()
            self._changed.notify_all()
            return taken

    def _make(self) -> None:
        try:
            self._engine.reset(self._given)
            while self._is_wanted():
                begin = time.monotonic()
                self._engine.update(**told(self.controls))
                frames = self._engine.next().frames
                seconds = (time.monotonic() - begin) / len(frames)
                with self._changed:
                    self._pictures.extend((frame, seconds) for frame in frames)
                    self._changed.notify_all()
        except Exception as error:  # handed to who watches
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _is_wanted(self) -> bool:
        """Wait until the last chunk begins to be shown; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or len(self._pictures) < CHUNK)
            return not self._closing

    def close(self) -> None:
        """End it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
