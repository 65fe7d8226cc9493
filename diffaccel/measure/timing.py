"""Interleaved timing: candidates take turns, so that a busy or hot machine slows all alike, and ratios stay fair."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.config.checks import check, whole


@dataclass(frozen=True)
class Timing:
    """Seconds of every round, in order.

    Attributes:
        seconds: one per round.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles in seconds; half of the rounds lie within. 0 for a single round."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low

    def speedup(self, baseline: "Timing") -> float:
        """How many times as fast as `baseline`: the median over rounds of the ratio within each round."""
        pairs = zip(baseline.seconds, self.seconds, strict=True)
        return statistics.median(other / own for other, own in pairs)

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {"median": self.median, "spread": self.spread, "seconds": list(self.seconds)}


def interleaved(
    work: Mapping[str, Callable[[], Any]],
    rounds: int = 5,
    warmup: int = 1,
    around: Mapping[str, Callable[[], AbstractContextManager[Any]]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time pieces of work in turns: in each round every one runs once, in an order that rotates from round to round.

    Args:
        work: what to run, by name. Each call must do the same.
        rounds: how often, >= 1.
        warmup: rounds before that are not counted, >= 0.
        around: for some names, what is entered before the work and left after it, outside of the time measured.
        clock: what tells seconds; with `time.process_time`, other work on a busy machine does not count.

    Raises:
        ValueError: if there is no work, or a number is out of range.
    """
    check(bool(work), "interleaved needs at least one piece of work; got none")
    whole("rounds", rounds, 1)
    whole("warmup", warmup, 0)
    names = list(work)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            with (around or {}).get(name, nullcontext)():
                elapsed = timed(work[name], clock)
            if number >= 0:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def timed(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, until the accelerator has finished, too."""
    synchronize()
    start = clock()
    run()
    synchronize()
    return clock() - start


def synchronize() -> None:
    """Wait for the accelerator, where there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
