"""The output folder: pictures that are whole or absent, and an append-only manifest of what was done.

A picture is written under a temporary name, synced and renamed, and only then is its line appended to the manifest. So
a run that is killed leaves at most a picture without a line, which the next run renders again to the same bytes.
"""

import heapq
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from filelock import FileLock, Timeout

from diffaccel.batch.jobs import Job
from diffaccel.config.files import write_atomically
from diffaccel.models.source import is_there

Status = Literal["done", "failed"]

PATIENCE = 1.0
"""Seconds within which a run that only looks whether another one is there has looked."""

SHEET, COMPARE, TARS, PARQUET = "index.html", "compare", "tars", "pictures.parquet"
MANIFEST, _MANIFESTS = "manifest.jsonl", "manifest*.jsonl"
_BEGIN = b'{"id": "'
_LONGEST_LINE = 500_000  # bytes, with prompts of ten thousand characters that JSON escapes
_TEMPORARY = ".*." + "[0-9a-f]" * 32 + ".tmp"


class StoreError(OSError):
    """An output folder that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Record:
    """One line of the manifest: what became of one job.

    Attributes:
        file_name: of the picture, and `bytes` its length, by which a truncated file is noticed.
        seconds: the job's share of its batch's time.
        detail: what a library said of an error, in full.
        flagged: whether the model's safety checker blackened the picture, which was kept all the same.
        remarks: what libraries said while the picture's batch was rendered.
        compare: file, PSNR in dB and seconds of the uncached picture, where one was rendered for comparison.
        columns: of the row's table, that are no settings.
        notes: what there was to say about the row beforehand.
        time: when it was written down, in seconds since 1970: the latest of a job's records counts, in whatever file.
    """

    id: str
    status: Status
    fingerprint: str = ""
    file_name: str | None = None
    bytes: int | None = None
    seconds: float | None = None
    error: str | None = None
    detail: str | None = None
    flagged: bool | None = None
    remarks: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    compare: dict[str, Any] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    time: float = field(default=0.0, compare=False)

    def line(self) -> str:
        """The record as one line of JSON, without what is absent."""
        return json.dumps({key: value for key, value in asdict(self).items() if value not in (None, {}, [])})


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into a `StoreError` that says where, why, and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"cannot write to {folder}: {reason}; repeat the command once that is mended") from error


class ResultSink(Protocol):
    """What a run writes to: an output folder, or whatever stands in for one."""

    def write(self, file_name: str, data: bytes) -> None:
        """Keep one file."""

    def append(self, records: Sequence[Record]) -> None:
        """Keep the records of jobs that have ended."""


class OutputFolder:
    """An output folder that one run holds; use it with `with`.

    Args:
        path: created where it does not exist.
        shard: `(index, count)` where several runs share the folder, each with its own part of the jobs and a manifest
            of its own.
        guarded: keep other runs out; a process that works for a run which holds the folder does not, and adds to that
            run's manifest.

    Attributes:
        since: records of earlier runs have earlier times, also where a clock went back.

    Raises:
        StoreError: the folder cannot be created or written, or another run holds it.
    """

    def __init__(self, path: Path, shard: tuple[int, int] | None = None, *, guarded: bool = True) -> None:
        self.path, self.shard, self._guarded, self.since = path, shard, guarded, 0.0
        name = f"-{shard[0]}-of-{shard[1]}" if shard else ""
        self._manifest_path = path / f"manifest{name}.jsonl"
        self._lock_path = path / f".lock{name}"
        self._turn = path / f".turn{name}"
        self._stack = ExitStack()
        self._manifest: IO[bytes] | None = None

    def __enter__(self) -> "OutputFolder":
        with ExitStack() as opened, explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self._guarded:
                opened.enter_context(_only_run(self._lock_path))
            self._manifest = opened.enter_context(self._manifest_path.open("ab"))
            self.since = max(map(_last_time, self.path.glob(_MANIFESTS))) + 0.001
            if self._guarded:
                _end_torn_line(self._manifest_path, self._manifest)
                if self.shard is None:
                    _remove_leftovers(self.path)
            self._stack = opened.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._guarded:  # nobody is left who works for it
            self._turn.unlink(missing_ok=True)
            if self.shard is None:
                _remove_leftovers(self.path)
        self._stack.close()

    def append(self, records: Sequence[Record]) -> None:
        """Add records to the manifest, on disk before this returns. Raises `StoreError` where they cannot be."""
        assert self._manifest is not None, "the folder is not open: use it with `with`"
        now = max(round(time.time(), 3), self.since)
        lines = [replace(record, time=now).line().encode() + b"\n" for record in records]
        with explained(self.path), nullcontext() if self._guarded else FileLock(self._turn):
            if not self._guarded:  # another process may have died in the middle of a line
                _end_torn_line(self._manifest_path, self._manifest)
            self._manifest.write(b"".join(lines))
            self._manifest.flush()
            os.fsync(self._manifest.fileno())

    def write(self, file_name: str, data: bytes) -> None:
        """Write one file of the folder atomically. Raises `StoreError` where it cannot be written."""
        target = self.path / file_name
        with explained(self.path):
            target.parent.mkdir(exist_ok=True)
            write_atomically(target, data)


def kept_for_all(path: Path, agree: Callable[[bytes], bytes]) -> bytes:
    """What `path` holds from now on: what `agree` makes of what it held, one run at a time; of nothing at first.

    Raises `StoreError` where it cannot be written.
    """
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            kept = path.read_bytes() if path.exists() else b""
            agreed = agree(kept)
            if agreed != kept:
                write_atomically(path, agreed)
            return agreed


def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of runs and processes that were killed, and no one else's."""
    for place in (folder, folder / COMPARE, folder / TARS):
        for leftover in place.glob(_TEMPORARY):
            leftover.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise `StoreError` where `folder` cannot be created or written, without creating anything."""
    existing = next(place for place in (folder, *folder.absolute().parents) if is_there(place))
    if not existing.is_dir():
        raise StoreError(f"cannot write to {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write to {folder}: no permission to write in {existing}")


def check_output(folder: Path, names: Iterable[str] = (SHEET,)) -> None:
    """Raise `StoreError` where a run cannot write to `folder`, or would replace or add to what others keep there.

    Args:
        names: of what the run will write beside its pictures and its manifest.
    """
    check_writable(folder)
    strange = [MANIFEST] if _is_of_others(folder / MANIFEST) else []
    if not strange and not any(folder.glob(_MANIFESTS)):
        strange = [name for name in names if is_there(folder / name)]
    if strange:
        raise StoreError(f"{folder} holds {strange[0]}, which is not of an earlier run: use another folder")


def _is_of_others(manifest: Path) -> bool:
    """Whether a file of that name is there, and its first line is no record, nor the beginning of one."""
    try:
        with manifest.open("rb") as stream:
            line = stream.readline()
        found = json.loads(line)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(f"cannot read {manifest}: {error.strerror or error}") from error
    except ValueError:
        return not (line.startswith(_BEGIN) or _BEGIN.startswith(line.rstrip()))
    return not (isinstance(found, dict) and {"id", "status"} <= found.keys())


@contextmanager
def _only_run(lock_path: Path) -> Iterator[None]:
    """Hold the run's lock. A run over the whole folder excludes every other; shards only exclude themselves and it."""
    whole = lock_path.with_name(".lock")
    rivals = lock_path.parent.glob(".lock-*") if lock_path == whole else [whole]
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(lock_path, timeout=0))
            for rival in rivals:
                with FileLock(rival).acquire(PATIENCE, 0.01):  # shards that start together all look here
                    pass
        except Timeout as error:
            raise StoreError(f"another run holds {lock_path.parent}: wait for it, or use another folder") from error
        yield


def _end_torn_line(path: Path, manifest: IO[bytes]) -> None:
    """Close a last line that was cut short, so that the next record starts a line of its own."""
    with path.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) and stream.seek(-1, os.SEEK_END) >= 0 and stream.read(1) != b"\n":
            manifest.write(b"\n")


def read_manifest(folder: Path) -> dict[str, Record]:
    """The latest record of every job in `folder`, of all shards; lines that were cut short are passed over.

    Raises `StoreError` where a manifest cannot be read.
    """
    files = [_read_records(path) for path in sorted(folder.glob(_MANIFESTS))]
    records: dict[str, Record] = {}
    for record in heapq.merge(*files, key=lambda record: record.time):
        records.pop(record.id, None)
        records[record.id] = record
    return records


def _last_time(manifest: Path) -> float:
    """When the last record of a manifest was written down; 0 where it has none."""
    with manifest.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LONGEST_LINE))
        last = next(_records_in(reversed(stream.read().splitlines())), None)
    return last.time if last else 0.0


def _read_records(path: Path) -> Iterator[Record]:
    """The records of one manifest, in their order."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    return _records_in(lines)


def _records_in(lines: Iterable[bytes]) -> Iterator[Record]:
    """The records of lines that are whole."""
    for line in lines:
        with suppress(ValueError, TypeError, RecursionError):
            record = Record(**json.loads(line))
            if (
                isinstance(record.id, str)
                and isinstance(record.time, int | float)
                and isinstance(record.settings, dict)
            ):
                yield record


def shows(record: Record, job: Job) -> bool:
    """Whether the record is of a picture with the job's settings, be it that the pipeline filled in what was open."""
    return record.fingerprint == job.fingerprint or (record.status == "done" and record.settings == job.settings)


def is_done(job: Job, record: Record | None, folder: Path, suffix: str) -> bool:
    """Whether the job's picture exists, whole, with the settings that the job asks for, be it retouched since."""
    if record is None or record.status != "done":
        return False
    name = f"{job.file_stem}.{suffix}"
    if record.file_name != name or not shows(record, job):
        return False
    from diffaccel.batch.guests import is_changed

    try:
        return (folder / name).stat().st_size == record.bytes or is_changed(folder / name, record.settings)
    except OSError:  # it is not there, or a link to nowhere is: writing it anew replaces that
        return False


def with_other_columns(jobs: Iterable[Job], records: Mapping[str, Record], folder: Path, suffix: str) -> list[Record]:
    """Records of pictures that are done, anew where the rows that ask for them have other columns by now."""
    asked = [(job, records[job.id], dict(job.columns)) for job in jobs if job.columns and job.id in records]
    return [
        replace(record, columns=columns)
        for job, record, columns in asked
        if record.columns != columns and is_done(job, record, folder, suffix)
    ]


def to_render(
    jobs: Iterable[Job],
    folder: Path,
    *,
    suffix: str = "png",
    overwrite: bool = False,
    retry_failed: bool = False,
    records: Mapping[str, Record] | None = None,
    allow_flagged: bool = True,
) -> tuple[Job, ...]:
    """The jobs that `folder` has no whole picture of in this format; all of them; or those that failed before.

    Args:
        records: of the folder's manifest, where that was read already.
        allow_flagged: blackened pictures that an earlier run kept count.
    """
    if overwrite and not retry_failed:
        return tuple(jobs)
    records = read_manifest(folder) if records is None else records
    if retry_failed:
        failed = {record.id for record in records.values() if record.status == "failed"}
        return tuple(job for job in jobs if job.id in failed)

    def counts(job: Job) -> bool:
        record = records.get(job.id)
        return is_done(job, record, folder, suffix) and (allow_flagged or not (record and record.flagged))

    return tuple(job for job in jobs if not counts(job))
