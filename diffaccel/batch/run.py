"""A run: batches through the renderer, pictures to disk on other threads, every job's end in the manifest.

While one batch is denoised, the batch before it is decoded, the prompts of the batch after it are encoded, and finished
pictures are compressed, written and recorded, each on threads of their own, where no Ctrl-C comes between a picture and
its line of the manifest.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO

from diffaccel.batch.compare import Comparison, side_by_side
from diffaccel.batch.jobs import Job
from diffaccel.batch.line import Failure, ProductionLine
from diffaccel.batch.metadata import encode
from diffaccel.batch.render import Rendered, Renderer
from diffaccel.batch.store import COMPARE, Record, ResultSink, StoreError
from diffaccel.batch.summary import Summary

WRITERS = 4
MAX_PENDING = 16
FLAGGED = (
    "the model's safety checker found the picture unsuitable and blackened it; --allow-flagged keeps such pictures"
)


class BatchRun:
    """Renders jobs into an open output folder, or into what stands in for one.

    Args:
        on_record: called after each job's record is on disk, in the caller's thread.
        suffix: `png`, `jpg` or `webp`.
        compare: render what is cached without caching too, and write both side by side into `compare/`.
        allow_flagged: keep what the model's safety checker blackened, instead of failing.
        fail_fast: stop at the first job that fails.
    """

    def __init__(
        self,
        renderer: Renderer,
        folder: ResultSink,
        *,
        batch_size: int = 8,
        suffix: str = "png",
        compare: bool = False,
        fail_fast: bool = False,
        allow_flagged: bool = False,
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self.summary = Summary()
        self._renderer, self._folder = renderer, folder
        self._batch_size, self._suffix, self._compare, self._fail_fast = batch_size, suffix, compare, fail_fast
        self._allow_flagged, self._on_record = allow_flagged, on_record
        self._writing: deque[tuple[int, Future[list[Record]]]] = deque()

    def __call__(self, jobs: Iterable[Job]) -> Summary:
        """Render `jobs`; what was rendered is on disk even when this is interrupted.

        Raises `StoreError` when a picture cannot be written.
        """
        jobs = tuple(jobs)
        if self._compare and jobs:
            self._warm_up(jobs[0])
        start = time.perf_counter()
        clerk = ThreadPoolExecutor(1, thread_name_prefix="diffaccel-record")
        writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="diffaccel-write")
        with clerk, writers:
            try:
                line = ProductionLine(self._start, self._renderer.encode_ahead, self._batch_size)
                line(jobs, partial(self._take, writers, clerk))
            finally:
                self._report(keep=0)
                self.summary.seconds = time.perf_counter() - start
        return self.summary

    def _warm_up(self, job: Job) -> None:
        """Spare the first compared picture the cost of first use; what cannot be rendered is reported in its turn."""
        with suppress(Exception):
            self._renderer.render([replace(job, cache="none", guidance="full", steps=2)])

    def _start(self, jobs: Sequence[Job]) -> "Callable[[], Pictures]":
        """Render a batch as far as the decoder; the returned function does the rest. A comparison is timed at once."""
        if not (self._compare and _is_cached(jobs[0])):
            finish = self._renderer.start(jobs)
            return lambda: Pictures(tuple(jobs), finish(), None)
        plain = self._renderer.render([replace(job, cache="none", guidance="full") for job in jobs])
        pictures = Pictures(tuple(jobs), self._renderer.render(jobs), plain)
        return lambda: pictures

    def _take(self, writers: ThreadPoolExecutor, clerk: ThreadPoolExecutor, outcome: "Pictures | Failure") -> bool:
        """Have an outcome written and recorded; whether to go on."""
        if isinstance(outcome, Failure):
            under_way = [writers.submit(_failed, outcome)]
        else:
            under_way = [writers.submit(self._write, outcome, index) for index in range(len(outcome.jobs))]
        self._writing.append((len(under_way), clerk.submit(self._record, under_way)))
        self._report(keep=MAX_PENDING)
        return not (self._fail_fast and (self.summary.failed or isinstance(outcome, Failure)))

    def _write(self, pictures: "Pictures", index: int) -> Record:
        """Encode and write one picture (on a writer's thread); one that cannot be encoded costs only itself."""
        try:
            return self._written(pictures, index)
        except StoreError:
            raise
        except Exception as error:
            return _failed(Failure.of(pictures.jobs[index], error))

    def _written(self, pictures: "Pictures", index: int) -> Record:
        asked, job, image = pictures.jobs[index], pictures.rendered.jobs[index], pictures.rendered.images[index]
        flagged = any(pictures.rendered.flagged[index : index + 1])
        if flagged and not self._allow_flagged:
            return _failed(Failure(asked, FLAGGED))
        name, data = f"{job.file_stem}.{self._suffix}", encode(image, job, self._suffix)
        self._folder.write(name, data)
        return Record(
            id=job.id,
            status="done",
            fingerprint=asked.fingerprint,
            file_name=name,
            bytes=len(data),
            seconds=round(pictures.seconds, 4),
            flagged=flagged or None,
            remarks=list(pictures.rendered.remarks),
            settings=job.settings,
            compare=self._write_comparison(pictures, index),
            columns=dict(job.columns),
            notes=list(job.notes),
        )

    def _write_comparison(self, pictures: "Pictures", index: int) -> dict[str, object] | None:
        comparison = pictures.comparison(index)
        if comparison is None:
            return None
        job, buffer = pictures.jobs[index], BytesIO()
        side_by_side(comparison, job.cache).save(buffer, "PNG")
        name = f"{COMPARE}/{job.file_stem}.png"
        self._folder.write(name, buffer.getvalue())
        return {
            "file_name": name,
            "psnr": comparison.psnr,
            "plain_seconds": round(comparison.plain_seconds, 4),
        }

    def _record(self, under_way: "Sequence[Future[Record]]") -> list[Record]:
        """Record a batch once it is written (on the clerk's thread).

        It is recorded as a whole: what is left of a run that was killed are whole batches, which make the same files
        again.
        """
        records = [picture.result() for picture in under_way]
        self._folder.append(records)
        return records

    def _report(self, keep: int) -> None:
        """Count what is recorded, and wait until at most `keep` pictures are under way."""
        while self._writing and (self._writing[0][1].done() or sum(count for count, _ in self._writing) > keep):
            _, recorded = self._writing.popleft()
            try:
                records = recorded.result()
            except StoreError:
                self._writing.clear()
                raise
            for record in records:
                self.summary.add(record)
                if self._on_record:
                    self._on_record(record)


def _is_cached(job: Job) -> bool:
    """Whether a job, and the others of its group, are painted otherwise than in full."""
    return (job.cache, job.guidance) != ("none", "full")


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


def _failed(failure: Failure) -> Record:
    return Record(
        failure.job.id,
        "failed",
        failure.job.fingerprint,
        error=failure.error,
        detail=failure.detail,
        settings=failure.job.settings,
        columns=dict(failure.job.columns),
        notes=list(failure.job.notes),
    )
