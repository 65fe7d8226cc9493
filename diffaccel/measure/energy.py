"""Energy of a piece of work, as the accelerator's own counter tells it; never an estimate."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from diffaccel.measure.timing import synchronize


def joules(run: Callable[[], Any]) -> float | None:
    """Energy in joules that the current CUDA device used during one call of `run`, work of other programs included.

    None, without running anything, where NVML is not installed or the device has no energy counter.
    """
    devices = [torch.device("cuda", torch.cuda.current_device())] if torch.cuda.is_available() else []
    if millijoules(devices) is None:
        return None
    synchronize()
    with EnergyMeter(devices) as meter:
        run()
        synchronize()
    return meter.joules


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
        self._start: int | None = None

    def __enter__(self) -> Self:
        self._start = millijoules(self._devices)
        return self

    def __exit__(self, *exception: object) -> None:
        end = None if self._start is None else millijoules(self._devices)
        self.joules = None if self._start is None or end is None else (end - self._start) / 1000


def millijoules(devices: Sequence[torch.device]) -> int | None:
    """Sum of the devices' counters; None without NVML, for other devices than CUDA's, and where one does not tell."""
    if not devices or any(device.type != "cuda" for device in devices) or torch.version.cuda is None:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return sum(_of(pynvml, device) for device in devices)
    except pynvml.NVMLError:
        return None


def _of(pynvml: Any, device: torch.device) -> int:
    index = torch.cuda._get_nvml_device_index(device)  # minds CUDA_VISIBLE_DEVICES, and needs no CUDA context
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(index)))
