"""A profiler's trace of one run, with the caching decisions by name; opens in Perfetto or chrome://tracing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def write_trace(run: Callable[[], Any], path: str | Path) -> None:
    """Run once under torch.profiler and write its trace as JSON.

    Every call of an accelerated network is inside a range named "diffaccel: compute" or "diffaccel: replay ...".
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        run()
    profiler.export_chrome_trace(str(path))
