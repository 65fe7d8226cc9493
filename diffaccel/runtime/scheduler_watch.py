"""Facts from a scheduler: `set_timesteps` starts a run, and `step` ends a sampling step.

While any instance of a class is watched, the class's two methods take note; other instances pass through them, and
copies of a watched scheduler are plain ones. (Attributes on the instance would be carried to its copies, and step the
first one from there; a class of its own would not be the one that pipelines ask for by `type`.)
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
        repeated: steps at `last` beyond the first, each of them of calls of its own.
        called: whether a network was called since the last step; without, a step at `last` only asks for it in
            another form.
    """

    run: int = 0
    steps: int = 0
    last: object = None
    repeated: int = 0
    called: bool = False

    def begin(self) -> None:
        """Timesteps were set."""
        self.run, self.last, self.repeated = self.run + 1, None, 0

    def step(self, timestep: object) -> None:
        """A sampling step has ended."""
        if timestep is not None and timestep is self.last and not isinstance(timestep, int):
            self.repeated += self.called
        else:
            self.steps, self.last, self.repeated = self.steps + 1, timestep, 0
        self.called = False


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
_methods: dict[type, dict[str, Any]] = {}  # of classes that take note, what they had themselves before
_changing = threading.RLock()


def watch(scheduler: Any, starting: Callable[[], None]) -> Watch | None:
    """Watch a scheduler for one more user; None for what is no scheduler that sets timesteps and steps."""
    if not (callable(getattr(scheduler, "set_timesteps", None)) and callable(getattr(scheduler, "step", None))):
        return None
    with _changing:
        found = _watches.get(scheduler)
        if found is None:
            found = _watches[scheduler] = Watch()
            _take_note(type(scheduler))
        found.users.append(starting)
        return found


def unwatch(scheduler: Any, starting: Callable[[], None]) -> None:
    """Take one user's watch off; the last one's leaves the scheduler's class as it was."""
    with _changing:
        found = _watches[scheduler]
        found.users.remove(starting)
        if not found.users:
            del _watches[scheduler]
        release()


def release() -> None:
    """Leave classes as they were whose watched instances are gone."""
    with _changing:
        used = {type(scheduler) for scheduler in list(_watches)}
        for cls in [cls for cls in _methods if cls not in used]:
            for name, own in _methods.pop(cls).items():
                if own is None:
                    delattr(cls, name)
                else:
                    setattr(cls, name, own)


def _take_note(cls: Any) -> None:
    """Have a class's methods take note of watched instances; those of subclasses have methods of their own that do."""
    if cls in _methods:
        return
    set_before, step_before = cls.set_timesteps, cls.step
    _methods[cls] = {name: cls.__dict__.get(name) for name in ("set_timesteps", "step")}

    @functools.wraps(set_before)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = set_before(self, *args, **kwargs)
        if type(self) is cls and (found := _watches.get(self)) is not None:
            found.progress.begin()
            for starting in found.users:
                starting()
        return result

    @functools.wraps(step_before)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = step_before(self, *args, **kwargs)
        if type(self) is cls and (found := _watches.get(self)) is not None:
            found.progress.step(kwargs.get("timestep", args[1] if len(args) > 1 else None))
        return result

    cls.set_timesteps, cls.step = set_timesteps, step
