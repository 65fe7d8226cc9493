"""Streams that are compared: stages and guidances, an engine with defaults, and one tick of a full pipeline."""

from collections.abc import Callable
from typing import Any

from benchmarks.movies import SIZE

from diffaccel import FullGuidance, NoGuidance, OneTimeNegative, SelfNegative, StreamEngine

GUIDANCES = {
    "full": FullGuidance(1.4),
    "self": SelfNegative(1.4, 0.5),
    "one-time": OneTimeNegative(1.4, 0.5),
    "none": NoGuidance(),
}
STAGES = {1: (30,), 2: (25, 40), 4: (10, 20, 30, 40)}


def engine(pipe: Any, size: int = SIZE, **settings: Any) -> StreamEngine:
    """An engine on ``pipe``, with four stages."""
    defaults = {"prompt": "a red heart", "negative_prompt": "blue", "height": size, "width": size, "output_type": "pt"}
    return StreamEngine(pipe, **defaults | {"timestep_indices": STAGES[4]} | settings)


def filled(stream: StreamEngine, frames: list[Any]) -> Callable[[], Any]:
    """One tick on a full pipeline, with the next of ``frames``, again and again."""
    position = iter(range(10**9))

    def push() -> Any:
        for _ in range(stream.config.frame_buffer):
            outputs = stream.push(frames[next(position) % len(frames)])
        return outputs

    for _ in range(stream.latency + 1):
        push()
    return push
