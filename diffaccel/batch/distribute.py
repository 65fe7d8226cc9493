"""The same run in this process, in several processes on one machine, or in one of the ranks that a launcher started.

Every part of a run writes its own pictures into the one folder, and its records into the run's manifest, so a part that
dies loses at most the batch it was at: what it left is seen in the folder, and the rest is given to a fresh process.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread, current_thread, main_thread
from time import perf_counter
from typing import TYPE_CHECKING, Any

from diffaccel.batch.jobs import Job, dealt
from diffaccel.batch.store import OutputFolder, Record, ResultSink, StoreError, is_done, read_manifest
from diffaccel.batch.summary import Calls, Summary
from diffaccel.config.words import counted
from diffaccel.models import ModelError, ModelSource
from diffaccel.models.placement import Placement, open_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffaccel.batch.render import Renderer

MAX_STARTS = 3
OnRecord = Callable[[Record], None]


class WorkerError(RuntimeError):
    """A process that died again and again; the message says how."""


@dataclass(frozen=True)
class Share:
    """Jobs to render, and everything that rendering them takes; it travels to other processes as it is."""

    jobs: tuple[Job, ...]
    source: ModelSource
    placement: Placement = field(default_factory=Placement)
    batch_size: int = 4
    suffix: str = "png"
    compare: bool = False
    fail_fast: bool = False
    lora_partial: bool = False
    allow_flagged: bool = False

    def pipeline(self) -> "DiffusionPipeline":
        """The pipeline that renders the jobs."""
        return open_pipeline(
            self.source, self.jobs[0].dtype, self.jobs[0].vae, self.placement, embeddings=self.jobs[0].embeddings
        )

    @property
    def overlap(self) -> bool:
        """Whether parts of the pipeline may run side by side, which they may not where they share memory in turns."""
        return self.placement.device_map is None

    def run(self, renderer: "Renderer", sink: ResultSink, on_record: OnRecord | None = None) -> Summary:
        """Render the jobs into a sink."""
        from diffaccel.batch.run import BatchRun

        run = BatchRun(
            renderer,
            sink,
            batch_size=self.batch_size,
            suffix=self.suffix,
            compare=self.compare,
            fail_fast=self.fail_fast,
            allow_flagged=self.allow_flagged,
            on_record=on_record,
        )
        return run(self.jobs)


def render_parts(parts: Iterable[Share], folder: ResultSink, on_record: OnRecord) -> tuple[Summary, Calls]:
    """Render parts in this process into an open folder, one after another as they come, on the first one's pipeline."""
    from diffaccel.batch.render import Renderer

    summary, calls = Summary(), Calls()
    with ExitStack() as stack:
        renderer = None
        for part in parts:
            renderer = renderer or stack.enter_context(
                Renderer(part.pipeline(), overlap=part.overlap, lora_partial=part.lora_partial)
            )
            calls = renderer.calls
            summary += part.run(renderer, folder, on_record)
            if part.fail_fast and summary.failed:
                break
    return summary, calls


def split(part: Share, count: int) -> list[Share]:
    """Parts for `count` processes: full batches dealt out in turn, and devices in turn where there are several."""
    return [
        replace(part, jobs=jobs, placement=_placed(part.placement, device))
        for jobs, device in zip(dealt(part.jobs, count, part.batch_size), _devices(count), strict=True)
        if jobs
    ]


def _placed(placement: Placement, device: str | None) -> Placement:
    return placement if placement.device else replace(placement, device=device)


def _devices(count: int) -> list[str | None]:
    """One device for each process, all accelerators in turn; `None`, the default, where there is at most one."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    number = torch.accelerator.device_count() if accelerator else 0
    return [f"{accelerator.type}:{index % number}" if accelerator and number > 1 else None for index in range(count)]


def rank() -> tuple[tuple[int, int], str | None] | None:
    """Shard and device of a process that `accelerate launch` or torchrun started, or `None` for any other."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1 or "RANK" not in os.environ:  # what set the one for purposes of its own starts no ranks
        return None
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return (int(os.environ["RANK"]) + 1, ranks), _devices(local + 1)[local]


@dataclass
class _Worker:
    """One process at work on one part, and the end of the pipe on which its records arrive."""

    part: Share
    company: int
    starts: int = 0
    process: SpawnProcess = field(init=False)
    receiver: Connection = field(init=False)

    def start(self, folder: OutputFolder) -> None:
        """Start a fresh process on the part."""
        context = multiprocessing.get_context("spawn")
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=self.arguments(folder, sender))
        self.starts += 1
        with _deaf_to_ctrl_c():
            self.process.start()
        sender.close()

    def arguments(self, folder: OutputFolder, sender: Connection) -> tuple[Any, ...]:
        """What `_work` is called with."""
        return self.part, folder.path, folder.shard, self.company, sender


class Processes:
    """Renders a part in several processes; a process that dies is replaced and goes on where it stopped.

    Args:
        folder: open, held by this process for all of them.
        on_record: called in this process for every record.
    """

    def __init__(self, folder: OutputFolder, on_record: OnRecord) -> None:
        self._folder, self._on_record = folder, on_record
        self._summary, self._calls = Summary(), Calls()
        self._seen: set[str] = set()

    def __call__(self, part: Share, count: int) -> tuple[Summary, Calls]:
        """Render `part` in `count` processes.

        Raises:
            WorkerError: a process died `MAX_STARTS` times.
            StoreError, ModelError: as in one process.
        """
        start = perf_counter()
        parts = split(part, count)
        workers = [_Worker(each, len(parts)) for each in parts]
        with _reaped(workers):
            for worker in workers:
                worker.start(self._folder)
            while workers and not (part.fail_fast and self._summary.failed):
                ready = wait([worker.receiver for worker in workers])
                for worker in [worker for worker in workers if worker.receiver in ready]:
                    if not self._receive(worker):
                        workers.remove(worker)
        self._summary.seconds = perf_counter() - start
        return self._summary, self._calls

    def _receive(self, worker: _Worker) -> bool:
        """Take one message of a worker, or notice its end; whether it is still at work."""
        try:
            message = worker.receiver.recv()
        except (EOFError, OSError):  # the second where it died in the middle of a message
            return self._ended(worker)
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Calls):
            self._calls += message
        else:
            self._take(message)
        return True

    def _take(self, record: Record) -> None:
        self._seen.add(record.id)
        self._summary.add(record)
        self._on_record(record)

    def _ended(self, worker: _Worker) -> bool:
        """Start a worker that died once more on what it left undone; whether it is still at work."""
        worker.process.join()
        if worker.process.exitcode == 0:
            return False
        records = read_manifest(self._folder.path)
        for job in worker.part.jobs:
            record = records.get(job.id)
            mine = record is not None and record.time >= self._folder.since and job.id not in self._seen
            if record and mine and is_done(job, record, self._folder.path, worker.part.suffix):
                self._take(record)
        left = tuple(job for job in worker.part.jobs if job.id not in self._seen)
        if not left:
            return False
        if worker.starts == MAX_STARTS:
            code = worker.process.exitcode
            raise WorkerError(
                f"a process died {MAX_STARTS} times (exit code {code}), {counted(len(left), 'picture')} left"
            )
        worker.part = replace(worker.part, jobs=left)
        worker.start(self._folder)
        return True


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C, which a terminal sends to all: the run's own process ends them."""
    if current_thread() is not main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _reaped(workers: list[_Worker]) -> Iterator[None]:
    """Whatever happens, no process outlives the run; one may be stopped at any moment without harm to the folder."""
    try:
        yield
    finally:
        started = [worker.process for worker in workers if worker.starts]
        for process in started:
            process.terminate()
        for process in started:
            process.join()


def _work(part: Share, folder: Path, shard: tuple[int, int] | None, company: int, sender: Connection) -> None:
    """What one of so many processes does: its part, with the run's manifest, telling of each record."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // company))
    end_with_parent()
    try:
        with OutputFolder(folder, shard, guarded=False) as opened:
            _, calls = render_parts([part], opened, sender.send)
            sender.send(calls)
    except (StoreError, ModelError) as error:
        sender.send(type(error)(str(error)))


def end_with_parent() -> None:
    """Have this process end where the one that started it is killed: its folder is free for others from then on."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is called in processes that another one started"

    def wait_for_it() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=wait_for_it, name="diffaccel-parent", daemon=True).start()
