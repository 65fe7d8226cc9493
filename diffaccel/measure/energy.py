"""Energy of a piece of work, as the accelerator's own counter tells it; never an estimate."""

from collections.abc import Callable
from typing import Any

import torch

from diffaccel.measure.timing import synchronize
from diffaccel.nvml import millijoules


def joules(run: Callable[[], Any]) -> float | None:
    """Energy in joules that the current CUDA device used during one call of `run`, work of other programs included.

    None, without running anything, where NVML is not installed or the device has no energy counter.
    """
    meter = _meter()
    if meter is None:
        return None
    synchronize()
    start = meter()
    run()
    synchronize()
    end = meter()
    return None if start is None or end is None else (end - start) / 1000


def _meter() -> Callable[[], int | None] | None:
    """Reads the counter of the current device in millijoules; None where there is none."""
    if not torch.cuda.is_available():
        return None
    current = [torch.device("cuda", torch.cuda.current_device())]
    return None if millijoules(current) is None else lambda: millijoules(current)
