"""From settings to a hub that is ready: the pipeline loaded and warm, its streams in one host, here or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffaccel.realtime.controls import Controls
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.metrics import Metrics
from diffaccel.realtime.offers import ChosenStream, Offers
from diffaccel.realtime.settings import LiveSettings, controls_for, load_pipeline, open_alone, picture_size, sizes
from diffaccel.stream.host import StreamHost
from diffaccel.stream.shared_calls import OnCall

LEAST_ROWS, ROWS_EACH = 32, 4
"""What sessions may have together: two steps of full guidance each, and where they are few, more."""


def most_rows(limit: int) -> int:
    """Rows that a host for so many sessions has room for."""
    return max(LEAST_ROWS, ROWS_EACH * limit)


@dataclass(frozen=True)
class Studio:
    """A pipeline that paints for sessions.

    Attributes:
        pipe: the pipeline, warmed up.
        host: its streams.
        settings: of new streams.
        about: what a page is told.
        controls: that a session begins with.
        offers: what else a session may change to.
    """

    pipe: Any
    host: StreamHost
    settings: LiveSettings
    about: dict[str, Any]
    controls: Controls
    offers: Offers

    @classmethod
    def open(cls, settings: LiveSettings, max_rows: int, on_call: OnCall, places: int = 0) -> Studio:
        """Load and warm up, with room kept for a number of sessions as they begin.

        Raises:
            MediaError: for settings that the model cannot follow.
        """
        pipe = load_pipeline(settings)
        width, height = picture_size(pipe, settings)
        with open_alone(pipe, settings) as engine:
            engine.warmup()
            rows = engine.config.most_rows
        about = {"model": Path(settings.model).name, "width": width, "height": height, "sizes": sizes(width, height)}
        host = StreamHost(pipe, max_rows, on_call=on_call, places=places, place_rows=rows)
        offers = Offers(settings, pipe, host)
        chosen = {"picture_size": f"{width}x{height}", "model": about["model"]}
        begin = controls_for(pipe, settings.controls).model_copy(update=chosen)
        return cls(
            pipe, host, settings, about | {"fit": settings.fit, "fps": settings.fps, **offers.about}, begin, offers
        )

    def stream(self, controls: Controls) -> ChosenStream:
        """A session's stream. Raises ValueError where it cannot be had."""
        return ChosenStream(self.offers, controls)


@contextmanager
def open_hub(
    settings: LiveSettings, *, limit: int, max_rows: int | None = None, processes: int = 1
) -> Iterator[tuple[Hub, dict[str, Any]]]:
    """A hub whose sessions share calls, and what a page is told about it.

    Args:
        settings: of the model, and to begin with.
        limit: most sessions at a time.
        max_rows: rows that the sessions of one process may have together; None for `most_rows`.
        processes: how many processes paint, each with a pipeline, on a device of its own where there are several.

    Raises:
        MediaError: for settings that the model cannot follow.
        ModelError: where something cannot be loaded.
    """
    metrics = Metrics()
    rows = most_rows(limit) if max_rows is None else max_rows
    common: dict[str, Any] = {"limit": limit, "metrics": metrics, "fps": settings.fps}
    if processes == 1:
        studio = Studio.open(settings, rows, metrics.called, limit)
        with studio.host, Hub(studio.stream, controls=studio.controls, **common) as hub:
            yield hub, studio.about
        return
    from diffaccel.realtime.workers import Workers

    with (
        Workers(settings, processes, rows, metrics.called, -(-limit // processes)) as workers,
        Hub(workers.stream, controls=workers.controls, **common) as hub,
    ):
        yield hub, workers.about
