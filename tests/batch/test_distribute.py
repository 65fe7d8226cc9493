"""Several processes make the same set of files as one, also when one of them is killed on the way."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffaccel import models
from diffaccel.batch.distribute import Processes, Share, WorkerError, end_with_parent, rank, render_parts, split
from diffaccel.batch.jobs import Job
from diffaccel.batch.store import OutputFolder, Record, read_manifest
from diffaccel.config.files import write_atomically
from diffaccel.models.placement import Placement

pytestmark = pytest.mark.slow

JOBS = tuple(
    Job(id=f"j{number}", prompt=f"p{number}", seed=number, model="m", dtype="float32", steps=2 + number % 2)
    for number in range(14)
)


def part(tiny_sd: Path, **options: object) -> Share:
    return Share(JOBS, models.resolve(tiny_sd), batch_size=2, **options)  # type: ignore[arg-type]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_split_deals_full_batches(tiny_sd: Path, count: int) -> None:
    parts = split(part(tiny_sd), count)
    assert Counter(job for each in parts for job in each.jobs) == Counter(JOBS)
    sizes = [len(each.jobs) for each in parts]
    assert max(sizes) - min(sizes) <= 2
    assert len(parts) == min(count, 8)
    assert all(each.placement.device is None for each in parts)


def test_rank_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank() is None
    with monkeypatch.context() as patch:  # a variable of something else
        patch.setenv("WORLD_SIZE", "4")
        assert rank() is None
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert rank() == ((3, 4), None)


def test_killed_process_is_replaced_and_loses_nothing(tiny_sd: Path, tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "one") as folder:
        render_parts([part(tiny_sd)], folder, lambda record: None)
    seen: list[Record] = []

    def kill_at_the_third(record: Record) -> None:
        seen.append(record)
        if len(seen) == 3:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    with OutputFolder(tmp_path / "two") as folder:
        summary, _ = Processes(folder, kill_at_the_third)(part(tiny_sd), 2)
    assert (summary.done, summary.failed) == (len(JOBS), 0)
    assert Counter(record.id for record in seen) == Counter(job.id for job in JOBS)
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")
    assert set(read_manifest(tmp_path / "two")) == {job.id for job in JOBS}
    others = {path.name for path in (tmp_path / "two").iterdir() if path.suffix != ".png"}
    assert others == {path.name for path in (tmp_path / "one").iterdir() if path.suffix != ".png"}
    assert not multiprocessing.active_children()


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Where it was killed, its folder is free, and a run that goes on there must be alone."""
    parent = multiprocessing.get_context("spawn").Process(target=_start_one, args=(tmp_path / "child",))
    parent.start()
    while not (tmp_path / "child").exists():
        time.sleep(0.01)
    child = int((tmp_path / "child").read_text())
    parent.kill()
    parent.join()
    end = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()


def _start_one(file: Path) -> None:
    multiprocessing.get_context("spawn").Process(target=_work_for_ever, args=(file,)).start()
    time.sleep(60)


def _work_for_ever(file: Path) -> None:
    end_with_parent()
    write_atomically(file, str(os.getpid()))
    time.sleep(60)


def test_the_first_failure_stops_all_processes_where_that_is_asked(tiny_sd: Path, tmp_path: Path) -> None:
    bad = replace(JOBS[0], id="bad", init_image="nowhere.png")
    many = tuple(replace(job, id=f"{job.id}-{turn}") for turn in range(40) for job in JOBS)
    whole = Share((bad, *many), models.resolve(tiny_sd), batch_size=2, fail_fast=True)
    with OutputFolder(tmp_path) as folder:
        summary, _ = Processes(folder, lambda record: None)(whole, 2)
    assert summary.failed == 1
    assert summary.done < len(many) // 2
    assert not multiprocessing.active_children()


def test_a_process_that_always_dies_is_fatal(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffaccel.batch.distribute._work", os._exit)
    monkeypatch.setattr("diffaccel.batch.distribute._Worker.arguments", lambda self, folder, sender: (3,))
    with (
        OutputFolder(tmp_path) as folder,
        pytest.raises(WorkerError, match=r"died 3 times \(exit code 3\), 14 pictures"),
    ):
        Processes(folder, lambda record: None)(part(tiny_sd), 1)


def test_model_error_of_a_process_is_the_runs(tmp_path: Path, tiny_sd: Path) -> None:
    with OutputFolder(tmp_path) as folder, pytest.raises(models.ModelError, match="no device 'cuda'"):
        Processes(folder, lambda record: None)(part(tiny_sd, placement=Placement(device="cuda")), 1)
    assert not multiprocessing.active_children()


def test_pictures_of_an_earlier_run_do_not_count_for_a_process_that_died(tiny_sd: Path, tmp_path: Path) -> None:
    """In a run that starts over they are there, whole and with these settings, and are to be painted again."""
    asked, seen = replace(part(tiny_sd), jobs=JOBS[:2]), list[str]()
    with OutputFolder(tmp_path) as folder:
        for job in asked.jobs:
            folder.write(f"{job.id}.png", b"abc")
            folder.append([Record(job.id, "done", job.fingerprint, f"{job.id}.png", 3)])
    with OutputFolder(tmp_path) as folder:
        processes = Processes(folder, lambda record: seen.append(record.id))
        folder.append([Record("j0", "done", JOBS[0].fingerprint, "j0.png", 3)])
        ended = SimpleNamespace(join=lambda: None, exitcode=1)
        worker = SimpleNamespace(part=asked, process=ended, starts=1, start=lambda folder: None)
        assert processes._ended(worker)  # type: ignore[arg-type]
    assert (seen, worker.part.jobs) == (["j0"], JOBS[1:2])
