"""Meeting places of streams on one processor, whose calls run at the same time, each on its share of the threads.

Threads of one tensor operation wait for each other at its end, and none of them works while Python prepares the next
tick. Two calls of half the rows, on half of the threads each, leave fewer idle.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from diffaccel.config.checks import whole
from diffaccel.networks.compiled import has_compiled_forward, is_compiled
from diffaccel.stream.shared_calls import CallCounts, OnCall, SharedCalls

if TYPE_CHECKING:
    from diffaccel.stream.shared_runner import SharedRunner

IDLE = 1.0
"""Seconds after which a stream that has not begun a tick is left out of the split, unless ticks take as long."""
FAIR = 1.2
"""How much more one place may have to do than another, whose streams are served so much more often."""
DEAL = 16
"""Ticks of each stream after which streams are dealt anew: who shares a place with slow ones gets more, for a while."""
T = TypeVar("T")


class ConcurrentCalls:
    """Where streams meet: in several places while what they do can be split evenly, else all in one.

    Args:
        count: calls at the same time.
        max_rows, wait, on_call: as `SharedCalls` takes them.
    """

    def __init__(self, count: int, max_rows: int, wait: float, on_call: OnCall) -> None:
        told = threading.Lock()

        def tell(kind: str, rows: int) -> None:
            with told:
                on_call(kind, rows)

        share = torch.get_num_threads() // count
        self.together = SharedCalls(max_rows, wait, tell)
        beside = count if count > 1 else 0
        self._places = [SharedCalls(max_rows, wait, tell, _OwnThread(share).run) for _ in range(beside)]
        self._members: WeakKeyDictionary[SharedRunner, None] = WeakKeyDictionary()
        self._lock, self._ticks = threading.Lock(), 0

    @property
    def counts(self) -> CallCounts:
        """Calls, their rows and their streams, of all places."""
        total = CallCounts()
        for place in (self.together, *self._places):
            total.add(place.counts)
        return total

    def place(self, runner: SharedRunner) -> SharedCalls:
        """Where a stream's tick that begins now is run."""
        with self._lock:
            self._members[runner] = None
            since = min(perf_counter() - IDLE, runner.begun[0])
            active = [each for each in self._members if each.begun[-1] >= since]
            self._ticks += 1
            dealt = random.Random(self._ticks // (DEAL * len(active))).sample(active, len(active))
            loads = dict.fromkeys(self._places, 0)
            chosen = self.together
            for each in sorted(dealt, key=lambda each: each.load):  # streams of one kind are spread over all places
                place = min(loads, key=lambda place: loads[place], default=self.together)
                loads[place] = loads.get(place, 0) + each.load[0]
                chosen = place if each is runner else chosen
            return chosen if max(loads.values()) <= FAIR * min(loads.values()) else self.together

    def forget(self, runner: SharedRunner) -> None:
        """Count a stream no more."""
        with self._lock:
            self._members.pop(runner, None)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within, nothing runs."""
        with ExitStack() as stack:
            for place in (self.together, *self._places):
                stack.enter_context(place.quiet())
            yield


def concurrency_for(pipe: Any, asked: int | None) -> int:
    """How many calls at the same time: what was asked for, or two where a processor's threads can be halved.

    One for compiled networks: torch.compile must not trace on two threads at once.

    Raises:
        TypeError, ValueError: for another number than there can be.
    """
    openmp = torch.backends.openmp.is_available()  # type: ignore[no-untyped-call]
    device = getattr(pipe, "device", None)  # what stands in for a pipeline has none
    threads = torch.get_num_threads() if device is not None and device.type == "cpu" and openmp else 1
    if asked is None:
        return 2 if threads % 2 == 0 and not _is_compiled(pipe) else 1
    whole("concurrency", asked, 1)
    if asked > threads:
        raise ValueError(f"concurrency={asked} shares out torch's threads, of which {device} has {threads} here")
    if asked > 1 and _is_compiled(pipe):
        raise ValueError(
            f"concurrency={asked} is not for compiled networks: torch.compile must not trace on two threads"
        )
    return asked


def _is_compiled(pipe: Any) -> bool:
    """Whether anything of a pipeline was compiled."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return any(is_compiled(module) or has_compiled_forward(module) for part in parts for module in part.modules())


class _OwnThread:
    """A thread whose tensor operations run on a share of the processor's threads."""

    def __init__(self, share: int) -> None:
        self._pool = ThreadPoolExecutor(1, "diffaccel-call", _take, (share, torch.get_num_threads()))

    def run(self, function: Callable[[], T]) -> T:
        """What the function gives; where this thread is interrupted meanwhile, the function still ends first."""
        future = self._pool.submit(function)
        try:
            return future.result()
        except BaseException:
            wait([future])
            raise


def _take(share: int, everyone: int) -> None:
    """Let this thread's operations run on fewer threads; OpenMP keeps their number for each thread."""
    torch.get_num_threads()  # or its first operation sets what threads begin with
    torch.set_num_threads(share)  # which is also what threads begin with that come later
    other = threading.Thread(target=torch.set_num_threads, args=(everyone,))
    other.start()
    other.join()
