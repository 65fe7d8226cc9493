"""The machine and the versions that figures were measured with."""

import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from diffaccel.config.words import counted

PACKAGES = ("diffaccel", "diffusers", "torch", "transformers", "DeepCache", "cache-dit", "tomesd", "tgate")


@dataclass(frozen=True)
class MachineInfo:
    """Where something was measured.

    Attributes:
        processor: name of the CPU, with the cores that this process may use and torch's threads.
        accelerator: name of the accelerator, or None.
        system: operating system and Python.
        packages: version of each installed package that figures depend on.
    """

    processor: str
    accelerator: str | None
    system: str
    packages: dict[str, str]


def machine() -> MachineInfo:
    """This machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return MachineInfo(
        processor=f"{_processor()}, {counted(cores or 1, 'core')}, {counted(torch.get_num_threads(), 'thread')}",
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else _other_accelerator(),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        packages=packages,
    )


def _processor() -> str:
    """The CPU's name as the system tells it."""
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _other_accelerator() -> str | None:
    """The type of an accelerator that is not CUDA's."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return None if device is None else device.type
