"""Where the time of a tick goes, on a clock that is set by hand."""

from collections.abc import Iterator

import pytest
import torch

from diffaccel.stream.stopwatch import Clock


def test_parts_of_a_tick_add_up_and_the_next_one_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([0.0, 0.010, 0.020, 0.050, 1.0, 1.004, 2.0, 2.001])
    monkeypatch.setattr("diffaccel.stream.stopwatch.time.perf_counter", lambda: next(times))
    clock = Clock(torch.device("cpu"), window=2)
    for _ in range(2):
        with clock.stage("encode"):
            pass
    assert clock.finish(waited=False) == pytest.approx({"encode": 40.0, "total": 40.0})
    with clock.stage("denoise"):
        pass
    assert clock.finish(waited=True) == pytest.approx({"denoise": 4.0, "total": 4.0})
    with pytest.raises(KeyError), clock.stage("encode"):
        raise KeyError
    assert clock.finish(waited=True) == pytest.approx({"encode": 1.0, "total": 1.0})  # what failed took its time, too
    assert (clock.ticks, dict(clock.sums)) == (3, pytest.approx({"encode": 41.0, "total": 45.0, "denoise": 4.0}))
    for milliseconds in (100.0, 20.0, 30.0):
        clock.latency(milliseconds)
    summary = clock.summary()
    assert set(summary) == {"encode", "denoise", "total", "latency"}
    assert summary["latency"] == pytest.approx({"median": 25.0, "mean": 25.0, "p95": 29.5})  # of the last two
    assert summary["denoise"] == pytest.approx({"median": 4.0, "mean": 4.0, "p95": 4.0})
