"""Calls of one host at the same time: who runs beside whom, and that nobody's pictures and threads notice."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from test_every_method_in_streams import close, pipeline
from test_stream_host import SETTINGS, painted, together

from diffaccel import BlockCache, DeepCache, FullGuidance, SelfNegative, SlotCache, StreamEngine, StreamHost
from diffaccel.methods.base import Method
from diffaccel.stream import concurrent_calls
from diffaccel.stream.concurrent_calls import ConcurrentCalls
from diffaccel.stream.shared_runner import SharedRunner
from diffaccel.stream.work import Work


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def calls() -> ConcurrentCalls:
    return ConcurrentCalls(2, 64, 0.2, lambda _kind, _rows: None)


def streams(calls: ConcurrentCalls, count: int) -> list[SharedRunner]:
    return [SharedRunner(calls, lambda _runner, rows: rows) for _ in range(count)]


def tick(runner: SharedRunner, function: Callable[[Any], torch.Tensor], rows: int = 1) -> Callable[[], Any]:
    """A tick with one call of the network; the work's rows are what it returns."""

    def run() -> Any:
        runner.begin()
        work = Work("network", "same", lambda given: function(given["x"]), {"x": torch.ones(rows, 1)}, rows)
        return runner.run(work)

    return run


def met(runners: list[SharedRunner], rows: Mapping[int, int] | None = None) -> list[Any]:
    """Let streams tick twice, so that all know of all, and tell where each meets others."""
    for _ in range(2):
        for k, runner in enumerate(runners):
            tick(runner, torch.clone, (rows or {}).get(k, 1))()
    for runner in runners:
        runner.begin()
    return [runner.place for runner in runners]


def test_an_even_number_of_streams_is_halved(calls: ConcurrentCalls) -> None:
    places = met(streams(calls, 4))
    assert sorted(places.count(place) for place in set(places)) == [2, 2]
    assert calls.together not in places


def test_two_calls_run_at_the_same_time_and_share_out_the_threads(calls: ConcurrentCalls) -> None:
    pair, inside = streams(calls, 2), threading.Barrier(2)
    met(pair)

    def function(x: torch.Tensor) -> torch.Tensor:
        inside.wait(20)  # for the other call: one after the other would stay here
        return x * torch.get_num_threads()

    assert [shown.tolist() for shown in together([tick(runner, function) for runner in pair])] == [[[1]], [[1]]]
    assert calls.counts.calls["network"] == 6
    assert torch.get_num_threads() == 2
    assert together([torch.get_num_threads, torch.get_num_threads]) == [2, 2]  # threads that came later


@pytest.mark.parametrize("count", [1, 3, 5])
def test_streams_that_cannot_be_halved_share_all_threads(calls: ConcurrentCalls, count: int) -> None:
    runners = streams(calls, count)
    assert set(met(runners)) == {calls.together}
    threads = tick(runners[0], lambda x: x * torch.get_num_threads())()
    assert threads.tolist() == [[2]]


def test_streams_of_one_kind_are_spread_over_both_places(calls: ConcurrentCalls) -> None:
    """In order of arrival, one place would have what is large, and its streams would be served less."""
    places = met(streams(calls, 4), {0: 8, 2: 8})
    assert {places[0], places[2]} == {places[1], places[3]} == set(calls._places)


def test_everybody_meets_everybody_in_time(calls: ConcurrentCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or those beside a slow stream would be served more often for ever."""
    monkeypatch.setattr(concurrent_calls, "DEAL", 1)
    runners = streams(calls, 4)
    pairs = set()
    for _ in range(20):
        places = met(runners)
        pairs |= {(a, b) for a in range(4) for b in range(a) if places[a] is places[b]}
    assert len(pairs) == 6


def test_unequal_work_is_not_split(calls: ConcurrentCalls) -> None:
    assert set(met(streams(calls, 2), {0: 2, 1: 3})) == {calls.together}


def test_who_pauses_is_left_out(calls: ConcurrentCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent_calls, "IDLE", 0.0)
    pair = streams(calls, 2)
    assert calls.together not in met(pair)
    for _ in range(4):
        tick(pair[0], torch.clone)()
    assert pair[0].place is calls.together
    tick(pair[1], torch.clone)()
    tick(pair[0], torch.clone)()
    assert pair[0].place is not calls.together


def test_who_leaves_is_left_out(calls: ConcurrentCalls) -> None:
    runners = streams(calls, 2)
    met(runners)
    runners[1].leave()
    runners[0].begin()
    assert runners[0].place is calls.together


def test_nothing_runs_anywhere_while_it_is_quiet(calls: ConcurrentCalls) -> None:
    runners, ran = streams(calls, 2), []
    met(runners)
    threads = []
    with runners[0].quiet():
        for runner in runners:
            threads.append(threading.Thread(target=tick(runner, lambda x: ran.append(1) or x)))  # type: ignore[func-returns-value]
            threads[-1].start()
            threads[-1].join(0.05)
        assert not ran
    for thread in threads:
        thread.join(20)
    assert len(ran) == 2


def test_a_call_that_fails_tells_its_own_stream(calls: ConcurrentCalls) -> None:
    runners = streams(calls, 2)
    met(runners)

    def fails(_: torch.Tensor) -> torch.Tensor:
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        together([tick(runners[0], fails), tick(runners[1], torch.clone)])
    assert [runner.alone for runner in runners] == [True, False]


@pytest.mark.parametrize(
    ("name", "method"),
    [("sd", DeepCache(2)), pytest.param("sd3", BlockCache(threshold=0.3), marks=pytest.mark.slow)],
)
def test_streams_show_what_they_show_alone(name: str, method: Method) -> None:
    settings: list[dict[str, Any]] = [
        {"cache": method, "guidance": FullGuidance(2.0)},
        {"guidance": FullGuidance(3.0), "prompt": "a red dog", "seed": 5},
        {"cache": SlotCache(method, "frame"), "prompt": "a star", "guidance": SelfNegative(1.3)},
        {"timestep_indices": (10, 20, 30, 40), "seed": 9, "guidance": SelfNegative(1.2)},
    ]
    films = [torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    pipe = pipeline(name)
    with StreamHost(pipe, 64, wait=0.01, concurrency=2) as host:
        engines = [host.open(**SETTINGS | own) for own in settings]
        shown = together([lambda e=e, f=f: painted(e, f) for e, f in zip(engines, films, strict=True)])  # type: ignore[misc]
        assert all(place.counts.calls["network"] for place in host._concurrent._places)
    for own, film, ours in zip(settings, films, shown, strict=True):
        close(ours, painted(StreamEngine(pipe, **SETTINGS | own), film))


@pytest.mark.parametrize(
    ("concurrency", "problem"), [(0, ">= 1; got 0"), (3, "of which cpu has 2 here"), (1.5, "got 1.5")]
)
def test_a_concurrency_that_cannot_be_is_refused(concurrency: Any, problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        StreamHost(pipeline("sd"), concurrency=concurrency)


def test_an_odd_number_of_threads_is_not_halved() -> None:
    torch.set_num_threads(1)
    assert not StreamHost(pipeline("sd"))._concurrent._places


@pytest.mark.parametrize("how", ["whole", "forward", "blocks"])
def test_a_compiled_network_runs_one_call_at_a_time(how: str) -> None:
    pipe = copy.deepcopy(pipeline("sd"))  # which other tests share
    if how == "whole":
        pipe.unet = torch.compile(pipe.unet)
    elif how == "forward":
        pipe.unet.forward = torch.compile(pipe.unet.forward)
    else:
        pipe.unet.mid_block.compile()
    assert not StreamHost(pipe)._concurrent._places
    with pytest.raises(ValueError, match="not for compiled networks"):
        StreamHost(pipe, concurrency=2)
