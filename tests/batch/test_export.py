"""Tar shards and the Parquet file hold every picture once, with its settings; equal pictures give equal files."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
from PIL import Image

from diffaccel.batch.export import finished, write_parquet, write_tars
from diffaccel.batch.jobs import Job
from diffaccel.batch.metadata import encode
from diffaccel.batch.store import Record

JOBS = tuple(
    Job(id=f"j.{number}", prompt=f"p{number} é", seed=number, model="m", dtype="float32", steps=4)
    for number in range(5)
)


def fill(folder: Path) -> dict[str, Record]:
    records = {}
    for job in JOBS:
        data = encode(Image.new("RGB", (8, 8), (job.seed,) * 3), job)
        (folder / f"{job.id}.png").write_bytes(data)
        settings = {"prompt": job.prompt, "seed": job.seed, "steps": 4}
        records[job.id] = Record(job.id, "done", job.fingerprint, f"{job.id}.png", len(data), 0.1, settings=settings)
    return records


def test_tars_are_webdataset_shards(tmp_path: Path) -> None:
    records = list(fill(tmp_path).values())
    paths = write_tars(tmp_path, records, 2)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar", "00002.tar"]
    samples: dict[str, dict[str, bytes]] = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")  # where webdataset cuts
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert list(samples) == [f"{number:07}-j_{number}" for number in range(5)]
    assert samples["0000003-j_3"]["png"] == (tmp_path / "j.3.png").read_bytes()
    assert samples["0000003-j_3"]["txt"].decode() == "p3 é"
    assert json.loads(samples["0000003-j_3"]["json"]) == {"id": "j.3", "prompt": "p3 é", "seed": 3, "steps": 4}


def test_tars_are_the_same_again_and_leave_none_behind(tmp_path: Path) -> None:
    records = list(fill(tmp_path).values())
    before = [path.read_bytes() for path in write_tars(tmp_path, records, 2)]
    assert [path.read_bytes() for path in write_tars(tmp_path, records, 2)] == before
    (tmp_path / "tars" / "backup.tar").touch()
    write_tars(tmp_path, records, 5)
    assert {path.name for path in (tmp_path / "tars").iterdir()} == {"00000.tar", "backup.tar"}


def test_parquet_holds_pictures_as_datasets_stores_them(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, list(fill(tmp_path).values()))
    table = pyarrow.parquet.read_table(path)
    row = table.to_pylist()[3]
    assert (row["id"], row["prompt"], row["seed"], row["lora"]) == ("j.3", "p3 é", 3, None)
    assert row["image"] == {"bytes": (tmp_path / "j.3.png").read_bytes(), "path": "j.3.png"}
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert list(features) == table.column_names


def test_nothing_is_packed_before_all_have_ended(tmp_path: Path) -> None:
    records = fill(tmp_path)
    assert finished(JOBS, records, tmp_path, "png") == list(records.values())
    del records["j.2"]
    assert finished(JOBS, records, tmp_path, "png") is None
    records["j.2"] = Record("j.2", "failed", JOBS[2].fingerprint, error="no")
    assert [record.id for record in finished(JOBS, records, tmp_path, "png") or ()] == ["j.0", "j.1", "j.3", "j.4"]
    (tmp_path / "j.4.png").write_bytes(b"")
    assert finished(JOBS, records, tmp_path, "png") is None


def test_what_was_flagged_is_marked_and_columns_are_those_of_the_rows(tmp_path: Path) -> None:
    records = fill(tmp_path)
    records["j.1"] = replace(records["j.1"], flagged=True, columns={"label": "old"})
    jobs = [replace(job, columns=(("label", f"new {job.seed}"),)) for job in JOBS]
    found = finished(jobs, records, tmp_path, "png") or []
    rows = pyarrow.parquet.read_table(write_parquet(tmp_path, found)).to_pylist()
    assert [row["flagged"] for row in rows] == [False, True, False, False, False]
    assert [row["label"] for row in rows] == [f"new {number}" for number in range(5)]
    with tarfile.open(write_tars(tmp_path, found, 9)[0]) as tar:
        said = [json.load(tar.extractfile(each)) for each in tar if each.name.endswith(".json")]  # type: ignore[arg-type]
    assert [each.get("flagged") for each in said] == [None, True, None, None, None]
    assert said[1]["columns"] == {"label": "new 1"}
