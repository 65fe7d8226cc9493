"""What a stream returns: outputs, and an account of every frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from diffaccel.config.words import counted
from diffaccel.stream.pace import PaceReport


@dataclass(frozen=True, eq=False)
class StreamOutput:
    """One finished frame.

    Attributes:
        image: the picture, in the engine's ``output_type``.
        frame_id: number of the input frame it belongs to, counted from 0.
        skipped: whether the similarity filter skipped the frame; ``image`` is then the last picture again.
        timings: milliseconds of the tick by stage, and ``latency`` from push to output.
    """

    image: Any
    frame_id: int
    skipped: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Counts:
    """Where the frames went; ``frames_in`` is the sum of the others and of the frames in flight."""

    frames_in: int = 0
    frames_out: int = 0
    frames_skipped: int = 0
    frames_dropped: int = 0
    frames_not_finite: int = 0

    def discard(self, frames: int) -> None:
        """Count frames that came and were dropped."""
        self.frames_in += frames
        self.frames_dropped += frames


@dataclass(frozen=True)
class StreamReport:
    """Account of a stream since it was built or reset.

    Attributes:
        frames_in, frames_out, frames_skipped, frames_dropped, frames_not_finite, frames_in_flight: the first is the
            sum of the others.
        latency_frames: ticks between a frame's own and the one that finishes it.
        latency_ms: milliseconds from push to output.
        tick_ms: milliseconds per tick, by stage and in total.
        ticks: ticks timed.
        network_calls, network_rows: calls of the network, and rows in them.
        computed_rows, replayed_rows: rows that computed every block, and rows that reused features.
        sampler: name of the sampler.
        pace: what was done to hold the deadline; None without one.
    """

    frames_in: int
    frames_out: int
    frames_skipped: int
    frames_dropped: int
    frames_not_finite: int
    frames_in_flight: int
    latency_frames: int
    latency_ms: Mapping[str, float]
    tick_ms: Mapping[str, Mapping[str, float]]
    ticks: int
    network_calls: int
    network_rows: int
    computed_rows: int
    replayed_rows: int
    sampler: str
    pace: PaceReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        frames = (
            f"{counted(self.frames_in, 'frame')} in, {self.frames_out} out, {self.frames_skipped} skipped, "
            f"{self.frames_dropped} dropped, "
            f"{self.frames_not_finite} not finite, {self.frames_in_flight} in flight"
        )
        times = ", ".join(f"{name} {value['median']:.1f}" for name, value in self.tick_ms.items())
        latency = f"latency {counted(self.latency_frames, 'frame')}"
        held = "" if self.pace is None else f"; {self.pace}"
        return f"{frames}; {self.sampler}, {latency}; median ms: {times or 'no tick yet'}{held}"
