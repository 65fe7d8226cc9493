"""Facts from a scheduler: `set_timesteps` starts a run, and `step` ends a sampling step.

A watched scheduler is an instance of a subclass of its own class, which bears the same name and takes note; its class
and all other instances stay as they are. (Attributes on the instance would be carried to copies of it, and step the
first one from there; copies of a watched scheduler are plain ones.)
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary


@dataclass
class Progress:
    """What a scheduler was told on one thread.

    Attributes:
        run: how often timesteps were set.
        steps: sampling steps that have ended; several at one timestep, as for views beside each other, are one.
        last: the timestep of the last one, as it was given.
        repeated: steps at `last` beyond the first.
    """

    run: int = 0
    steps: int = 0
    last: object = None
    repeated: int = 0

    def begin(self) -> None:
        """Timesteps were set."""
        self.run, self.last, self.repeated = self.run + 1, None, 0

    def step(self, timestep: object) -> None:
        """A sampling step has ended."""
        if timestep is not None and timestep is self.last and not isinstance(timestep, int):
            self.repeated += 1
            return
        self.steps, self.last, self.repeated = self.steps + 1, timestep, 0


@dataclass
class Watch:
    """A watched scheduler: its progress by thread, and what each user wants to be called when timesteps are set."""

    users: list[Callable[[], None]] = field(default_factory=list)
    threads: dict[int, Progress] = field(default_factory=dict)

    @property
    def progress(self) -> Progress:
        """That of the current thread."""
        return self.threads.setdefault(threading.get_ident(), Progress())


_watches: WeakKeyDictionary[Any, Watch] = WeakKeyDictionary()
_changing = threading.RLock()


def watch(scheduler: Any, starting: Callable[[], None]) -> Watch | None:
    """Watch a scheduler for one more user; None for what is no scheduler that sets timesteps and steps."""
    if not (callable(getattr(scheduler, "set_timesteps", None)) and callable(getattr(scheduler, "step", None))):
        return None
    with _changing:
        found = _watches.get(scheduler)
        if found is None:
            found = _watches[scheduler] = Watch()
            scheduler.__class__ = _watched(type(scheduler))  # type: ignore[arg-type]
        found.users.append(starting)
        return found


def unwatch(scheduler: Any, starting: Callable[[], None]) -> None:
    """Take one user's watch off; the last one's leaves the scheduler as it was."""
    with _changing:
        found = _watches[scheduler]
        found.users.remove(starting)
        if not found.users:
            del _watches[scheduler]
            scheduler.__class__ = type(scheduler).__mro__[1]


@functools.cache
def _watched(cls: type) -> type:
    """The subclass of a scheduler's class that takes note."""

    @functools.wraps(cls.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        if self in _watches:
            _watches[self].progress.begin()
            for starting in _watches[self].users:
                starting()
        return result

    @functools.wraps(cls.step)  # type: ignore[attr-defined]
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = cls.step(self, *args, **kwargs)  # type: ignore[attr-defined]
        if self in _watches:
            _watches[self].progress.step(kwargs.get("timestep", args[1] if len(args) > 1 else None))
        return result

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        made = object.__reduce_ex__(self, protocol)
        return (made[0], tuple(cls if part is type(self) else part for part in made[1]), *made[2:])

    body = {"set_timesteps": set_timesteps, "step": step, "__reduce_ex__": __reduce_ex__}
    named = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), body | named)
