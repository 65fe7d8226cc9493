"""What a Ray cluster renders is what one process renders, also when an actor is killed."""

import pickle
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from diffaccel import models
from diffaccel.batch import ray_engine
from diffaccel.batch.distribute import Share, render_parts
from diffaccel.batch.jobs import Job
from diffaccel.batch.store import OutputFolder, Record, read_manifest
from diffaccel.models import ModelError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, of itself

JOBS = tuple(
    Job(id=f"j{number}", prompt=f"p{number}", seed=number, model="m", dtype="float32", steps=2) for number in range(12)
)
UNUSABLE = Job(id="bad", prompt="p", seed=0, model="m", dtype="float32", steps=2, init_image="missing.png")


def part(tiny_sd: Path, *jobs: Job) -> Share:
    return Share(jobs, models.resolve(tiny_sd), batch_size=2)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def in_one_process(asked: Share, folder: Path) -> dict[str, bytes]:
    with OutputFolder(folder) as opened:
        render_parts([asked], opened, lambda record: None)
    return pictures(folder)


def test_an_actor_sends_home_what_one_process_writes(tiny_sd: Path, tmp_path: Path) -> None:
    asked = part(tiny_sd, *JOBS[:2])
    actor = ray_engine.RenderActor(asked)
    answer = actor({"jobs": np.array([pickle.dumps(asked.jobs)], dtype=object)})
    files, records, _ = pickle.loads(answer["result"][0])
    assert files == in_one_process(asked, tmp_path)
    assert [record.status for record in records] == ["done", "done"]
    (failed,) = pickle.loads(actor({"jobs": [pickle.dumps((UNUSABLE,))]})["result"][0])[1]
    assert (failed.status, "missing.png" in failed.error) == ("failed", True)


def test_models_are_found_on_other_machines(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_sd.parent)
    relative = ray_engine._portable(part(Path(tiny_sd.name), *JOBS))
    assert relative.source.name == str(tiny_sd)
    bundled = Share(JOBS, models.ModelSource("emoji-sd", models.BUNDLED["emoji-sd"].folder, {}))
    assert ray_engine._portable(bundled).source.name == "emoji-sd"


@pytest.mark.slow
def test_a_cluster_with_a_killed_actor(tiny_sd: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    asked, seen = part(tiny_sd, *JOBS, UNUSABLE), []

    def kill_at_the_second(record: Record) -> None:
        seen.append(record.id)
        if len(seen) == 2:
            children = psutil.Process().children(recursive=True)
            next(each for each in children if "RenderActor" in " ".join(each.cmdline())).kill()

    before = signal.getsignal(signal.SIGTERM)
    with OutputFolder(tmp_path / "ray") as folder:
        summary, _ = ray_engine.render_on_ray(asked, folder, kill_at_the_second, actors=1)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (summary.done, summary.failed) == (len(JOBS), 1)
    assert sorted(seen) == sorted(job.id for job in asked.jobs)
    assert pictures(tmp_path / "ray") == in_one_process(part(tiny_sd, *JOBS), tmp_path / "one")
    assert set(read_manifest(tmp_path / "ray")) == set(seen)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there(tiny_sd: Path, tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray")
    with OutputFolder(tmp_path) as folder, pytest.raises(ModelError, match=f"no Ray cluster at {address}"):
        ray_engine.render_on_ray(part(tiny_sd, *JOBS), folder, lambda record: None, address=address)


@pytest.mark.slow
def test_a_cluster_that_is_too_small(tiny_sd: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with OutputFolder(tmp_path) as folder, pytest.raises(ModelError, match="has room for"):
        ray_engine.render_on_ray(part(tiny_sd, *JOBS), folder, lambda record: None, actors=999)


@pytest.mark.slow
def test_an_actors_next_batch_has_nothing_of_the_one_before(tiny_sd: Path, tiny_lora: Path, tmp_path: Path) -> None:
    plain = replace(JOBS[0], id="plain")
    asked = part(tiny_sd, replace(JOBS[0], lora=str(tiny_lora), scheduler="euler karras"), plain)
    actor = ray_engine.RenderActor(asked)
    batches = [actor({"jobs": [pickle.dumps((job,))]})["result"][0] for job in asked.jobs]
    files = {name: data for batch in batches for name, data in pickle.loads(batch)[0].items()}
    assert files == in_one_process(asked, tmp_path)
