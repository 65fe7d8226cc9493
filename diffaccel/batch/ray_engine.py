"""The same run on a Ray cluster: many machines, each with a pipeline of its own, pictures gathered in one folder.

Ray Data deals full batches of jobs to a pool of actors. An actor that dies is replaced by Ray and its batch rendered
again; a job that fails comes back as a record that says why, never as an exception. Only this process writes, so the
folder is as trustworthy as that of a run on one machine.
"""

import logging
import pickle
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from diffaccel.batch.distribute import OnRecord, Share, WorkerError
from diffaccel.batch.jobs import batches
from diffaccel.batch.store import OutputFolder, Record
from diffaccel.batch.summary import Calls, Summary
from diffaccel.models import expanded, resolve
from diffaccel.models.ray_cluster import connect, each_actor

MAX_BLOCKS = 10_000  # one batch each is best: a block is what a dead actor has to repeat; but Ray keeps books on each


def render_on_ray(
    part: Share, folder: OutputFolder, on_record: OnRecord, *, actors: int = 1, address: str | None = None
) -> tuple[Summary, Calls]:
    """Render `part` with `actors` pipelines on the Ray cluster at `address`, or on one started on this machine.

    Raises `ModelError` where Ray is not installed or cannot be reached, `StoreError` where a picture cannot be written,
    `WorkerError` where Ray gives up.
    """
    ray = connect(address, actors)
    from ray import data

    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    start, summary, calls = perf_counter(), Summary(), Calls()
    rows = [{"jobs": pickle.dumps(batch)} for batch in batches(part.jobs, part.batch_size)]
    rendered = data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS)).map_batches(
        RenderActor,
        fn_constructor_args=(_portable(part),),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=actors),
        **each_actor(ray),
    )
    try:
        for row in rendered.iter_rows():
            files, records, counted = pickle.loads(row["result"])
            for name, data in files.items():
                folder.write(name, data)
            folder.append(records)
            calls += counted
            for record in records:
                summary.add(record)
                on_record(record)
            if part.fail_fast and summary.failed:
                break
    except ray.exceptions.RayError as error:
        raise WorkerError(f"Ray gave up: {str(error).strip().splitlines()[-1]}") from error
    finally:
        ray.shutdown()
    summary.seconds = perf_counter() - start
    return summary, calls


def _portable(part: Share) -> Share:
    """What an actor needs of the part, with its model named so that other machines find it.

    That is by its name where it is bundled or on the Hub, and by its whole path where it is a folder.
    """
    source = part.source
    local = expanded(source.name)
    name = str(local.absolute()) if local in (source.folder, source.file) else source.name
    return replace(part, jobs=part.jobs[:1], source=replace(source, name=name))


class _Parcel:
    """Stands in for the output folder on an actor: keeps files and records for the journey home."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.records: list[Record] = []

    def write(self, file_name: str, data: bytes) -> None:
        """Keep one file."""
        self.files[file_name] = data

    def append(self, records: Sequence[Record]) -> None:
        """Keep records."""
        self.records += records


class RenderActor:
    """One pipeline somewhere on the cluster. Called with one pickled batch of jobs, returns its files and records."""

    def __init__(self, part: Share) -> None:
        self._part = replace(part, source=resolve(part.source.name, part.jobs[0].config))
        self._pipe = self._part.pipeline()

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Render the batch; `rows` is a column of one."""
        from diffaccel.batch.render import Renderer

        jobs = pickle.loads(rows["jobs"][0])
        parcel, part = _Parcel(), replace(self._part, jobs=jobs, fail_fast=False)  # what fails, the others go on
        with Renderer(self._pipe, overlap=part.overlap, lora_partial=part.lora_partial) as renderer:
            part.run(renderer, parcel)
        return {"result": np.array([pickle.dumps((parcel.files, parcel.records, renderer.calls))], dtype=object)}
