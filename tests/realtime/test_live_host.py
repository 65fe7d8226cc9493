"""Sessions of `diffaccel live` share calls; with several processes they are placed by load and survive a death."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from live_client import Client, StubStream, get, jpeg, until

from diffaccel.realtime.engine_stream import EngineStream
from diffaccel.realtime.hub import Hub
from diffaccel.realtime.local import Show
from diffaccel.realtime.opening import most_rows, open_hub
from diffaccel.realtime.server import LiveServer, ServerOptions
from diffaccel.realtime.settings import Controls, LiveSettings
from diffaccel.realtime.workers import Workers
from diffaccel.stream.host import StreamHost

FRAME = np.full((64, 64, 3), 90, np.uint8)


def settings(tiny_sd: Path, **controls: Any) -> LiveSettings:
    told = Controls(**{"steps": 2, "similarity": False} | controls)
    return LiveSettings(model=str(tiny_sd), device="cpu", width=64, height=64, controls=told)


@pytest.mark.slow
def test_pages_share_calls_and_metrics_tell_rows(tiny_sd: Path) -> None:
    with (
        open_hub(settings(tiny_sd), limit=4) as (hub, about),
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
        Client(server) as one,
        Client(server) as two,
    ):
        for k in range(40):  # on a busy machine the frames of two pages may be apart for longer than a call waits
            for client in (one, two):
                client.frame(jpeg((6 * k, 90, 30)))
            assert one.picture()
            assert two.picture()
            _, text, _ = get(server, "/metrics?token=secret")
            lines = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if line[0] != "#"}
            calls, rows = (lines[f'diffaccel_rows_per_call_{part}{{kind="network"}}'] for part in ("count", "sum"))
            if rows > calls:
                break
    assert rows > calls > 0
    assert lines['diffaccel_rows_per_call_count{kind="decode"}'] > 0


def test_steps_that_there_is_no_room_for_are_refused_in_words(pipe: Any, tiny_sd: Path) -> None:
    with StreamHost(pipe, max_rows=5) as host:
        stream = EngineStream(pipe, settings(tiny_sd), host)
        other = EngineStream(pipe, settings(tiny_sd), host)
        with pytest.raises(ValueError, match=r"Others use too much of the network for that: take fewer steps.*--max-r"):
            stream.configure(Controls(steps=4, similarity=False))
        assert stream.push(FRAME, frame_id=0) == []
        other.close()
        stream.configure(Controls(steps=4, similarity=False))
        stream.close()
        assert host.report().streams == 0


def test_a_stream_of_another_size_takes_the_room_of_the_one_before(pipe: Any, tiny_sd: Path) -> None:
    small, large = ({"picture_size": size, "similarity": False} for size in ("64x64", "96x64"))
    with StreamHost(pipe, max_rows=5) as host:
        stream = EngineStream(pipe, settings(tiny_sd, **small, steps=4), host)
        stream.configure(Controls(**large, steps=4))
        assert host.report().rows == 4
        stream.configure(Controls(**large))
        other = EngineStream(pipe, settings(tiny_sd), host)
        with pytest.raises(ValueError, match="Others use too much of the network for that"):
            stream.configure(Controls(**small, steps=4))
        assert host.report().rows == 4
        outputs = stream.push(FRAME, frame_id=0) + stream.flush()
        assert outputs[-1].image.size == (96, 64)
        stream.close(), other.close()
        assert host.report().rows == 0


def test_a_host_has_room_for_two_steps_of_everyone() -> None:
    assert (most_rows(1), most_rows(4), most_rows(100)) == (32, 32, 400)


class Cheaper(StubStream):
    """A stream that costs less than it was set to."""

    pace = "interval 4, branch 0"


def test_a_rate_is_not_exceeded_and_pages_are_told_what_holds_it() -> None:
    about = {"model": "stub", "width": 8, "height": 8}
    with (
        Hub(Cheaper, fps=20) as hub,
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
        Client(server) as client,
    ):
        client.frame()
        client.picture()
        begin = time.monotonic()
        for _ in range(15):
            client.frame()
            client.picture()
        assert time.monotonic() - begin >= 14 / 20 - 0.01
        until(lambda: client.wait("stats")["pace"] == "interval 4, branch 0")


def test_fewer_frames_are_taken_from_a_source_than_it_shows() -> None:
    class Worker:
        """Takes note of what is put."""

        engine = SimpleNamespace(next_frame_id=0)

        def __init__(self) -> None:
            self.taken: list[int] = []

        def put(self, pixels: int) -> None:
            self.taken.append(pixels)

        def close(self, *, flush: bool) -> None:
            assert flush

    def source() -> Iterator[Any]:
        for k in range(30):
            time.sleep(0.01)
            yield SimpleNamespace(pixels=k, time=k)

    worker = Worker()
    Show(source(), None, worker, threading.Event(), None, fps=20)._feed()  # type: ignore[arg-type]
    assert worker.taken[0] == 0
    assert 5 <= len(worker.taken) <= 20  # a frame in five, or more on a busy machine, whose naps are longer
    Show(source(), None, worker, threading.Event(), None)._feed()  # type: ignore[arg-type]
    assert worker.taken[-30:] == list(range(30))


@pytest.fixture(scope="module")
def workers(tiny_sd: Path) -> Iterator[Workers]:
    calls: list[tuple[str, int]] = []
    with Workers(settings(tiny_sd), 2, 16, lambda kind, rows: calls.append((kind, rows))) as made:
        made.calls = calls  # type: ignore[attr-defined]
        yield made


@pytest.mark.slow
def test_sessions_go_where_least_is_to_do_and_outlive_a_process(workers: Workers) -> None:
    controls = workers.controls
    assert workers.about["width"] == 64
    streams = [workers.stream(controls) for _ in range(4)]
    assert [worker.sessions for worker in workers._workers] == [2, 2]
    for frame_id in range(3):
        shown = [stream.push(FRAME, frame_id=frame_id) for stream in streams]
    assert all(len(outputs) == 1 for outputs in shown)
    assert ("network", 2) in workers.calls  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="too large"):
        streams[0].configure(controls.model_copy(update={"picture_size": "999x999"}))
    assert streams[0].push(FRAME, frame_id=3)
    workers._workers[0].process.kill()
    lost = [stream for stream in streams if stream._worker is workers._workers[0]]
    assert len(lost) == 2
    for stream in lost:
        with pytest.raises(RuntimeError, match="has ended"):
            stream.push(FRAME, frame_id=4)
        assert stream.push(FRAME, frame_id=5) == []
        assert len(stream.push(FRAME, frame_id=6)) == 1
    assert workers._workers[1].sessions == 4
    for stream in streams:
        stream.close()
    assert workers._workers[1].sessions == 0


@pytest.mark.slow
def test_two_processes_behind_the_page(tiny_sd: Path) -> None:
    with (
        open_hub(settings(tiny_sd), limit=2, processes=2) as (hub, about),
        LiveServer(hub, ServerOptions(port=0, token="secret"), about) as server,
        Client(server) as one,
        Client(server) as two,
    ):
        for _ in range(3):
            one.frame()
            two.frame()
            assert one.picture()
            assert two.picture()
        until(lambda: "diffaccel_rows_per_call" in get(server, "/metrics?token=secret")[1], 2)
