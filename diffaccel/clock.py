"""Where a run starts, and which call of a sampling step this is, told without waiting for the device.

Samplers do not announce runs, and values of timesteps live on the device. But every run of a pipeline has its own table
of timesteps, `scheduler.timesteps`, and the timestep of a call is usually a view into that table. The identity of the
table tells runs apart, even after one that raised; the offset of the view tells sampling steps apart, so that two calls
at one offset are the conditional and the unconditional one. Python numbers tell a new run by turning direction.
"""

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch

from diffaccel._diffusers import num_timesteps


@dataclass
class _Run:
    """What the clock remembers of the current run."""

    table: torch.Tensor | None
    last: Any
    listed: bool = False
    direction: int = 0
    position: tuple[int, int] | None = None
    ordinal: int = 0
    seen: list[Any] = field(default_factory=list)


class RunClock:
    """Counts nothing: tells for each network call whether it starts a run, and its ordinal within its sampling step.

    Args:
        pipe: the pipeline whose scheduler is watched, or None for a bare network. Only weakly referenced.
    """

    def __init__(self, pipe: Any = None) -> None:
        self._pipe = (lambda: None) if pipe is None else weakref.ref(pipe)
        self._run: _Run | None = None
        self.total: int | None = None

    def reset(self) -> None:
        """Make the next call the start of a run."""
        self._run = None

    def starts_run(self, timestep: Any) -> bool:
        """Whether a call with this timestep would start a run. Changes nothing."""
        run, table = self._run, self._table()
        if run is None or table is not run.table:
            return True
        if isinstance(timestep, torch.Tensor) and isinstance(run.last, torch.Tensor):
            return run.listed and not _share_storage(timestep, run.last)
        if isinstance(timestep, int | float) and isinstance(run.last, int | float):
            return run.direction != 0 and _sign(timestep - run.last) == -run.direction
        return False

    def tick(self, timestep: Any, conditioning: Any = None) -> tuple[bool, int]:
        """Take note of a call: whether it starts a run, and how many calls of its sampling step went before it.

        Args:
            timestep: the timestep given to the network: a tensor of any shape, or a number.
            conditioning: the object that tells repeated calls at one timestep apart, such as the prompt embeddings.
        """
        table = self._table()
        starts = self.starts_run(timestep)
        if starts or self._run is None:
            self._run = _Run(table, timestep)
            self.total = self._remaining(timestep, table)
        self._follow(self._run, timestep)
        return starts, self._ordinal(self._run, timestep, conditioning)

    def _table(self) -> torch.Tensor | None:
        """The scheduler's current timesteps."""
        table = getattr(getattr(self._pipe(), "scheduler", None), "timesteps", None)
        return table if isinstance(table, torch.Tensor) else None

    def _follow(self, run: _Run, timestep: Any) -> None:
        """Learn how timesteps move in this run."""
        last = run.last
        if isinstance(timestep, torch.Tensor) and isinstance(last, torch.Tensor):
            moved = timestep.storage_offset() != last.storage_offset()
            run.listed = run.listed or (moved and _share_storage(timestep, last))
        elif isinstance(timestep, int | float) and isinstance(last, int | float) and timestep != last:
            run.direction = _sign(timestep - last)
        run.last = timestep

    def _ordinal(self, run: _Run, timestep: Any, conditioning: Any) -> int:
        """How many calls were made before at this position of the table; 0 where positions are unknown."""
        position = _position(timestep, run.table)
        repeated = position is not None and position == run.position
        in_table = run.table is not None and position is not None and position[0] == _address(run.table)
        if repeated and (in_table or all(conditioning is not other for other in run.seen)):
            run.ordinal += 1
        else:
            run.ordinal, run.seen = 0, []
        run.seen.append(conditioning)
        run.position = position
        return run.ordinal

    def _remaining(self, timestep: Any, table: torch.Tensor | None) -> int | None:
        """Network calls of a run that starts with this timestep."""
        position = _position(timestep, table)
        if table is not None and position is not None and position[0] == _address(table):
            return table.numel() - position[1] + int(table.storage_offset())
        if table is not None:
            return num_timesteps(self._pipe()) or table.numel()
        if position is not None and isinstance(timestep, torch.Tensor):
            return timestep.untyped_storage().nbytes() // timestep.element_size() - position[1]
        return None


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _share_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    return _address(a) == _address(b)


def _position(timestep: Any, table: torch.Tensor | None) -> tuple[int, int] | None:
    """(storage, offset) of a timestep that is a view into a table of timesteps; None for any other."""
    if not isinstance(timestep, torch.Tensor):
        return None
    longer = timestep.untyped_storage().nbytes() > timestep.element_size() * timestep.numel()
    if longer or timestep._base is not None or (table is not None and _share_storage(timestep, table)):
        return _address(timestep), int(timestep.storage_offset())
    return None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
