"""Runs: where one starts, which sampling step a call belongs to, and how many there are. Facts, never guesses.

They come from whoever makes the call: the scheduler of the pipeline on the stack says when timesteps were set and when
a step ended. Where no pipeline and no scheduler has a say, as for a bare network, the timesteps themselves tell:
another one is another step, one that goes back, or that lies in another table, starts a run. Each thread has runs of
its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch

from diffaccel._diffusers import RunningCall, running_call
from diffaccel.config.words import A_CACHE
from diffaccel.networks import supports
from diffaccel.networks.compiled import unwrapped
from diffaccel.runtime.contexts import Contexts
from diffaccel.runtime.host import Host
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.scheduler_watch import Progress, Watch, release, unwatch, watch
from diffaccel.runtime.timesteps import Relation, calls_left, place_of, relation, value_of

BESIDE = "unconditional_transformer"  # a denoiser that is called in every step, next to the one for the prompt
MOST_CALLS = 16  # with the same prompt in one step; more of them belong to a sampler whose steps are not seen


@dataclass(eq=False)
class NetworkRun:
    """What a run remembers of one network.

    Attributes:
        memory: its features.
        contexts: its contexts.
        first: the sampling step in which it was called first.
        roles: for each context which of its rows see the negative prompt.
        in_full: why all calls must compute, empty where they need not.
        idle: whether somebody else took the last call.
    """

    memory: Memory
    contexts: Contexts = field(default_factory=Contexts)
    first: int | None = None
    roles: dict[Hashable, tuple[str, ...]] = field(default_factory=dict)
    in_full: str = ""
    idle: bool = False


class Run:
    """One run.

    Args:
        host: the pipeline that makes it.
        progress: of its scheduler on this thread, if it has one.
        waits: whether timesteps may be read from a device, as nothing else tells them apart.
        number: of the run among those of a handle, counted from 0.

    Attributes:
        step: index of the sampling step at hand.
        networks: what is remembered of each network.
        opening: timestep of the first call.
    """

    def __init__(self, host: Host, progress: Progress | None, *, waits: bool, number: int = 0) -> None:
        self.host, self.progress, self.waits, self.number = host, progress, waits, number
        self.step = 0
        self.networks: dict[Hashable, NetworkRun] = {}
        self.opening: Any = None
        self._last: Any = None
        self._direction = 0
        self._seen = (0, 0) if progress is None else (progress.run, progress.steps)
        self._beside = self._started = False

    def continues(self, timestep: Any) -> bool:
        """Whether a call with this timestep belongs to this run."""
        if self.progress is not None and self.progress.run != self._seen[0]:
            return False
        if not self._started:
            return True
        moved, _ = self._relation(timestep)
        return moved != "back" and (moved != "elsewhere" or self._has_stepped)

    def _relation(self, timestep: Any) -> tuple[Relation, int]:
        """Where a timestep lies to that of the last call, and the direction in which the run goes."""
        return relation(timestep, self._last, self._direction, wait=self.waits and not self._has_stepped)

    @property
    def _has_stepped(self) -> bool:
        """Whether the scheduler has made a step in this run."""
        return self.progress is not None and self.progress.steps > self._seen[1]

    def advance(self, timestep: Any) -> None:
        """Take note of a call.

        Raises:
            RuntimeError: where a sampler steps several times at one timestep, and calls could not be told apart.
        """
        if self.progress is not None:
            self.progress.called = True
        if not self._started:
            self._started, self.opening, self._last = True, timestep, timestep
            return
        moved, self._direction = self._relation(timestep)
        if self.progress is not None and self._has_stepped:
            self._follow(self.progress, timestep)
        elif moved == "on" or (moved == "unknown" and self.host.pipe is None):
            self.step += 1
        self._last = timestep

    def _follow(self, progress: Progress, timestep: Any) -> None:
        """Count the steps that the scheduler has made; a call at the timestep of the last one is another view there."""
        place = place_of(timestep)
        beside = timestep is progress.last or (place is not None and place == place_of(progress.last))
        self._beside = self._beside or beside
        if progress.repeated and not self._beside:
            raise RuntimeError(
                "the scheduler steps several times at one timestep, as for views beside each other, and the network is "
                "told another number: which view a call belongs to is not known; run this pipeline without acceleration"
            )
        self.step = max(self.step, progress.steps - self._seen[1] - beside)

    @cached_property
    def _denoisers(self) -> dict[int, str]:
        """Names of the denoisers of the pipeline that makes the run, by their identity."""
        parts = {name: unwrapped(part) for name, part in getattr(self.host.pipe, "components", {}).items()}
        return {id(part): name for name, part in parts.items() if supports(part)}

    def total(self, network: Any = None) -> int | None:
        """Network calls of the run, None if unknown.

        Args:
            network: the denoiser whose calls count, where a pipeline has several; None for those of all.
        """
        if network is not None and len(self._denoisers) > 1 and not hasattr(self.host.pipe, BESIDE):
            return self._share(self._denoisers.get(id(unwrapped(network))))
        table = self.host.table
        announced = None if self.waits else self.host.num_timesteps
        if isinstance(self.opening, torch.Tensor):
            if table is None:
                return calls_left(self.opening) if place_of(self.opening) is not None else None
            if (index := self._index_in(table)) is not None:
                left = table.numel() - index
                return announced if announced is not None and announced < left else left
        if announced is not None or table is None:
            return announced
        begin = getattr(self.host.scheduler, "begin_index", None) or 0
        return table.numel() - int(begin)

    def timestep_of(self, given: Any) -> Any:
        """The scheduler's timestep of the call at hand, whatever number the network was given in its place.

        Raises:
            ValueError: if it is not known.
        """
        table = self.host.table
        if isinstance(given, torch.Tensor) and given.dim() > 1 and bool((given != given.flatten()[0]).any()):
            raise ValueError(
                "parts of a sample are at timesteps of their own, so that its noise level is not one number: use a "
                f"method that does not need it, such as {A_CACHE}"
            )
        place = place_of(given)
        if table is None or (place is not None and place[0] == table.untyped_storage().data_ptr()):
            return given
        begin, opening = self.begin(table), value_of(self.opening, wait=True)
        start = value_of(table[min(begin, table.numel() - 1)], wait=True)
        if opening is None or start is None or begin + self.step >= table.numel():
            raise ValueError("the noise level of this network call is not known: pass the pipeline to accelerate()")
        if not any(abs(opening * scale - start) <= 0.01 * abs(start) for scale in (1, 1000)):
            raise ValueError(
                f"the network is told {opening} where the scheduler's timestep is {start}, so that its noise level is "
                f"not known: use a method that does not need it, such as {A_CACHE}"
            )
        return table[begin + self.step]

    def begin(self, table: torch.Tensor) -> int:
        """Index of the first call's timestep in the scheduler's table, before whose end a run may end."""
        index = self._index_in(table)
        return table.numel() - (self.total() or table.numel()) if index is None else index

    def _index_in(self, table: torch.Tensor) -> int | None:
        """Index of the first call's timestep where it is an element of the table, and not a copy of one."""
        place, start = place_of(self.opening), place_of(table[:1])
        return place[1] - start[1] if place is not None and start is not None and place[0] == start[0] else None

    def _share(self, network: str | None) -> int | None:
        """Calls of one of two denoisers that take turns at a boundary, as in Wan 2.2."""
        pipe, table = self.host.pipe, self.host.table
        ratio = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
        if ratio is None or table is None or network not in ("transformer", "transformer_2"):
            return None
        boundary = ratio * pipe.scheduler.config.num_train_timesteps
        high = int((table >= boundary).sum())
        return high if network == "transformer" else table.numel() - high


class Runs:
    """The runs of one handle, by thread and scheduler.

    Args:
        host: the pipeline that was accelerated, or none.
        scheduler: of a bare network, if it is known.
        starting: called when a watched scheduler's timesteps are set.

    Attributes:
        thread: the one whose calls alone may reuse, None for all.
    """

    def __init__(self, host: Host, scheduler: Any = None, starting: Callable[[], None] = lambda: None) -> None:
        self.host = host
        self._scheduler = scheduler
        self._starting = starting
        self.thread: int | None = None
        self._runs: dict[tuple[int, int], Run] = {}
        self._numbers = count()
        self._watched: WeakKeyDictionary[Any, Watch] = WeakKeyDictionary()  # by scheduler; many servers make one a run
        self._watch(self._scheduler or host.scheduler)

    def current(self, timestep: Any) -> tuple[Run, RunningCall | None]:
        """The run that a call belongs to, new if it starts one, and the pipeline's call around it."""
        running = running_call()
        host = self.host
        if running is not None and running.pipe is not self.host.pipe:
            host = Host(running.pipe, self.host.guided)
        scheduler = host.scheduler if self._scheduler is None else self._scheduler
        found = self._watch(scheduler)
        key = threading.get_ident(), id(scheduler)
        run, progress = self._runs.get(key), None if found is None else found.progress
        if run is None or run.progress is not progress or not run.continues(timestep):
            run = self._runs[key] = Run(host, progress, waits=running is None, number=next(self._numbers))
        return run, running

    def end(self) -> None:
        """End this thread's runs: the running pipeline's, or all where none is running."""
        running, own = running_call(), threading.get_ident()
        scheduler = None if running is None else id(getattr(running.pipe, "scheduler", None))
        for key in [(thread, of) for thread, of in self._runs if thread == own and scheduler in (None, of)]:
            del self._runs[key]

    def drop(self, run: Run) -> None:
        """End one run, as after an error."""
        self._runs = {key: other for key, other in self._runs.items() if other is not run}

    def forget(self) -> None:
        """End all runs, those of other threads, too."""
        self._runs.clear()

    @property
    def open(self) -> Sequence[Run]:
        """All runs that have not ended."""
        return tuple(self._runs.values())

    def close(self) -> None:
        """Take the watch off all schedulers."""
        self.forget()
        for scheduler in list(self._watched):
            unwatch(scheduler, self._starting)
        self._watched.clear()
        release()

    def _watch(self, scheduler: Any) -> Watch | None:
        known = None if scheduler is None else self._watched.get(scheduler)
        if known is not None:
            return known
        found = watch(scheduler, self._starting)
        if found is not None:
            self._watched[scheduler] = found
        return found
