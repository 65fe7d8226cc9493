"""A run: every job ends up done or failed, whatever goes wrong on the way."""

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from diffaccel.batch import store
from diffaccel.batch.jobs import Job
from diffaccel.batch.render import Rendered
from diffaccel.batch.run import BatchRun
from diffaccel.batch.store import OutputFolder, Record, StoreError, read_manifest, to_render
from diffaccel.batch.summary import Summary
from diffaccel.models.placement import is_out_of_memory

JOBS = [Job(id=f"j{number}", prompt=f"p{number}", seed=number, model="m", dtype="float32") for number in range(10)]


class FakeRenderer:
    """Paints a job's seed as a grey; fails where it is told to."""

    def __init__(self, fits: int = 99, bad: Sequence[str] = ()) -> None:
        self.fits, self.bad, self.sizes, self.prepared = fits, bad, [], []

    def render(self, jobs: Sequence[Job]) -> Rendered:
        self.sizes.append(len(jobs))
        if len(jobs) > self.fits:
            raise torch.OutOfMemoryError("no room")
        if any(job.id in self.bad for job in jobs):
            raise ValueError("no such colour")
        shift = 0 if jobs[0].cache == "none" else 1
        images = tuple(Image.new("RGB", (8, 8), (job.seed + shift,) * 3) for job in jobs)
        return Rendered(tuple(jobs), images, 0.1 * len(jobs))

    def start(self, jobs: Sequence[Job]) -> Callable[[], Rendered]:
        rendered = self.render(jobs)
        return lambda: rendered

    def encode_ahead(self, jobs: Sequence[Job]) -> None:
        self.prepared.append(jobs[0].id)


def run(folder: Path, renderer: FakeRenderer, jobs: Sequence[Job] = JOBS, **options: object) -> Summary:
    with OutputFolder(folder) as opened:
        return BatchRun(renderer, opened, **options)(jobs)  # type: ignore[arg-type]


def test_every_picture_is_written_and_recorded_in_order(tmp_path: Path) -> None:
    seen: list[Record] = []
    summary = run(tmp_path, FakeRenderer(), batch_size=4, on_record=seen.append)
    assert (summary.done, summary.failed) == (10, 0)
    assert [record.id for record in seen] == [job.id for job in JOBS] == list(read_manifest(tmp_path))
    for job in JOBS:
        with Image.open(tmp_path / f"{job.id}.png") as picture:
            assert np.asarray(picture).max() == job.seed
    assert to_render(JOBS, tmp_path) == ()


def test_a_batch_is_recorded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a killed run has left are whole batches, which make the same pictures again."""
    recorded, append, write, late = [], OutputFolder.append, store.write_atomically, Event()

    def noted(folder: OutputFolder, records: Sequence[Record]) -> None:
        recorded.append([record.id for record in records])
        append(folder, records)

    def slow(path: Path, data: bytes) -> None:
        if path.name == "j1.png":
            assert late.wait(60)
        write(path, data)

    class Later(FakeRenderer):
        def render(self, jobs: Sequence[Job]) -> Rendered:
            if jobs[0].id == "j8":
                assert not recorded
                late.set()
            return super().render(jobs)

    monkeypatch.setattr(OutputFolder, "append", noted)
    monkeypatch.setattr(store, "write_atomically", slow)
    run(tmp_path, Later(), batch_size=2)
    ids = [job.id for job in JOBS]
    assert [name for some in recorded for name in some] == ids
    assert all(len(some) % 2 == 0 for some in recorded)


def test_prompts_of_the_next_batch_are_encoded_ahead(tmp_path: Path) -> None:
    renderer = FakeRenderer()
    run(tmp_path, renderer, batch_size=4)
    assert renderer.prepared == ["j4", "j8"]


def test_one_batch_is_finished_while_the_next_is_started(tmp_path: Path) -> None:
    """The first batch's second part waits for the second batch's first part, which no sequential run survives."""
    second_started = Event()

    class Overlapped(FakeRenderer):
        def start(self, jobs: Sequence[Job]) -> Callable[[], Rendered]:
            rendered = self.render(jobs)
            if len(self.sizes) == 2:
                second_started.set()
            return lambda: rendered if second_started.wait(30) else pytest.fail("no overlap")

    assert run(tmp_path, Overlapped(), batch_size=5).done == 10


@pytest.mark.slow
def test_what_fails_in_its_second_part_is_halved_too(tmp_path: Path) -> None:
    class LateRenderer(FakeRenderer):
        def start(self, jobs: Sequence[Job]) -> Callable[[], Rendered]:
            return lambda: self.render(jobs)

    assert run(tmp_path, LateRenderer(fits=2), batch_size=8).done == 10
    summary = run(tmp_path, LateRenderer(bad=["j3"]), batch_size=8)
    assert (summary.done, summary.failed) == (9, 1)


@pytest.mark.slow
def test_out_of_memory_halves_the_batch_for_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    renderer = FakeRenderer(fits=1)
    assert run(tmp_path, renderer, batch_size=8).done == 10
    assert renderer.sizes == [8, 4, 2, *[1] * 10]
    assert "out of memory at batch size 8, going on with 4" in caplog.messages


def test_out_of_memory_frees_what_the_batch_held_before_the_next(tmp_path: Path) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    class Hoarder(FakeRenderer):
        def render(self, jobs: Sequence[Job]) -> Rendered:
            assert all(latents() is None for latents in held)
            latents = torch.zeros(9)
            held.append(weakref.ref(latents))
            try:
                return super().render(jobs)
            except torch.OutOfMemoryError as error:
                kept = error  # the error's traceback knows this frame, and this frame the error
                raise kept from None

    gc.disable()
    try:
        assert run(tmp_path, Hoarder(fits=2), batch_size=8).done == 10
    finally:
        gc.enable()
    assert len(held) == 7


@pytest.mark.slow
def test_a_job_too_large_by_itself_fails_alone(tmp_path: Path) -> None:
    summary = run(tmp_path, FakeRenderer(fits=0), JOBS[:3], batch_size=2)
    assert (summary.done, summary.failed) == (0, 3)
    assert summary.first_error == "out of memory: no room"


def test_one_bad_job_costs_only_itself(tmp_path: Path) -> None:
    summary = run(tmp_path, FakeRenderer(bad=["j3", "j9"]), batch_size=8)
    assert (summary.done, summary.failed) == (8, 2)
    records = read_manifest(tmp_path)
    assert records["j3"].error == "could not be rendered: no such colour"
    assert records["j3"].settings["prompt"] == "p3"
    assert not (tmp_path / "j3.png").exists()
    assert to_render(JOBS, tmp_path, retry_failed=True) == (JOBS[3], JOBS[9])


def test_fail_fast_stops_at_the_first(tmp_path: Path) -> None:
    summary = run(tmp_path, FakeRenderer(bad=["j3"]), batch_size=1, fail_fast=True)
    assert (summary.done, summary.failed) == (3, 1)


def test_interrupt_leaves_what_was_rendered(tmp_path: Path) -> None:
    class Interrupted(FakeRenderer):
        def render(self, jobs: Sequence[Job]) -> Rendered:
            if jobs[0].id == "j4":
                raise KeyboardInterrupt
            return super().render(jobs)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted(), batch_size=2)
    assert list(read_manifest(tmp_path)) == ["j0", "j1", "j2", "j3"]
    assert to_render(JOBS, tmp_path) == tuple(JOBS[4:])


def test_full_disk_is_fatal_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = store.write_atomically

    def full(path: Path, data: bytes) -> None:
        if path.name == "j5.png":
            raise OSError(28, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_atomically", full)
        with pytest.raises(StoreError, match="No space left on device; repeat the command"):
            run(tmp_path, FakeRenderer(), batch_size=2)
    assert run(tmp_path, FakeRenderer(), to_render(JOBS, tmp_path)).failed == 0
    assert to_render(JOBS, tmp_path) == ()


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    run(tmp_path, FakeRenderer(), suffix=suffix)
    assert len(list(tmp_path.glob(f"*.{suffix}"))) == 10
    assert to_render(JOBS, tmp_path, suffix=suffix) == ()


def test_settings_that_a_file_cannot_hold_cost_only_their_own_picture(tmp_path: Path) -> None:
    jobs = [replace(job, prompt="心" * 9_999) if job.id == "j3" else job for job in JOBS]
    summary = run(tmp_path, FakeRenderer(), jobs, suffix="jpg", batch_size=4)
    assert (summary.done, summary.failed) == (9, 1)
    assert "use png or webp" in (read_manifest(tmp_path)["j3"].error or "")
    many = [*jobs, *(replace(job, id=f"{job.id}-{turn}") for turn in range(5) for job in JOBS)]
    assert run(tmp_path, FakeRenderer(), many, suffix="jpg", batch_size=1, fail_fast=True).done < 30


def test_comparison_shows_both_and_measures(tmp_path: Path) -> None:
    jobs = [replace(job, cache="deepcache") for job in JOBS[:3]]
    summary = run(tmp_path, FakeRenderer(), jobs, compare=True)
    assert summary.psnr == [48.13] * 3  # one grey level: 20 log10(255)
    assert summary.plain_seconds == pytest.approx(summary.cached_seconds)
    with Image.open(tmp_path / "compare" / "j2.png") as picture:
        assert picture.width > 3 * picture.height / 2
    assert read_manifest(tmp_path)["j2"].compare == {
        "file_name": "compare/j2.png",
        "psnr": 48.13,
        "plain_seconds": 0.1,
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_is_not_cached_is_compared_with_nothing(tmp_path: Path) -> None:
    """It would equal itself, and raise the mean."""
    jobs = [JOBS[0], replace(JOBS[1], cache="deepcache"), replace(JOBS[2], guidance="one-time")]
    assert run(tmp_path, FakeRenderer(), jobs, compare=True).psnr == [48.13, 100.0]  # its guidance changes nothing here
    assert {path.name for path in (tmp_path / "compare").iterdir()} == {"j1.png", "j2.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == {"j0.png", "j1.png", "j2.png"}
