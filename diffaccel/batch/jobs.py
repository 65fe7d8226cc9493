"""From rows to jobs: one job is one picture, with every setting decided, a name and a fingerprint."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from typing import Any

from diffaccel.batch.pictures import PictureError, picture_size
from diffaccel.batch.readers import BadRow, PlacedRow
from diffaccel.batch.settings import SEEDS, PictureSettings, PromptRow
from diffaccel.models import defaults, located, parse_loras, rebased

MIN_STEPS_TO_CACHE = 10  # in fewer steps, neighbouring ones differ too much for caching to be a good default
_PER_ROW = ("id", "prompt", "negative_prompt", "seed", "init_image")


@dataclass(frozen=True)
class Job:
    """One picture to render. A setting that is `None` is left to the pipeline.

    Attributes:
        id: name of the picture's file, without its suffix; unique within an output folder.
        seed: seeds this picture's own generator, so that the picture does not depend on its place in a batch.
        model: what the pipeline was loaded from; `dtype` is that of its weights.
        width, height: in pixels; of a picture that starts from another one, that one's, unless others are asked for.
        cache: methods as `diffaccel.batch.settings.parse_cache` reads them, or `"none"`.
        guidance: `"full"`, or residual guidance as `diffaccel.batch.settings.parse_guidance` reads it.
        lora: as `diffaccel.models.parse_loras` reads it, with a weight for each.
        vae: what the autoencoder was loaded from, where it is not the model's own.
        config: configurations of a model in a single file, where they are not those that are supplied for it.
        embeddings: learned words, as `diffaccel.models.parse_embeddings` reads them.
        init_image: path of the picture to start from, and `strength` in (0, 1] how far to move away from it.
    """

    id: str
    prompt: str
    seed: int
    model: str
    dtype: str
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str = "default"
    cache: str = "none"
    guidance: str = "full"
    lora: str | None = None
    vae: str | None = None
    config: str | None = None
    embeddings: str | None = None
    init_image: str | None = None
    strength: float | None = None

    @property
    def group(self) -> tuple[Any, ...]:
        """What jobs must share to be rendered in one batch.

        Whether there is a negative prompt at all counts, too: SDXL paints without one otherwise than with an empty one.
        """
        values = tuple(getattr(self, field.name) for field in fields(self) if field.name not in _PER_ROW)
        return (*values, self.init_image is not None, bool(self.negative_prompt))

    @property
    def fingerprint(self) -> str:
        """Hash of all settings; the same one means the same picture, while the files that they name stay the same."""
        return _digest({key: value for key, value in asdict(self).items() if key != "id"})[:16]


@dataclass(frozen=True)
class JobPlan:
    """What a run has to do.

    Attributes:
        jobs: in the order of their rows.
        bad: rows that cannot be used.
        duplicates: how many pictures were asked for again.
        places: for each job's id, where its row came from, as `prompts.jsonl:17`.
    """

    jobs: tuple[Job, ...]
    bad: tuple[BadRow, ...]
    duplicates: int
    places: Mapping[str, str]

    def limited(self, most: int | None) -> "JobPlan":
        """The plan of the first so many pictures of the whole run."""
        return replace(self, jobs=self.jobs[:most])

    def shard(self, index: int, count: int, batch_size: int) -> "JobPlan":
        """The `index`-th (from 1) of `count` parts, which together have every picture, bad row and repetition once."""
        mine = slice(index - 1, None, count)
        jobs = shard(self.jobs, index, count, batch_size)
        return replace(self, jobs=jobs, bad=self.bad[mine], duplicates=len(range(self.duplicates)[mine]))


@dataclass(frozen=True)
class Ingredients:
    """What all pictures of a run are rendered with: model, dtype of its weights, and what goes with it, as in a job."""

    model: str
    dtype: str
    vae: str | None = None
    config: str | None = None
    embeddings: str | None = None


def plan_jobs(
    rows: Iterable[PlacedRow | BadRow],
    options: PictureSettings,
    source: Ingredients,
    *,
    cache: str = "none",
    num_images: int = 1,
    multiple: int = 8,
) -> JobPlan:
    """Decide every setting of every picture.

    Args:
        options: the command line's settings, for what a row leaves open.
        cache: the caching that neither a row, the options, a LoRA nor the bundled model names.
        num_images: pictures per row; the seed counts up from the row's.
        multiple: what both sides of the model's pictures are multiples of, in pixels.
    """
    jobs: dict[str, Job] = {}
    places: dict[str, str] = {}
    bad: list[BadRow] = []
    duplicates = 0
    for placed in rows:
        if isinstance(placed, BadRow):
            bad.append(placed)
            continue
        for job in _expand(placed.row, options, source, cache, num_images, multiple):
            known = jobs.setdefault(job.id.casefold(), job)
            if known is job:
                places[job.id] = placed.where
            elif known == job:
                duplicates += 1
            else:
                first = f"{places[known.id]} has this id too and other settings; that one is rendered"
                bad.append(BadRow(placed.where, f"custom_id {job.id}: {first}"))
    return JobPlan(tuple(jobs.values()), tuple(bad), duplicates, places)


def _expand(
    row: PromptRow, options: PictureSettings, source: Ingredients, cache: str, num_images: int, multiple: int
) -> Iterable[Job]:
    given = options.given() | row.given()
    loras = parse_loras(given.get("lora"))
    own = {name: value for lora in loras for name, value in defaults(lora.name).items()}
    settings = {"cache": cache, **defaults(source.model), **own, **given}
    if not loras:
        settings.pop("lora", None)
    if "cache" not in given and settings.get("steps", MIN_STEPS_TO_CACHE) < MIN_STEPS_TO_CACHE:
        settings["cache"] = "none"
    if loras:
        settings["lora"] = rebased(settings["lora"], {each.name: located(each.name) for each in loras})
    if "init_image" in settings:
        settings["init_image"] = located(settings["init_image"])
        settings |= _size_of_start(settings, given, multiple)
    identifier = settings.pop("custom_id", None) or row_id(row)
    seed = settings.pop("seed", None)
    first = seed if seed is not None else int(_digest(identifier)[:8], 16)
    for index in range(num_images):
        name = identifier if index == 0 else f"{identifier}-{index + 1}"
        yield Job(id=name, seed=(first + index) % SEEDS, **asdict(source), **settings)


def _size_of_start(settings: Mapping[str, Any], given: Mapping[str, Any], multiple: int) -> dict[str, int]:
    """Width and height of a picture that starts from another one, where the row and the options leave them open.

    They are that picture's, cut to what the model can paint; one that cannot be read is reported by those who look.
    """
    if {"width", "height"} <= given.keys():
        return {}
    try:
        width, height = picture_size(str(settings["init_image"]))
    except PictureError:
        return {}
    scale = given["width"] / width if "width" in given else given["height"] / height if "height" in given else 1
    sides = {"width": width * scale, "height": height * scale}
    return {name: max(multiple, int(side) // multiple * multiple) for name, side in sides.items() if name not in given}


def row_id(row: PromptRow) -> str:
    """A readable and unique name: the prompt's first words and a hash of all that the row says."""
    letters = unicodedata.normalize("NFKD", row.prompt).encode("ascii", "ignore").decode()  # é becomes e
    words = re.sub(r"[^a-z0-9]+", "-", letters.lower()).strip("-")[:40].rstrip("-")
    return f"{words or 'image'}-{_digest(row.given())[:10]}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def shard(jobs: Iterable[Job], index: int, count: int, batch_size: int) -> tuple[Job, ...]:
    """The `index`-th (from 1) of `count` parts: the full batches of the whole, dealt out in turn.

    As batches stay together, every part renders exactly what one run over the whole would.
    """
    dealt = list(batches(jobs, batch_size))[index - 1 :: count]
    return tuple(job for batch in dealt for job in batch)


def batches(jobs: Iterable[Job], size: int) -> Iterable[tuple[Job, ...]]:
    """Full batches of jobs that share their settings; groups come in the order in which they first appear."""
    jobs = tuple(jobs)
    order = {group: place for place, group in enumerate(dict.fromkeys(job.group for job in jobs))}
    ordered = sorted(jobs, key=lambda job: order[job.group])
    for _, group in groupby(ordered, key=lambda job: job.group):
        members = tuple(group)
        for start in range(0, len(members), size):
            yield members[start : start + size]
