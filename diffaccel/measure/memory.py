"""Peak memory of a piece of work, and the part of it that stored features take."""

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffaccel.attach.handle import Handle

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class MemoryUse:
    """Bytes of stored features, at their most."""

    peak: int = 0


def peak_memory(run: Callable[[], Any]) -> int | None:
    """Bytes by which memory grew, at the most, during one call of `run`.

    On a CUDA device those that torch allocated there; otherwise the resident memory of this process, as Linux counts
    it. None, without running anything, where neither is to be had.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    start = _resident("VmRSS") if _reset_high_water() else None
    if start is None:
        return None
    run()
    peak = _resident("VmHWM")
    return None if peak is None else max(0, peak - start)


@contextmanager
def watch_cache(handle: Handle, model: torch.nn.Module) -> Iterator[MemoryUse]:
    """Within, the largest size of the features that `handle` stores is noted after each call of a denoiser.

    Args:
        handle: from `accelerate`.
        model: the denoiser that it accelerates.
    """
    memory = MemoryUse()

    def note(*_: Any) -> None:
        memory.peak = max(memory.peak, handle.report().cache_bytes)

    hook = model.register_forward_hook(note)
    try:
        yield memory
    finally:
        hook.remove()


def _reset_high_water() -> bool:
    """Set this process's mark of peak memory to its current memory; whether that worked, as it does on Linux alone."""
    if not _CLEAR.exists():
        return False
    with suppress(OSError):
        _release()
        _CLEAR.write_text("5")
        return True
    return False


def _release() -> None:
    """Hand memory that the allocator keeps for later back to the system, where its library is the GNU one."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> int | None:
    """A figure of this process's memory in bytes."""
    with suppress(OSError):
        found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None
