"""One stream's share in the calls of a host."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any

import torch

from diffaccel.runtime.call import Disturbed
from diffaccel.runtime.shared_hooks import hooks_in_force
from diffaccel.stream.concurrent_calls import ConcurrentCalls
from diffaccel.stream.shared_calls import MEETING, UNHURRIED, Sort
from diffaccel.stream.work import Work, WorkRunner


class SharedRunner(WorkRunner):
    """One stream's share in the calls.

    Args:
        concurrent: where works meet.
        reserve: asked for room for so many rows, None to give it back; gives what it was before.

    Attributes:
        alone: whether the next work runs by itself, because the last one failed.
        served: when a call with a work of this stream ended.
        thread: which brought its last work.
        mates: streams that shared its last call of the network.
        place: where its works meet others'.
        begun: when its last ticks began.
        load: how many numbers its last call of the network was given, which tell what it costs, and of which network.
    """

    def __init__(self, concurrent: ConcurrentCalls, reserve: Callable[[SharedRunner, int | None], int | None]) -> None:
        self._concurrent, self._reserve = concurrent, reserve
        self.place = concurrent.together
        self.begun, self.load = deque[float](maxlen=3), (1, 0)
        self.alone = False
        self.served, self.thread = 0.0, 0
        self.mates: frozenset[SharedRunner] = frozenset()
        self._calls: Counter[str] = Counter()
        self._tick, self._gone = 0, False
        self._made: dict[Sort, int] = {}

    def note(self, sort: Sort, thread: int) -> None:
        """Take note of a work that is brought."""
        self.thread, self._made[sort] = thread, self._tick

    def makes(self, sort: Sort) -> bool:
        """Whether a work of this sort is expected in every tick, as it was in the last one."""
        return not self._gone and self._made.get(sort, -2) >= self._tick - 1

    def begin(self) -> None:
        """A tick's calls follow; its second one only meets second ones, or who makes none would be awaited."""
        self._tick += 1
        self.begun.append(perf_counter())
        place = self._concurrent.place(self)
        if place is not self.place:
            self.place.forget(self)
            self.place, self.mates = place, frozenset()
        for kind in ("network", "controlnet"):
            self._calls[kind] = 0

    def end(self) -> None:
        """They were made. Where there was none, others need not wait for the next one."""
        if not self._calls["network"]:
            self.place.forget(self)

    @property
    def patience(self) -> float:
        """Seconds that a work waits for company at most."""
        return UNHURRIED if self.deadline is None else self.deadline / 4

    def run(self, work: Work) -> Any:
        """What the work's function makes of its rows; a work without hooks that others broke goes again at once."""
        if work.kind == MEETING[0]:
            numbers = sum(rows.numel() for rows in work.rows.values() if isinstance(rows, torch.Tensor))
            self.load = numbers, hash(work.alike)
        inside = work.kind in ("network", "controlnet")  # of a tick, which may have several
        self._calls[work.kind] = self._calls[work.kind] + 1 if inside else 1
        while True:
            try:
                return self.place.run(self, work, self._calls[work.kind])
            except Disturbed:
                if hooks_in_force():
                    raise

    @contextmanager
    def room(self, rows: int) -> Iterator[None]:
        """Ask the host for room."""
        before = self._reserve(self, rows)
        try:
            yield
        except BaseException:
            self._reserve(self, before)
            raise

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Give back the room, for a stream that takes its place."""
        before = self._reserve(self, None)
        try:
            yield
        except BaseException:
            with suppress(ValueError):  # somebody else was quicker: it goes on all the same
                self._reserve(self, before)
            raise

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within, no work of any stream runs."""
        with self._concurrent.quiet():
            yield

    def leave(self) -> None:
        """Be no longer expected, and give back the room."""
        self._reserve(self, None)
        self._gone = True
        self._concurrent.forget(self)
        self.place.forget(self)
