"""Energy of a piece of work, as the accelerator's own counter tells it; never an estimate."""

from collections.abc import Callable
from typing import Any

import torch

from diffaccel.measure.timing import synchronize


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
    return (meter() - start) / 1000


def _meter() -> Callable[[], int] | None:
    """Reads the counter of the current device in millijoules (NVML, Volta and later); None where there is none."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda._get_nvml_device_index(None))
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except pynvml.NVMLError:
        return None
    return lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(device))
