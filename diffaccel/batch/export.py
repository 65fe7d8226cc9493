"""The finished pictures in the forms that training and data tools read: webdataset shards and a Parquet file.

Both hold the pictures of the run's input in its order, whoever rendered them, and nothing that changes from run to run.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffaccel.batch.jobs import Job
from diffaccel.batch.names import file_stem
from diffaccel.batch.readers import InputError
from diffaccel.batch.store import PARQUET, TARS, Record, explained, is_done
from diffaccel.config.files import atomic_file

_ROW_GROUP = 100
_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "string",
        "negative_prompt": "string",
        "seed": "uint64",
        "steps": "int32",
        "guidance_scale": "float64",
        "width": "int32",
        "height": "int32",
        "model": "string",
        "dtype": "string",
        "scheduler": "string",
        "cache": "string",
        "guidance": "string",
        "lora": "string",
        "vae": "string",
        "config": "string",
        "embeddings": "string",
        "init_image": "string",
        "strength": "float64",
        "mask_image": "string",
        "controlnet": "string",
        "control_image": "string",
        "control_scale": "float64",
        "resize": "string",
        "background": "string",
        "long_prompts": "bool_",
        "prompt_weights": "bool_",
        "flagged": "bool_",
    }
)


def finished(jobs: Sequence[Job], records: Mapping[str, Record], folder: Path, suffix: str) -> list[Record] | None:
    """Records of the pictures that are there, in the order of `jobs`; None while some of `jobs` have not ended.

    Columns that go along are those of `jobs`: they may have changed since the picture was painted.
    """
    if unfinished(jobs, records, folder, suffix):
        return None
    there = [job for job in jobs if is_done(job, records.get(job.id), folder, suffix)]
    return [replace(records[job.id], columns=dict(job.columns)) for job in there]


def unfinished(jobs: Sequence[Job], records: Mapping[str, Record], folder: Path, suffix: str) -> int:
    """How many of `jobs` have neither a picture nor failed."""

    def ended(job: Job) -> bool:
        record = records.get(job.id)
        failed = record is not None and (record.status, record.fingerprint) == ("failed", job.fingerprint)
        return failed or is_done(job, record, folder, suffix)

    return sum(not ended(job) for job in jobs)


def write_tars(folder: Path, records: Sequence[Record], size: int) -> list[Path]:
    """Write `tars/00000.tar`, ...: `size` pictures each, every one with its prompt (.txt) and settings (.json).

    A sample's key is its place in the input and its id, without the dots at which webdataset would cut it.
    Raises `StoreError` where one cannot be written.
    """
    place = folder / TARS
    starts = range(0, len(records), size)
    paths = [place / f"{number:05}.tar" for number in range(len(starts))]
    with explained(place):
        place.mkdir(exist_ok=True)
        for path, start in zip(paths, starts, strict=True):
            with atomic_file(path) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
                for index, record in enumerate(records[start : start + size], start):
                    _add_sample(tar, folder, record, f"{index:07}-{file_stem(record.id).replace('.', '_')}")
        for left in set(place.glob("[0-9]" * 5 + ".tar")) - set(paths):
            left.unlink()
    return paths


def _add_sample(tar: tarfile.TarFile, folder: Path, record: Record, key: str) -> None:
    """One picture and what belongs to it, as files that share a name; without times and owners."""
    picture = folder / str(record.file_name)
    kept = {name: value for name in ("columns", "flagged") if (value := getattr(record, name))}
    settings = json.dumps({"id": record.id, **record.settings, **kept}, ensure_ascii=False)
    parts = {
        picture.suffix: picture.read_bytes(),
        ".json": settings.encode(),
        ".txt": str(record.settings["prompt"]).encode(),
    }
    for suffix, data in parts.items():
        member = tarfile.TarInfo(key + suffix)
        member.size = len(data)
        tar.addfile(member, BytesIO(data))


def write_parquet(folder: Path, records: Sequence[Record]) -> Path:
    """Write `pictures.parquet`: id, settings and the picture's file as 🤗 Datasets stores images (bytes and path).

    Raises `StoreError` where it cannot be written.
    """
    pa, parquet = require_pyarrow()
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kinds = {"id": "string", **_COLUMNS, **_kept(records)}
    columns = {**{name: getattr(pa, kind)() for name, kind in kinds.items()}, "image": image}
    features = {name: {"dtype": kind.rstrip("_"), "_type": "Value"} for name, kind in kinds.items()}
    described = {"info": {"features": {**features, "image": {"_type": "Image"}}}}
    schema = pa.schema(columns, metadata={"huggingface": json.dumps(described)})
    path = folder / PARQUET
    with explained(path), atomic_file(path) as stream, parquet.ParquetWriter(stream, schema) as writer:
        for rows in _groups(folder, records, kinds):
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return path


def _kept(records: Sequence[Record]) -> dict[str, str]:
    """Types of the columns that are no settings, as the rows of the input have them, by their names in the file."""
    values: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.columns.items():
            values.setdefault(_column(name), []).append(value)
    return {name: _kind([value for value in found if value is not None]) for name, found in values.items()}


def _column(name: str) -> str:
    """The name of a column of the input, apart from the columns that every file has."""
    return f"column_{name}" if name in ("id", "image", *_COLUMNS) else name


def _kind(values: Sequence[Any]) -> str:
    """The type that holds all values."""
    for kind, types in (("bool_", bool), ("int64", int), ("float64", (int, float))):
        if values and all(isinstance(each, types) and (kind == "bool_" or type(each) is not bool) for each in values):
            small = kind != "int64" or all(-(2**63) <= each < 2**63 for each in values)
            return kind if small else "string"
    return "string"


def _cell(value: Any, kind: str) -> Any:
    return str(value) if kind == "string" and value is not None else value


def _groups(folder: Path, records: Sequence[Record], kinds: Mapping[str, str]) -> Iterator[list[dict[str, Any]]]:
    """Rows with their pictures, as many at a time as a row group holds."""
    for start in range(0, len(records), _ROW_GROUP):
        yield [
            {
                "id": record.id,
                **record.settings,
                "flagged": bool(record.flagged),
                **{_column(name): _cell(value, kinds[_column(name)]) for name, value in record.columns.items()},
                "image": {"bytes": (folder / str(record.file_name)).read_bytes(), "path": record.file_name},
            }
            for record in records[start : start + _ROW_GROUP]
        ]


def require_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises `InputError` where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet files need pyarrow: pip install 'diffaccel[parquet]'") from error
    return pyarrow, pyarrow.parquet
