"""Batches on a production line: the next one starts while the last one is finished on another thread.

A batch that fails is halved until the job that cannot be rendered stands alone, so one bad row costs only itself; where
memory ran out, later batches keep to the smaller size.
"""

import gc
import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from diffaccel.batch.jobs import Job, batches
from diffaccel.batch.pictures import RenderError
from diffaccel.models import ModelError
from diffaccel.models.placement import is_out_of_memory

logger = logging.getLogger(__name__)
LONGEST, MOST_DETAIL = 200, 10_000  # characters of a line and of all that a library said
AHEAD = 1  # batches that may wait to be finished: each holds its latents on the device
T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """A job that could not be rendered, and why: in a line, and as a library said it where that is longer."""

    job: Job
    error: str
    detail: str | None = None

    @classmethod
    def of(cls, job: Job, error: Exception) -> "Failure":
        """The failure that `error` was: our own sentence, or a line of what a library said, with all of it behind."""
        logger.debug("job %s failed", job.id, exc_info=error)
        text = str(error).strip() or type(error).__name__
        if isinstance(error, RenderError | ModelError):
            return cls(job, text)
        line = " ".join(text.split("\n\n")[0].split())
        said = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
        why = "out of memory" if is_out_of_memory(error) else "could not be rendered"
        return cls(job, f"{why}: {said}", text[:MOST_DETAIL] if text != said else None)


class ProductionLine(Generic[T]):
    """Takes jobs through `start` in full batches, and through what that returns on another thread.

    Args:
        start: the first part of the work on a batch; the function that it returns is the second.
        prepare: called on the other thread with the batch that `start` will see next. What goes wrong in it goes wrong
            once more in `start`, and is told then.
    """

    def __init__(
        self,
        start: Callable[[Sequence[Job]], Callable[[], T]],
        prepare: Callable[[Sequence[Job]], None],
        batch_size: int,
    ) -> None:
        self._start, self._prepare, self._limit = start, prepare, batch_size
        self._queue: deque[tuple[Job, ...]] = deque()
        self._under_way: deque[tuple[tuple[Job, ...], Future[T | Failure]]] = deque()

    def __call__(self, jobs: Iterable[Job], take: Callable[[T | Failure], bool]) -> None:
        """Give every outcome to `take`, until there are no more or it returns False.

        When this is interrupted, `take` still gets what was started.
        """
        self._queue.extend(batches(jobs, self._limit))
        with ThreadPoolExecutor(1, thread_name_prefix="diffaccel-finish") as behind:
            try:
                while (self._queue or self._under_way) and self._step(behind, take):
                    pass
            finally:
                self._drain(take)

    def _step(self, behind: Executor, take: Callable[[T | Failure], bool]) -> bool:
        """Start a batch, and finish what is more than `AHEAD`; whether to go on."""
        if self._queue:
            batch = self._next()
            if self._queue:
                behind.submit(self._prepare, self._queue[0][: self._limit])
            try:
                self._under_way.append((batch, behind.submit(self._start(batch))))
            except Exception as error:
                self._again(batch, error)
        while self._under_way and (self._under_way[-1][1].done() or len(self._under_way) > AHEAD or not self._queue):
            if not self._finish(take):
                return False
        return True

    def _next(self) -> tuple[Job, ...]:
        """The next batch, no larger than what memory holds."""
        batch = self._queue.popleft()
        if len(batch) > self._limit:
            self._queue.appendleft(batch[self._limit :])
        return batch[: self._limit]

    def _finish(self, take: Callable[[T | Failure], bool]) -> bool:
        """Wait for the oldest batch under way; whether to go on."""
        wait([self._under_way[0][1]])
        batch, future = self._under_way.popleft()
        try:
            outcome = future.result()
        except Exception as error:
            self._again(batch, error)
            return True
        return take(outcome)

    def _again(self, batch: tuple[Job, ...], error: Exception) -> None:
        """Put a batch that failed back in halves, or give up on it."""
        half = len(batch) // 2
        if is_out_of_memory(error):
            self._limit = max(1, half)
            _release_memory(error)
            logger.warning("out of memory at batch size %d, going on with %d", len(batch), self._limit)
        if half:
            self._queue.extendleft((batch[half:], batch[:half]))
            return
        future: Future[T | Failure] = Future()
        future.set_result(Failure.of(batch[0], error))
        self._under_way.append((batch, future))

    def _drain(self, take: Callable[[T | Failure], bool]) -> None:
        """Take what is under way, and leave what fails to another run."""
        while self._under_way:
            _, future = self._under_way.popleft()
            if future.exception() is None:
                take(future.result())


def _release_memory(error: BaseException) -> None:
    """Let go of what the failed batch held, which the error's traceback keeps alive, and give it back."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    with suppress(RuntimeError):
        torch.cuda.empty_cache()
