"""A run that is killed, again and again, loses nothing, tears nothing, and ends with the files of an unbroken run."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from diffaccel.batch.jobs import Job
from diffaccel.batch.render import Rendered
from diffaccel.batch.run import BatchRun
from diffaccel.batch.store import OutputFolder, read_manifest, to_render

JOBS = [Job(id=f"j{number:03}", prompt=f"p{number}", seed=number, model="m", dtype="float32") for number in range(80)]


class SlowRenderer:
    """Paints noise from the job's seed, a batch every few milliseconds."""

    def render(self, jobs: Sequence[Job]) -> Rendered:
        time.sleep(0.004)
        return Rendered(tuple(jobs), tuple(paint(job.seed) for job in jobs), 0.004)

    def start(self, jobs: Sequence[Job]) -> Callable[[], Rendered]:
        return partial(self.render, jobs)

    def encode_ahead(self, jobs: Sequence[Job]) -> None:
        pass


def paint(seed: int) -> Image.Image:
    return Image.frombytes("RGB", (96, 96), random.Random(seed).randbytes(96 * 96 * 3))


def render_the_rest(folder: Path) -> None:
    with OutputFolder(folder) as opened:
        BatchRun(SlowRenderer(), opened, batch_size=2)(to_render(JOBS, folder))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def pictures(folder: Path) -> int:
    return len(list(folder.glob("*.png")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_runs_add_up_to_an_unbroken_one(tmp_path: Path) -> None:
    """Each run is killed a chance moment after its first new pictures, so that no machine is done too soon."""
    render_the_rest(tmp_path / "unbroken")
    broken, chance, killed = tmp_path / "broken", random.Random(0), 0
    while pictures(broken) < len(JOBS) - 10:
        process = multiprocessing.get_context("fork").Process(target=render_the_rest, args=(broken,))
        enough = pictures(broken) + chance.randrange(2, 9)
        process.start()
        while pictures(broken) < enough:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.006))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        for path in broken.glob("*.png"):
            with Image.open(path) as picture:
                picture.load()
    assert killed >= 5
    render_the_rest(broken)
    assert contents(broken) == contents(tmp_path / "unbroken")
    assert len(contents(broken)) == len(JOBS)
    assert set(read_manifest(broken)) == {job.id for job in JOBS}
    assert not list(broken.glob(".*.tmp"))
    assert to_render(JOBS, broken) == ()
