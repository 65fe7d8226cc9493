"""How a network call's timestep lies to the one before it, told without waiting for the device where possible."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

Relation = Literal["same", "on", "back", "elsewhere", "unknown"]
"""The same place, further on, backwards, in another table of timesteps, or not known without reading the device."""


def place_of(timestep: Any) -> tuple[int, int] | None:
    """(storage, offset) of a timestep that is an element or a row of a longer table; None for any other."""
    if not isinstance(timestep, torch.Tensor):
        return None
    apart = math.prod(count for count, stride in zip(timestep.shape, timestep.stride(), strict=True) if stride)
    if timestep.untyped_storage().nbytes() <= timestep.element_size() * apart:
        return None
    return timestep.untyped_storage().data_ptr(), int(timestep.storage_offset())


def value_of(timestep: Any, *, wait: bool) -> float | None:
    """The value of a timestep, the first row's; None where it lies on a device and nobody is to wait, or has no value.

    Where parts of a row have their own, as frames of a video do, the mean of all: it moves where any of them does.
    """
    if isinstance(timestep, torch.Tensor):
        if timestep.device.type == "meta" or timestep.numel() == 0 or (timestep.device.type != "cpu" and not wait):
            return None
        return float(timestep.double().mean() if timestep.dim() > 1 else timestep.flatten()[0])
    return float(timestep) if isinstance(timestep, int | float) else None


def differs(timestep: Any) -> bool:
    """Whether rows of one call are at timesteps of their own, as in parallel sampling; may wait for the device."""
    if not isinstance(timestep, torch.Tensor) or timestep.device.type == "meta" or timestep.dim() != 1:
        return False
    return timestep.stride(0) != 0 and bool((timestep != timestep[:1]).any())


def relation(timestep: Any, last: Any, direction: int, *, wait: bool) -> tuple[Relation, int]:
    """How a timestep lies to the last one, and the sign in which timesteps move from there on.

    Args:
        timestep, last: as they were given to a network.
        direction: sign in which they moved so far, 0 if unknown.
        wait: whether values may be read from a device.
    """
    if timestep is last and timestep is not None and not isinstance(timestep, int | float):
        return "same", direction
    here, there = place_of(timestep), place_of(last)
    if here is not None and there is not None:
        if here[0] != there[0]:
            return "elsewhere", direction
        step = (here[1] > there[1]) - (here[1] < there[1])
        return ("same" if step == 0 else "on" if step > 0 else "back"), direction
    a, b = value_of(timestep, wait=wait), value_of(last, wait=wait)
    if a is None or b is None:
        return "unknown", direction
    moved = (a > b) - (a < b)
    if moved == 0:
        return "same", direction
    return ("back" if direction and moved != direction else "on"), direction or moved


def calls_left(timestep: torch.Tensor) -> int | None:
    """Calls of a run whose table of timesteps begins with this view of it, None if the table's layout is not known.

    The table has one number for each call, or several, as many as there are rows; either dimension comes first.
    """
    length, start = timestep.untyped_storage().nbytes() // timestep.element_size(), int(timestep.storage_offset())
    count = timestep.numel()
    if count > 1 and timestep.is_contiguous():  # a row of the table
        return (length - start) // count if length % count == 0 else None
    steps = [step for n, step in zip(timestep.shape, timestep.stride(), strict=True) if n > 1 and step > 0]
    if steps:  # a column of it
        return steps[0] - start % steps[0] if len(steps) == 1 else None
    base = timestep._base
    return length - start if base is None or base.numel() == max(base.shape, default=1) else None
