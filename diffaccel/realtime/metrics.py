"""Counts and times of a live server: for people (`Served`, one per session) and for Prometheus (`Metrics`)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Outcome = Literal["shown", "skipped", "dropped", "not_finite", "failed", "rejected"]
_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class Metrics:
    """What `/metrics` tells, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sessions = Gauge("diffaccel_sessions", "People connected", registry=self.registry)
        self.frames = Counter(
            "diffaccel_frames", "Frames by what became of them", ["outcome"], registry=self.registry
        )  # fmt: skip
        self.received = Counter("diffaccel_frames_received", "Frames that arrived", registry=self.registry)
        self.refused = Counter("diffaccel_refused", "Connections refused", ["reason"], registry=self.registry)
        self.rows = Histogram(
            "diffaccel_rows_per_call", "Rows of a call that sessions share", ["kind"], buckets=_ROWS,
            registry=self.registry,
        )  # fmt: skip
        self.network = Histogram(
            "diffaccel_network_seconds", "Time of a frame in the network", buckets=_BUCKETS, registry=self.registry
        )
        self.latency = Histogram(
            "diffaccel_latency_seconds", "From a frame's arrival to its picture", buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip

    def called(self, kind: str, rows: int) -> None:
        """Count a call of the network or the autoencoder."""
        self.rows.labels(kind).observe(rows)


@dataclass
class Served:
    """What became of one session's frames; used under the hub's lock.

    Attributes:
        received: frames that arrived.
        outcomes: how many ended how; what is missing to ``received`` is in flight.
    """

    metrics: Metrics
    received: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(get_args(Outcome), 0))
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=120))

    def arrive(self) -> None:
        """A frame arrived."""
        self.received += 1
        self.metrics.received.inc()

    def add(self, outcome: Outcome, count: int = 1) -> None:
        """Frames ended."""
        if count > 0:
            self.outcomes[outcome] += count
            self.metrics.frames.labels(outcome).inc(count)
        if outcome in ("shown", "skipped"):
            self._times.append(monotonic())

    def rate(self, seconds: float = 2.0) -> float:
        """Pictures per second, lately."""
        since = monotonic() - seconds
        return sum(time >= since for time in self._times) / seconds

    def to_dict(self) -> dict[str, float]:
        """For a client."""
        return {"fps": round(self.rate(), 1), "received": self.received} | {**self.outcomes}
