"""The stream between threads: bounded, the latest frame wins, nothing lost without a count."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stream_pipelines import Build

from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.worker import StreamClosed, StreamWorker


def gated(stream: StreamEngine, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Lets the network run once per release."""
    gate, predict = threading.Semaphore(0), stream._network.predict

    def wait(*args: Any) -> torch.Tensor:
        assert gate.acquire(timeout=10)
        return predict(*args)

    monkeypatch.setattr(stream._network, "predict", wait)
    return gate


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_pictures_equal_those_of_the_engine(engine: Build, frames: torch.Tensor) -> None:
    expected = list(engine().stream(frames))
    with StreamWorker(engine(), input_size=9, output_size=9, drain_after=None) as worker:
        assert [worker.put(frame) for frame in frames] == list(range(9))
        worker.close(flush=True)
        outputs = list(worker)
    assert [o.frame_id for o in outputs] == list(range(9))
    assert all(torch.equal(a.image, b.image) for a, b in zip(outputs, expected, strict=True))


def test_the_latest_frame_wins(engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = engine(timestep_indices=(30,))
    gate = gated(stream, monkeypatch)
    with StreamWorker(stream) as worker:
        worker.put(frames[0])
        until(lambda: not worker._inputs)  # frame 0 is in the network
        start = time.monotonic()
        for frame in frames[1:]:
            worker.put(frame)
        assert time.monotonic() - start < 1  # put never waits
        gate.release(2)
        assert [worker.get(10).frame_id, worker.get(10).frame_id] == [0, 8]
    report = stream.report()
    assert (report.frames_in, report.frames_out, report.frames_dropped, worker.outputs_dropped) == (9, 2, 7, 0)


def test_a_slow_consumer_gets_the_latest_pictures(engine: Build, frames: torch.Tensor) -> None:
    with StreamWorker(engine(timestep_indices=(30,)), input_size=9, output_size=2) as worker:
        for frame in frames:
            worker.put(frame)
        worker.close(flush=True)
        assert [o.frame_id for o in worker] == [7, 8]
    assert worker.outputs_dropped == 7


def test_frames_in_flight_are_finished_when_nothing_comes(engine: Build, frames: torch.Tensor) -> None:
    with StreamWorker(engine(), input_size=3, drain_after=0.05) as worker:
        for frame in frames[:3]:
            worker.put(frame)
        assert [worker.get(10).frame_id for _ in range(3)] == [0, 1, 2]
        worker.put(frames[3])
        assert worker.get(10).frame_id == 3


def test_an_exception_reaches_the_consumer_and_the_stream_goes_on(
    engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = engine(timestep_indices=(30,))
    predict, calls = stream._network.predict, iter(range(100))

    def fail_once(*args: Any) -> torch.Tensor:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("the network is out of memory")
        return predict(*args)

    monkeypatch.setattr(stream._network, "predict", fail_once)
    with StreamWorker(stream, input_size=9) as worker:
        for frame in frames[:3]:
            worker.put(frame)
        worker.put("no picture")  # type: ignore[arg-type]
        assert worker.get(10).frame_id == 0
        with pytest.raises(torch.OutOfMemoryError, match="the network is out of memory"):
            worker.get(10)
        assert worker.get(10).frame_id == 2
        with pytest.raises(TypeError, match="must be a PIL image"):
            worker.get(10)
        worker.put(frames[4])
        assert worker.get(10).frame_id == 4


def test_close_ends_both_sides(engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = engine(timestep_indices=(30,))
    gate = gated(stream, monkeypatch)
    worker = StreamWorker(stream, input_size=4)
    ended: list[Any] = []
    consumer = threading.Thread(target=lambda: ended.extend(worker))
    consumer.start()
    for frame in frames[:4]:
        worker.put(frame)
    until(lambda: len(worker._inputs) == 3)
    gate.release()
    worker.close()
    worker.close()
    consumer.join(10)
    assert not consumer.is_alive()
    assert not worker._thread.is_alive()
    assert [o.frame_id for o in ended] == [0]
    with pytest.raises(StreamClosed, match="closed: build a new one"):
        worker.put(frames[0])
    with pytest.raises(StreamClosed, match="every picture was taken"):
        worker.get()
    report = stream.report()
    assert (report.frames_in, report.frames_out, report.frames_dropped, report.frames_in_flight) == (4, 1, 3, 0)


def test_get_times_out(engine: Build) -> None:
    with StreamWorker(engine()) as worker, pytest.raises(TimeoutError, match=r"no picture within 0.01 seconds"):
        worker.get(0.01)


def test_updates_from_another_thread(engine: Build, frames: torch.Tensor) -> None:
    stream = engine()
    with StreamWorker(stream, input_size=100, output_size=100) as worker:
        for i in range(30):
            worker.put(frames[i % 9])
            stream.update(prompt=["a cat", "a dog"][i % 2], at="new" if i % 3 else "all")
        worker.close(flush=True)
        assert [o.frame_id for o in worker] == list(range(30))


def test_a_second_worker_counts_on(engine: Build, frames: torch.Tensor) -> None:
    stream = engine(timestep_indices=(30,))
    for expected in (0, 1):
        with StreamWorker(stream) as worker:
            assert worker.put(frames[0]) == expected
            assert worker.get(10).frame_id == expected


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"input_size": 0}, "queues hold at least one item, not input_size=0"),
        ({"output_size": 0}, "output_size=0"),
        ({"drain_after": -1.0}, "drain_after must not be negative, not -1.0"),
    ],
)
def test_bad_values(arguments: dict[str, Any], match: str, engine: Build) -> None:
    with pytest.raises(ValueError, match=match):
        StreamWorker(engine(), **arguments)
