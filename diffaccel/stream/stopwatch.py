"""Where the time of a tick goes, measured without making the host wait.

On the host the wall clock is read. On a CUDA device events are recorded in the stream and read once the output, which
the host has to wait for in any case, has arrived.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean, median, quantiles
from typing import Any

import torch

STAGES = ("preprocess", "encode", "control", "denoise", "decode", "post")


class Clock:
    """Milliseconds by stage of the current tick, and of the last ``window`` ticks.

    Args:
        device: where the network runs.
        window: ticks that are remembered.

    Attributes:
        sums: milliseconds of all ticks, by stage.
        ticks: how many there were.
    """

    def __init__(self, device: torch.device, window: int = 1000) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []
        self._history: dict[str, deque[float]] = {name: deque(maxlen=window) for name in (*STAGES, "total", "latency")}
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.ticks = 0

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as part of stage ``name`` of this tick."""
        start = self._now()
        try:
            yield
        finally:
            self._marks.append((name, start, self._now()))

    def finish(self, *, waited: bool) -> dict[str, float]:
        """Close the tick and give its milliseconds by stage.

        ``waited`` says whether the host has waited for the device since the last mark; without it, device times are
        not read and go into the next tick that has.
        """
        if self._cuda and not waited:
            return {}
        timings: dict[str, float] = {}
        for name, start, end in self._marks:
            elapsed = start.elapsed_time(end) if self._cuda else (end - start) * 1000
            timings[name] = timings.get(name, 0.0) + elapsed
        self._marks.clear()
        timings["total"] = sum(timings.values())
        for name, value in timings.items():
            self._history[name].append(value)
            self.sums[name] += value
        self.ticks += 1
        return timings

    def latency(self, milliseconds: float) -> None:
        """Note how long a frame took from push to output."""
        self._history["latency"].append(milliseconds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Median, mean and 95th percentile in milliseconds, by stage, over the remembered ticks."""
        return {name: _summary(list(values)) for name, values in self._history.items() if values}


def _summary(values: list[float]) -> dict[str, float]:
    p95 = quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]
    return {"median": median(values), "mean": fmean(values), "p95": p95}
