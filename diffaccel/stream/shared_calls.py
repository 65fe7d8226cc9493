"""Where the works of several streams meet: threads bring works, and whoever finds the place free runs those that fit.

No thread of its own: the first of the waiting threads that sees works ready runs them for all, so that a stream without
company waits for nobody. Calls of the network keep streams in step: works for one are ready when all have come that
shared the last one, and other works when those come that share the network with them, or when nobody has come for a
while. Of works that cannot share a call, those go first that are due first.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch

from diffaccel.runtime.attachment import ActHook
from diffaccel.runtime.call import Disturbed
from diffaccel.runtime.joint_call import JointCall, Member
from diffaccel.runtime.shared_hooks import Hooks, hooks_in_force, obeying
from diffaccel.stream.work import Work, joined, parted

if TYPE_CHECKING:
    from diffaccel.stream.shared_runner import SharedRunner

UNHURRIED = 1.0
"""Seconds within which a stream without a deadline is served before others that came later and are in a hurry."""
MEETING = "network", 1
BROKEN = "another stream's rows broke the call"
OnCall = Callable[[str, int], None]
Sort = tuple[str, int]


@dataclass(eq=False)
class Brought:
    """A work that a stream brought.

    Attributes:
        share: the stream's.
        group: equal for works that can share a call.
        sort: kind, and whether it is the first or a later one in a tick.
        meets: whether it is a first call of the network, at which streams that are out of step meet again: it waits
            also for streams whose other works wait themselves, which do not wait in return.
        hooks: what the stream's thread obeys.
        came: when it came, in seconds.
        due: until when it should be done.
    """

    share: SharedRunner
    work: Work
    group: Hashable
    sort: Sort
    meets: bool
    hooks: Hooks
    came: float
    due: float
    done: bool = False
    result: Any = None
    error: BaseException | None = None

    def finish(self, result: Any = None, error: BaseException | None = None) -> None:
        """Hand over what came of it."""
        self.done, self.result, self.error = True, result, error

    def outcome(self) -> Any:
        """The result. Raises what was raised."""
        if self.error is not None:
            raise self.error
        return self.result


@dataclass
class CallCounts:
    """Calls by kind, the rows in them, and the streams that shared them."""

    calls: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)

    def add(self, other: CallCounts) -> None:
        """Count what others have counted, too."""
        for mine, theirs in ((self.calls, other.calls), (self.rows, other.rows), (self.streams, other.streams)):
            mine.update(theirs)


class SharedCalls:
    """The meeting place.

    Args:
        max_rows: most rows of a call.
        wait: seconds that a call waits for the next of those who shared the last one.
        on_call: told of every call: its kind, and its rows.
        hand: runs a call, here or on another thread.
    """

    def __init__(
        self,
        max_rows: int,
        wait: float,
        on_call: OnCall = lambda _kind, _rows: None,
        hand: Callable[[Callable[[], list[Any]]], list[Any]] = lambda call: call(),
    ) -> None:
        self.max_rows, self.wait, self._hand = max_rows, wait, hand
        self.counts = CallCounts()
        self._on_call = on_call
        self._changed = threading.Condition()
        self._waiting: list[Brought] = []
        self._company: dict[Hashable, frozenset[SharedRunner]] = {}  # who shared the last call of a group
        self._running = False
        self._guests = 0

    def run(self, share: SharedRunner, work: Work, turn: int = 1) -> Any:
        """Bring a work, the first or a later one of its kind in a tick, and wait for what comes of it.

        Raises:
            Disturbed: where another stream's rows broke the call; the stream's next work runs alone.
        """
        now = perf_counter()
        alone = (id(share),) if share.alone else ()
        sort = work.kind, turn
        group = (sort, work.alike, work.shapes, *alone)
        due = now + (UNHURRIED if share.deadline is None else share.deadline)
        brought = Brought(share, work, group, sort, sort == MEETING, hooks_in_force(), now, due)
        with self._changed:
            share.note(sort, threading.get_ident())
            self._waiting.append(brought)
            self._changed.notify_all()
            try:
                self._attend(brought)
            finally:
                if brought in self._waiting:  # this thread was interrupted
                    self._waiting.remove(brought)
                while self._running and not brought.done:
                    self._changed.wait()
        return brought.outcome()

    def _attend(self, brought: Brought) -> None:
        while not brought.done:
            chosen = self._choose()
            if not chosen:
                self._changed.wait(self._patience())
                continue
            for each in chosen:
                self._waiting.remove(each)
            if chosen[0].meets:
                self._meet(chosen)
            self._running = True
            self._changed.release()
            try:
                self._perform(chosen)
            finally:
                self._changed.acquire()
                self._running = False
                for each in chosen:
                    each.share.served = perf_counter()
                    if not each.done:  # this thread was interrupted
                        each.finish(error=Disturbed(BROKEN))
                self._changed.notify_all()

    def _meet(self, chosen: Sequence[Brought]) -> None:
        """Take note of who shares a call of the network."""
        company = self._company[chosen[0].group] = frozenset(each.share for each in chosen)
        for each in chosen:
            each.share.mates = company

    def _choose(self) -> list[Brought]:
        """The works of the next call; none where one runs, or none is ready."""
        if self._running or self._guests:
            return []
        now = perf_counter()
        ready = [group for group in self._groups() if self._ready_at(group) <= now]
        if not ready:
            return []
        first = min(ready, key=lambda group: min(each.due for each in group))
        chosen: list[Brought] = []
        for each in sorted(first, key=lambda each: each.due):
            if not chosen or sum(other.work.count for other in chosen) + each.work.count <= self.max_rows:
                chosen.append(each)
        return chosen

    def _groups(self) -> list[list[Brought]]:
        groups: dict[Hashable, list[Brought]] = {}
        for each in self._waiting:
            groups.setdefault(each.group, []).append(each)
        return list(groups.values())

    def _ready_at(self, group: Sequence[Brought]) -> float:
        """When works need not wait for others any more."""
        newest = max(each.came for each in group)
        first = group[0]
        if first.meets:
            here, expected = group, self._company.get(first.group, frozenset())
        else:
            mates = {mate for each in group for mate in each.share.mates}
            here = self._waiting
            expected = frozenset(mate for mate in mates if mate.place is self and mate.makes(first.sort))
        threads = {each.share.thread for each in here}  # a thread that waits here brings nothing else
        missing = [share for share in expected if share.thread not in threads]
        if not missing:
            return newest
        patience = min(each.came + each.share.patience for each in group)
        seen = max(newest, *(share.served for share in missing))  # somebody came, or went
        return min(patience, seen + self.wait)

    def _patience(self) -> float | None:
        """Seconds until the next works are ready; None where something else has to happen first."""
        if self._running or self._guests or not self._waiting:
            return None
        return max(0.0, min(map(self._ready_at, self._groups())) - perf_counter())

    def _perform(self, chosen: Sequence[Brought]) -> None:
        """Run works as one. Where that fails, nobody knows who is to blame, and each goes alone."""
        kind, rows = chosen[0].work.kind, sum(each.work.count for each in chosen)
        self.counts.calls[kind] += 1
        self.counts.rows[kind] += rows
        self.counts.streams[kind] += len(chosen)
        try:
            self._on_call(kind, rows)
            results = self._hand(partial(_run, [each.work for each in chosen], [each.hooks for each in chosen]))
        except BaseException as error:
            for each in chosen:
                each.share.alone = True
                each.finish(error=error if len(chosen) == 1 else Disturbed(BROKEN))
            if not isinstance(error, Exception):  # this thread was interrupted
                raise
        else:
            for each, result in zip(chosen, results, strict=True):
                each.share.alone = False
                each.finish(result)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within, nothing runs."""
        with self._changed:
            self._guests += 1
            self._changed.wait_for(lambda: not self._running)
        try:
            yield
        finally:
            with self._changed:
                self._guests -= 1
                self._changed.notify_all()

    def forget(self, share: SharedRunner) -> None:
        """Expect a stream no more."""
        with self._changed:
            found = {group: company - {share} for group, company in self._company.items()}
            self._company = {group: company for group, company in found.items() if company}
            self._changed.notify_all()


@torch.no_grad()
def _run(works: Sequence[Work], hooks: Sequence[Hooks]) -> list[Any]:
    """What each work's function makes of its rows, in one call."""
    if len(works) == 1:
        with obeying(hooks[0]):
            return [works[0].function(works[0].rows)]
    members = [Member(cast(dict[torch.nn.Module, ActHook], h), w.count) for w, h in zip(works, hooks, strict=True)]
    with obeying(JointCall(members).hooks()):
        return parted(works[0].function(joined(works)), works)
