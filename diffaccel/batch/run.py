"""A run: batches through the renderer, pictures to disk on other threads, every job's end in the manifest.

A batch that fails is halved until the job that cannot be rendered stands alone, so one bad row costs only itself; where
memory ran out, later batches keep to the smaller size.
"""

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO

import torch

from diffaccel.batch.compare import Comparison, side_by_side
from diffaccel.batch.jobs import Job, batches
from diffaccel.batch.metadata import encode
from diffaccel.batch.render import Rendered, Renderer
from diffaccel.batch.store import Record, Sink, StoreError
from diffaccel.batch.summary import Summary

logger = logging.getLogger(__name__)
WRITERS = 4
MAX_PENDING = 16


@dataclass(frozen=True)
class Failure:
    """A job that could not be rendered, and why."""

    job: Job
    error: str


class Run:
    """Renders jobs into an open output folder, or into what stands in for one.

    Args:
        on_record: called after each job's record is on disk, in the caller's thread.
        suffix: `png`, `jpg` or `webp`.
        compare: render every job without caching too, and write both side by side into `compare/`.
        fail_fast: stop at the first job that fails.
    """

    def __init__(
        self,
        renderer: Renderer,
        folder: Sink,
        *,
        batch_size: int = 8,
        suffix: str = "png",
        compare: bool = False,
        fail_fast: bool = False,
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self.summary = Summary()
        self._renderer, self._folder = renderer, folder
        self._batch_size, self._suffix, self._compare, self._fail_fast = batch_size, suffix, compare, fail_fast
        self._on_record = on_record
        self._writing: deque[Future[Record]] = deque()

    def __call__(self, jobs: Iterable[Job]) -> Summary:
        """Render `jobs`; what was rendered is on disk even when this is interrupted.

        Raises `StoreError` when a picture cannot be written.
        """
        jobs = tuple(jobs)
        if self._compare and jobs:
            self._warm_up(jobs[0])
        start = time.perf_counter()
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="diffaccel-write") as writers:
            try:
                for outcome in render_all(jobs, self._render, self._batch_size):
                    self._take(outcome, writers)
                    self._record(keep=MAX_PENDING)
                    if self._fail_fast and isinstance(outcome, Failure):
                        break
            finally:
                self._record(keep=0)
                self.summary.seconds = time.perf_counter() - start
        return self.summary

    def _warm_up(self, job: Job) -> None:
        """Spare the first compared picture the cost of first use; what cannot be rendered is reported in its turn."""
        with suppress(Exception):
            self._renderer.render([replace(job, cache="none", steps=2)])

    def _render(self, jobs: Sequence[Job]) -> "Pictures":
        plain = self._renderer.render([replace(job, cache="none") for job in jobs]) if self._compare else None
        return Pictures(tuple(jobs), self._renderer.render(jobs), plain)

    def _take(self, outcome: "Pictures | Failure", writers: ThreadPoolExecutor) -> None:
        if isinstance(outcome, Failure):
            self._writing.append(writers.submit(_failed, outcome))
            return
        for index in range(len(outcome.jobs)):
            self._writing.append(writers.submit(self._write, outcome, index))

    def _write(self, pictures: "Pictures", index: int) -> Record:
        """Encode and write one picture (on a writer's thread)."""
        asked, job, image = pictures.jobs[index], pictures.rendered.jobs[index], pictures.rendered.images[index]
        name, data = f"{job.id}.{self._suffix}", encode(image, job, self._suffix)
        self._folder.write(name, data)
        return Record(
            id=job.id,
            status="done",
            fingerprint=asked.fingerprint,
            file_name=name,
            bytes=len(data),
            seconds=round(pictures.seconds, 4),
            settings=_settings(job),
            compare=self._write_comparison(pictures, index),
        )

    def _write_comparison(self, pictures: "Pictures", index: int) -> dict[str, object] | None:
        comparison = pictures.comparison(index)
        if comparison is None:
            return None
        job, buffer = pictures.jobs[index], BytesIO()
        side_by_side(comparison, job.cache).save(buffer, "PNG")
        self._folder.write(f"compare/{job.id}.png", buffer.getvalue())
        return {
            "file_name": f"compare/{job.id}.png",
            "psnr": round(min(comparison.psnr, 100.0), 2),
            "plain_seconds": round(comparison.plain_seconds, 4),
        }

    def _record(self, keep: int) -> None:
        """Record what is written, and wait for the writers until at most `keep` pictures are under way."""
        records = []
        while self._writing and (self._writing[0].done() or len(self._writing) > keep):
            try:
                records.append(self._writing.popleft().result())
            except StoreError:
                self._writing.clear()
                raise
        if records:
            self._folder.append(records)
        for record in records:
            self.summary.add(record)
            if self._on_record:
                self._on_record(record)


@dataclass(frozen=True)
class Pictures:
    """One batch as asked and as rendered, and its plain twin where the two are compared."""

    jobs: tuple[Job, ...]
    rendered: Rendered
    plain: Rendered | None

    @property
    def seconds(self) -> float:
        """One picture's share of the batch's time."""
        return self.rendered.seconds / len(self.jobs)

    def comparison(self, index: int) -> Comparison | None:
        """The two renderings of one job, or `None` where nothing is compared."""
        if self.plain is None:
            return None
        plain_seconds = self.plain.seconds / len(self.jobs)
        return Comparison(self.plain.images[index], self.rendered.images[index], plain_seconds, self.seconds)


def render_all(
    jobs: Iterable[Job], render: Callable[[Sequence[Job]], Pictures], batch_size: int
) -> Iterator[Pictures | Failure]:
    """Render in full batches; halve a batch that fails, and the batch size too where memory ran out."""
    pending, limit = deque(batches(jobs, batch_size)), batch_size
    while pending:
        batch = pending.popleft()
        if len(batch) > limit:
            pending.extendleft((batch[limit:], batch[:limit]))
            continue
        try:
            outcome: Pictures | Failure = render(batch)
        except Exception as error:
            half = len(batch) // 2
            if is_out_of_memory(error):
                limit = max(1, half)
                _release_memory()
                logger.warning("out of memory at batch size %d, going on with %d", len(batch), limit)
            if half:
                pending.extendleft((batch[half:], batch[:half]))
                continue
            logger.debug("job %s failed", batch[0].id, exc_info=error)
            outcome = Failure(batch[0], f"{type(error).__name__}: {error}")
        yield outcome


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: the accelerator's or, as torch words it, the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)


def _release_memory() -> None:
    gc.collect()
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


def _failed(failure: Failure) -> Record:
    settings = _settings(failure.job)
    return Record(failure.job.id, "failed", failure.job.fingerprint, error=failure.error, settings=settings)


def _settings(job: Job) -> dict[str, object]:
    return {key: value for key, value in asdict(job).items() if key != "id" and value not in (None, "")}
