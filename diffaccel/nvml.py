"""NVIDIA's energy counters (NVML, Volta and later)."""

from collections.abc import Sequence
from typing import Any

import torch


def millijoules(devices: Sequence[torch.device]) -> int | None:
    """Sum of the devices' counters; None without NVML, for other devices than CUDA's, and where one does not tell.

    A counter is its device's: work of other programs is in it, too.
    """
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
