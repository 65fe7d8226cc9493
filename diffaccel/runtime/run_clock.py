"""Where a run starts, and which call of a sampling step this is, told without waiting for the device.

Samplers do not announce runs, and values of timesteps live on the device. But every run of a pipeline has its own table
of timesteps, `scheduler.timesteps`, and the timestep of a call is usually a view into that table. The identity of the
table tells runs apart, even after one that raised; the offset of the view tells sampling steps apart, so that two calls
at one offset are the conditional and the unconditional one. Python numbers tell a new run by turning direction.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from diffaccel.runtime.host import Host


class Tick(NamedTuple):
    """What the clock says of a network call: whether it starts a run, and its ordinal within its sampling step."""

    starts: bool
    ordinal: int


@dataclass(frozen=True, eq=False)
class _Run:
    """What the clock remembers of the current run, up to its last call.

    Attributes:
        table: the scheduler's timesteps.
        last: timestep of the last call.
        listed: whether timesteps were seen to be elements of one tensor.
        direction: sign in which numbers move.
        seen: conditionings of the calls at the position of the last one.
    """

    table: torch.Tensor | None
    last: Any
    listed: bool = False
    direction: int = 0
    seen: tuple[Any, ...] = ()


class RunClock:
    """Tells runs and sampling steps apart.

    Args:
        host: the pipeline whose scheduler is watched.

    Attributes:
        total: network calls of the current run, None if unknown. A bare network's run is taken to go through its table
            of timesteps to the end.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._run: _Run | None = None
        self.total: int | None = None

    def reset(self) -> None:
        """Make the next call the start of a run."""
        self._run = None

    def peek(self, timestep: Any, conditioning: Any = None) -> Tick:
        """What `tick` would say, without taking note of the call."""
        return self._next(timestep, conditioning)[0]

    def tick(self, timestep: Any, conditioning: Any = None) -> Tick:
        """Take note of a call.

        Args:
            timestep: the timestep given to the network: a tensor of any shape, or a number.
            conditioning: the object that tells repeated calls at one timestep apart, such as the prompt embeddings.
        """
        tick, self._run = self._next(timestep, conditioning)
        if tick.starts:
            self.total = self._remaining(timestep, self._run.table)
        return tick

    def _next(self, timestep: Any, conditioning: Any) -> tuple[Tick, _Run]:
        """What to say of the next call, and the run after it."""
        run, table = self._run, self._host.table
        if run is None or table is not run.table or _turns(run, timestep):
            return Tick(True, 0), _Run(table, timestep, seen=(conditioning,))
        listed, direction = run.listed, run.direction
        if isinstance(timestep, torch.Tensor) and isinstance(run.last, torch.Tensor):
            listed |= _share_storage(timestep, run.last) and timestep.storage_offset() != run.last.storage_offset()
        elif isinstance(timestep, int | float) and isinstance(run.last, int | float):
            direction = _sign(timestep - run.last) or direction
        seen = run.seen if _same_step(run, timestep, conditioning) else ()
        return Tick(False, len(seen)), _Run(table, timestep, listed, direction, (*seen, conditioning))

    def _remaining(self, timestep: Any, table: torch.Tensor | None) -> int | None:
        """Network calls of a run that starts with this timestep."""
        position = _position(timestep, table)
        if table is not None and position is not None and position[0] == _address(table):
            left = table.numel() - position[1] + int(table.storage_offset())
            announced = self._host.num_timesteps if self._host.ends_early else None
            return announced or left
        if table is not None:
            return self._host.num_timesteps or table.numel()
        return calls_left(timestep) if position is not None else None


def _turns(run: _Run, timestep: Any) -> bool:
    """Whether this timestep cannot belong to the run: it is of another table, or moves the other way."""
    if isinstance(timestep, torch.Tensor) and isinstance(run.last, torch.Tensor):
        return run.listed and not _share_storage(timestep, run.last)
    if isinstance(timestep, int | float) and isinstance(run.last, int | float):
        return run.direction != 0 and _sign(timestep - run.last) == -run.direction
    return False


def _same_step(run: _Run, timestep: Any, conditioning: Any) -> bool:
    """Whether this is another call at the position of the last one; a bare repetition of a call is not."""
    position = _position(timestep, run.table)
    if position is None or position != _position(run.last, run.table):
        return False
    in_table = run.table is not None and position[0] == _address(run.table)
    return in_table or all(conditioning is not other for other in run.seen)


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
    return length - start if base is None or base.numel() == max(base.shape) else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
