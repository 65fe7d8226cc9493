"""Where works of streams meet: who shares a call, who goes first, who waits for whom."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from diffaccel.stream.concurrent_calls import ConcurrentCalls
from diffaccel.stream.shared_runner import SharedRunner
from diffaccel.stream.work import Work, WorkRunner, joined, parted


class Place:
    """A meeting place whose calls are noted; ``hold`` keeps it busy until the event is set."""

    def __init__(self, max_rows: int = 64, wait: float = 0.2, takes: float = 0.0) -> None:
        self._concurrent, self._takes = ConcurrentCalls(1, max_rows, wait, lambda _kind, _rows: None), takes
        self.shared = self._concurrent.together
        self.calls: list[list[float]] = []
        self.busy, self.go = threading.Event(), threading.Event()

    def runner(self, deadline: float | None = None) -> SharedRunner:
        runner = SharedRunner(self._concurrent, lambda _runner, rows: rows)
        runner.deadline = deadline
        return runner

    def work(self, value: float, *, rows: int = 1, width: int = 1, kind: str = "network") -> Work:
        def function(given: Mapping[str, Any]) -> torch.Tensor:
            self.calls.append(given["x"][:, 0].tolist())
            time.sleep(self._takes)
            if not all(given["x"].isfinite().flatten()):
                raise ValueError("not finite")
            return given["x"] * 2

        return Work(kind, "same", function, {"x": torch.full((rows, width), value)}, rows)

    def hold(self) -> Work:
        def function(given: Mapping[str, Any]) -> torch.Tensor:
            self.busy.set()
            self.go.wait(20)
            return given["x"]

        return Work("other", "held", function, {"x": torch.zeros(1, 1)}, 1)


def start(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def brought(place: Place, count: int) -> None:
    """Wait until so many works wait."""
    end = time.monotonic() + 20
    while len(place.shared._waiting) < count and time.monotonic() < end:
        time.sleep(0.001)
    assert len(place.shared._waiting) == count


def all_at_once(place: Place, works: list[tuple[SharedRunner, Work]]) -> list[Any]:
    """Results of works that came while the place was busy."""
    results: list[Any] = [None] * len(works)
    holder = start(lambda: place.runner().run(place.hold()))
    assert place.busy.wait(20)

    def run(k: int) -> None:
        try:
            results[k] = works[k][0].run(works[k][1])
        except ValueError as error:
            results[k] = error

    threads = []
    for k in range(len(works)):
        threads.append(start(lambda k=k: run(k)))
        brought(place, k + 1)
    place.go.set()
    for thread in [holder, *threads]:
        thread.join(20)
        assert not thread.is_alive()
    return results


def test_works_of_one_shape_are_one_call_and_each_gets_its_own() -> None:
    place = Place()
    results = all_at_once(place, [(place.runner(), place.work(k, rows=k)) for k in (1, 2, 3)])
    assert place.calls == [[1, 2, 2, 3, 3, 3]]
    assert [result.flatten().tolist() for result in results] == [[2], [4, 4], [6, 6, 6]]
    assert place.shared.counts.streams["network"] == 3


def test_who_is_due_first_goes_first() -> None:
    place = Place()
    works = [(place.runner(), place.work(1)), (place.runner(0.5), place.work(2, width=2))]
    all_at_once(place, [*works, (place.runner(0.01), place.work(3, width=3))])
    assert place.calls == [[3], [2], [1]]


def test_a_call_has_no_more_rows_than_it_may() -> None:
    place = Place(max_rows=4)
    all_at_once(place, [(place.runner(), place.work(k, rows=2)) for k in (1, 2, 3)])
    assert place.calls == [[1, 1, 2, 2], [3, 3]]


def test_rows_that_break_a_call_go_alone_until_they_are_well_again() -> None:
    place = Place()
    sick, well = place.runner(), place.runner()
    results = all_at_once(place, [(sick, place.work(float("inf"))), (well, place.work(2))])
    assert isinstance(results[0], ValueError)
    assert results[1].tolist() == [[4]]
    assert (sick.alone, well.alone) == (True, False)
    sick.run(place.work(1))
    assert not sick.alone


def test_streams_that_are_out_of_step_meet_again() -> None:
    """One is a work ahead: the other's comes first, and then they share the network."""
    place, both = Place(wait=5.0, takes=0.005), threading.Barrier(2)
    one, two = place.runner(), place.runner()

    def loop(runner: SharedRunner, kinds: list[str]) -> None:
        both.wait(20)
        for kind in kinds:
            if kind == "encode":
                runner.begin()
            runner.run(place.work(1.0, kind=kind))
        runner.leave()

    begin = time.monotonic()
    first = start(lambda: loop(one, ["encode", "network"] * 4))
    second = start(lambda: loop(two, ["network", *["encode", "network"] * 4]))
    first.join(30)
    second.join(30)
    assert time.monotonic() - begin < 5  # nobody waited in vain
    assert sum(len(call) == 2 for call in place.calls) >= 6


def test_what_only_some_have_is_zero_for_the_others() -> None:
    runner, added = WorkRunner(), torch.ones(2, 3)
    with_residuals = Work("network", 0, lambda r: r, {"x": added, "down_block_additional_residuals": [added, added]}, 2)
    without = Work("network", 0, lambda r: r, {"x": added[:1], "note": None}, 1)
    assert with_residuals.shapes != without.shapes  # another name
    alike = Work("network", 0, lambda r: r, {"x": added[:1]}, 1)
    assert with_residuals.shapes == alike.shapes
    rows = joined([with_residuals, alike])
    assert rows["x"].shape == (3, 3)
    assert [residual.sum(1).tolist() for residual in rows["down_block_additional_residuals"]] == [[3, 3, 0]] * 2
    assert [part["x"].shape[0] for part in [runner.run(with_residuals)]] == [2]


def test_rows_of_other_lengths_stay_lists() -> None:
    one = Work("network", 0, lambda r: r, {"cap_feats": torch.ones(2, 4, 3)}, 2, ("cap_feats",))
    two = Work("network", 0, lambda r: r, {"cap_feats": [torch.ones(6, 3)]}, 1, ("cap_feats",))
    assert one.shapes == two.shapes
    assert [row.shape[0] for row in joined([one, two])["cap_feats"]] == [4, 4, 6]


def test_parts_of_an_output_keep_nobody_elses_rows() -> None:
    works = [Work("network", 0, lambda r: r, {}, count) for count in (1, 2)]
    whole = torch.arange(6.0).reshape(3, 2)
    one, two = parted(([whole], whole), works)
    assert [x.tolist() for x in (one[0][0], two[1])] == [[[0, 1]], [[2, 3], [4, 5]]]
    assert two[1].untyped_storage().nbytes() == 16


def test_nothing_runs_while_it_is_quiet() -> None:
    place = Place()
    runner = place.runner()
    with runner.quiet():
        thread = start(lambda: runner.run(place.work(1)))
        brought(place, 1)
        assert place.calls == []
    thread.join(20)
    assert place.calls == [[1]]


@pytest.mark.parametrize("wait", [0.0, 0.05])
def test_who_never_comes_again_is_awaited_once(wait: float) -> None:
    place = Place(wait=wait)
    one, gone = place.runner(), place.runner()
    all_at_once(place, [(one, place.work(1)), (gone, place.work(2))])
    one.begin()
    one.run(place.work(3))
    begin = time.monotonic()
    one.begin()
    one.run(place.work(4))
    assert time.monotonic() - begin < 1.0
    assert place.calls[-2:] == [[3], [4]]
