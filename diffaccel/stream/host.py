"""StreamHost: many streams on one network and one autoencoder, whose frames share calls."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self
from weakref import WeakKeyDictionary

from diffaccel.config.checks import number, whole
from diffaccel.config.words import counted
from diffaccel.stream.concurrent_calls import ConcurrentCalls, concurrency_for
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.shared_calls import OnCall
from diffaccel.stream.shared_runner import SharedRunner

CLOSED = "this StreamHost is closed: build a new one"


class HostFull(ValueError):
    """There is no room for a stream, or for what it asks for now."""


@dataclass(frozen=True)
class HostReport:
    """Account of a host since it was built.

    Attributes:
        streams: open now.
        rows, max_rows: the most rows that their ticks have together, and how many are allowed.
        calls: calls by kind: "network", "controlnet", "encode", "decode".
        rows_per_call, streams_per_call: means, by kind.
        apart: streams by what keeps them from sharing calls: picture size, and where those differ tokens, and pictures
            of image prompts; empty where nothing does.
    """

    streams: int
    rows: int
    max_rows: int
    calls: Mapping[str, int]
    rows_per_call: Mapping[str, float]
    streams_per_call: Mapping[str, float]
    apart: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        means = ", ".join(f"{kind} {mean:.1f}" for kind, mean in self.rows_per_call.items())
        said = f"{counted(self.streams, 'stream')}, {self.rows} of {self.max_rows} rows; rows per call: {means or '-'}"
        turns = ", ".join(f"{counted(count, 'stream')} of {shape}" for shape, count in self.apart.items())
        return f"{said}; these take turns: {turns}" if turns else said


class StreamHost:
    """Streams that share calls of one network and one autoencoder.

    Streams of equal latent shape run their ticks together, whatever their stages, prompts, guidance, seeds, ControlNet
    scales and caches are; streams of other shapes take turns with them, and who is due first goes first. What a stream
    shows is what it would show alone, to rounding: streams come, go, fail and change without the others' noticing.
    Each stream is used from a thread of its own, or several from one, which then have nothing to share.

    Args:
        pipe: as `StreamEngine` takes it. Its weights are not changed.
        max_rows: the most rows that the ticks of all streams may have together, and so the most of a call: a stream has
            a row for each stage, times its frame buffer, twice with full guidance, one more with one-time guidance.
        wait: seconds that a call waits for the next of those streams that shared the last one.
        vae: an autoencoder to use instead of the pipeline's.
        places: streams that are expected: while fewer are open, one that grows beyond ``place_rows`` leaves as many for
            each of the others, if there is room for so many at all. 0 keeps nothing free.
        place_rows: rows of a place.
        on_call: told of every call, on the thread that makes it: "network", "controlnet", "encode" or "decode", and its
            rows.
        beside: a host of another pipeline on the same machine, whose room and turns this one shares: calls of both come
            one after the other, those with the same autoencoder together.
        concurrency: calls that run at the same time on a processor, each on its share of torch's threads, wherever the
            streams can be split evenly; None for two where torch has an even number of threads and nothing is compiled,
            else one.

    Raises:
        TypeError: for a pipeline that cannot stream.
        ValueError: for values out of range.
    """

    def __init__(
        self,
        pipe: Any,
        max_rows: int = 16,
        wait: float = 0.004,
        *,
        vae: Any = None,
        places: int = 0,
        place_rows: int = 1,
        on_call: OnCall = lambda _kind, _rows: None,
        beside: StreamHost | None = None,
        concurrency: int | None = None,
    ) -> None:
        whole("max_rows", max_rows, 1)
        number("wait", wait, 0.0, 1.0)
        whole("places", places, 0)
        whole("place_rows", place_rows, 1)
        self.pipe, self._vae = pipe, vae
        self.max_rows: int = max_rows if beside is None else beside.max_rows
        fits = places * place_rows <= max_rows
        self._places: tuple[int, int] = (places if fits else 0, place_rows) if beside is None else beside._places
        count = concurrency_for(pipe, concurrency) if beside is None else 1
        self._concurrent: ConcurrentCalls = (
            ConcurrentCalls(count, max_rows, wait, on_call) if beside is None else beside._concurrent
        )
        self._rows: WeakKeyDictionary[SharedRunner, int] = WeakKeyDictionary() if beside is None else beside._rows
        self._lock: Any = threading.RLock() if beside is None else beside._lock
        self._engines: WeakKeyDictionary[StreamEngine, None] = WeakKeyDictionary()
        self._closed = False

    def open(self, **settings: Any) -> StreamEngine:
        """A new stream, with the settings of `StreamEngine`.

        Raises:
            HostFull: where it would have more rows than are left.
            RuntimeError: after `close`.
            TypeError, ValueError: as `StreamEngine`.
        """
        return StreamEngine(self.pipe, **{"vae": self._vae, **settings}, host=self)

    def keep(self, engine: StreamEngine) -> None:
        """Count a new stream among the host's own, however it was built; for `StreamEngine`.

        Raises:
            RuntimeError: after `close`.
        """
        with self._lock:
            if not self._closed:
                self._engines[engine] = None
                return
        engine.close()
        raise RuntimeError(CLOSED)

    def runner(self, pipe: Any) -> SharedRunner:
        """How a new stream's calls are run; for `StreamEngine`.

        Raises:
            RuntimeError: after `close`.
            ValueError: for another pipeline than the host's.
        """
        if self._closed:
            raise RuntimeError(CLOSED)
        if pipe is not self.pipe:
            raise ValueError("this stream's pipeline is not the host's: open it with host.open(...)")
        return SharedRunner(self._concurrent, self._reserve)

    def _reserve(self, runner: SharedRunner, rows: int | None) -> int | None:
        with self._lock:
            before = self._rows.get(runner)
            if rows is None:
                self._rows.pop(runner, None)
            else:
                if before is None or rows > before:  # who takes less is always let
                    self._require_room(rows, [n for other, n in self._rows.items() if other is not runner])
                self._rows[runner] = rows
            return before

    def _require_room(self, rows: int, others: Sequence[int]) -> None:
        taken, streams, (places, each) = sum(others), len(others), self._places
        kept = each * max(0, places - streams - 1) if rows > each else 0
        if taken + rows + kept > self.max_rows:
            to_come = f", and {kept} are kept for streams to come" if kept else ""
            raise HostFull(
                f"a tick of this stream has {counted(rows, 'row')}, and {counted(streams, 'other stream')} of this "
                f"host take{'s' if streams == 1 else ''} {taken} of max_rows={self.max_rows}{to_come}: use fewer "
                "stages, a smaller frame_buffer or cheaper guidance, close a stream, or build the host with more"
            )

    def report(self) -> HostReport:
        """Account of the calls so far."""
        counts = self._concurrent.counts
        with self._lock:
            streams, rows = len(self._rows), sum(self._rows.values())
            apart = _apart([engine for engine in self._engines if engine._runner in self._rows])
        calls = dict(counts.calls)
        return HostReport(
            streams=streams,
            rows=rows,
            max_rows=self.max_rows,
            calls=calls,
            rows_per_call={kind: counts.rows[kind] / n for kind, n in calls.items()},
            streams_per_call={kind: counts.streams[kind] / n for kind, n in calls.items()},
            apart=apart,
        )

    def close(self) -> None:
        """Close every stream; waits for the call that is running. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            engines = list(self._engines)
        for engine in engines:
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _apart(engines: Sequence[StreamEngine]) -> dict[str, int]:
    """How many streams have each shape, in words; none where all have the same."""
    told = [engine._course.settings.positive for engine in engines]
    sizes = [f"{engine.config.width} x {engine.config.height}" for engine in engines]
    ragged = any(engine._network.ragged for engine in engines)  # whose prompts may be of any length in one call
    tokens, pictures = [each.tokens for each in told], [each.pictures for each in told]
    for name, each in (("tokens", [] if ragged else tokens), ("pictures", pictures)):
        if len(set(each)) > 1:
            sizes = [f"{size}, {count} {name}" for size, count in zip(sizes, each, strict=True)]
    found = Counter(sizes)
    return dict(found) if len(found) > 1 else {}
