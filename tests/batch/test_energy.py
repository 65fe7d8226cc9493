"""Energy is read from the devices' counters, or not at all."""

import sys
from types import SimpleNamespace

import pytest
import torch

from diffaccel.measure.energy import EnergyMeter

CUDA = [torch.device("cuda", index) for index in (0, 1)]


class NVMLError(Exception):
    """What NVML raises where a device has no counter."""


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Two devices' counters in millijoules."""
    values = {0: 1_000, 1: 5_000}

    def read(handle: int) -> int:
        if handle not in values:
            raise NVMLError
        return values[handle]

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "_get_nvml_device_index", lambda device: device.index)
    return values


def test_joules_are_the_counters_difference(counters: dict[int, int]) -> None:
    with EnergyMeter(CUDA) as meter:
        counters[0] += 2_000
        counters[1] += 500
    assert meter.joules == 2.5


def test_a_device_that_does_not_tell_leaves_the_sum_open(counters: dict[int, int]) -> None:
    del counters[1]
    with EnergyMeter(CUDA) as meter:
        pass
    assert meter.joules is None


@pytest.mark.parametrize("devices", [[], [torch.device("cpu")]])
def test_nothing_is_said_of_other_devices(counters: dict[int, int], devices: list[torch.device]) -> None:
    with EnergyMeter(devices) as meter:
        pass
    assert meter.joules is None


def test_without_the_library_nothing_is_said(counters: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with EnergyMeter(CUDA) as meter:
        pass
    assert meter.joules is None
