"""Stored features that rest in the machine's memory: each is copied there once, and one slot at a time comes back.

On CUDA the copies go to pinned memory and do not wait; whoever reads them on the host waits first (`settle`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from diffaccel.runtime.trees import map_tensors, tensors_in


def rest(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the machine's memory; one that lies there, or has no values, is itself."""
    if tensor.device.type in ("cpu", "meta"):
        return tensor
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def wake(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """It again where it is computed with; from pinned memory without waiting."""
    return tensor.to(device, non_blocking=True)


def settle(devices: Iterable[torch.device | None]) -> None:
    """Wait until all copies from these devices have arrived, so that the host may read them."""
    for device in set(devices):
        if device is not None and device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()


def device_of(tree: Any) -> torch.device:
    """Where the first tensor of a tree lies; the machine's own memory for one of none."""
    return next((tensor.device for tensor in tensors_in(tree)), torch.device("cpu"))


def awake(tree: Any, device: torch.device) -> Any:
    """A tree of resting tensors on a device."""
    return map_tensors(lambda tensor: wake(tensor, device), tree)


def renewed(history: Any, update: Callable[[Any], Any], device: torch.device) -> Any:
    """`update(history)` at rest, of a history at rest; what it keeps of the history is not copied again."""
    resting: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def up(tensor: torch.Tensor) -> torch.Tensor:
        woken = wake(tensor, device)
        resting[id(woken)] = tensor, woken  # kept, so that no other tensor takes its place
        return woken

    def down(tensor: torch.Tensor) -> torch.Tensor:
        return resting[id(tensor)][0] if id(tensor) in resting else rest(tensor)

    return map_tensors(down, update(map_tensors(up, history)))
