"""Energy that the accelerators of a run used, from their own counters; where they have none, nothing is said."""

from collections.abc import Sequence
from typing import Self

import torch

from diffaccel.nvml import millijoules


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
