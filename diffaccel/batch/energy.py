"""Energy that the accelerators of a run used, from their own counters; where they have none, nothing is said."""

from collections.abc import Sequence
from typing import Any, Self

import torch


class EnergyMeter:
    """Reads NVIDIA's energy counters (NVML, Volta and later) at both ends of a `with` block.

    A counter is its device's: work of other programs in the meantime is in it too.

    Args:
        devices: those to read; others than CUDA devices have no counter.

    Attributes:
        joules: energy that all devices used together; None where one of them does not tell.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.joules: float | None = None
        self._devices = devices
        self._start: float | None = None

    def __enter__(self) -> Self:
        self._start = _joules(self._devices)
        return self

    def __exit__(self, *exception: object) -> None:
        end = None if self._start is None else _joules(self._devices)
        self.joules = None if self._start is None or end is None else end - self._start


def _joules(devices: Sequence[torch.device]) -> float | None:
    """The counters' sum, or None where there is none."""
    if not devices or any(device.type != "cuda" for device in devices) or torch.version.cuda is None:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return float(sum(_millijoules(pynvml, device) for device in devices)) / 1000
    except pynvml.NVMLError:
        return None


def _millijoules(pynvml: Any, device: torch.device) -> int:
    index = torch.cuda._get_nvml_device_index(device)  # minds CUDA_VISIBLE_DEVICES, and needs no CUDA context
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(index)))
