"""Stored features that rest in the machine's memory: each is copied there once, and one slot at a time comes back.

On CUDA the copies go to pinned memory and do not wait; whoever reads them on the host waits first (`settle`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map


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
    return next((leaf.device for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)), torch.device("cpu"))


def awake(tree: Any, device: torch.device) -> Any:
    """A tree of resting tensors on a device."""
    return tree_map(lambda leaf: wake(leaf, device) if isinstance(leaf, torch.Tensor) else leaf, tree)


def renewed(history: Any, update: Callable[[Any], Any], device: torch.device) -> Any:
    """`update(history)` at rest, of a history at rest; what it keeps of the history is not copied again."""
    resting: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def up(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        woken = wake(leaf, device)
        resting[id(woken)] = leaf, woken  # kept, so that no other tensor takes its place
        return woken

    def down(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return resting[id(leaf)][0] if id(leaf) in resting else rest(leaf)

    return tree_map(down, update(tree_map(up, history)))
