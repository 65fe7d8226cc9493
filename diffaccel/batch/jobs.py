"""From rows to jobs: one job is one picture, with every setting decided, a name and a fingerprint."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Any

from diffaccel.batch.ledger import Ledger
from diffaccel.batch.names import file_stem, first_words
from diffaccel.batch.picture_sets import PictureSets
from diffaccel.batch.pictures import PictureError, picture_size
from diffaccel.batch.rows import BadRow, Columns, PlacedRow
from diffaccel.batch.settings import DRAWN_SEED, PICTURES, SEEDS, PictureSettings, PromptRow, without_files
from diffaccel.batch.templates import drawn
from diffaccel.models import defaults, located, parse_loras, rebased

MIN_STEPS_TO_CACHE = 10  # in fewer steps, neighbouring ones differ too much for caching to be a good default
BACKGROUND, RESIZE = "white", "crop"
UNPAINTED = ("columns", "notes")
"""Fields of a job that change nothing in its picture."""
_PER_ROW = ("id", "prompt", "negative_prompt", "seed", *PICTURES, *UNPAINTED)
_ROWS_OWN = frozenset(("prompt", "negative_prompt", "seed", "custom_id", *PICTURES))
_write = json.JSONEncoder(sort_keys=True, check_circular=False).encode


@dataclass(frozen=True)
class Job:
    """One picture to render. A setting that is `None` is left to the pipeline.

    Attributes:
        id: name of the picture, unique within an output folder.
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
        mask_image: path of the picture that is white where the first one is painted anew.
        controlnet: what the ControlNet was loaded from, `control_image` the path of the picture that it follows, and
            `control_scale` its strength.
        resize: how these pictures are brought to the size, `"crop"`, `"pad"` or `"stretch"`; `background` is the colour
            behind what is transparent in them, and beside what is padded.
        long_prompts, prompt_weights: prompts beyond the encoder's limit are read in parts; `(word:1.3)` is a weight.
        columns: of the row's table, that are no settings and go along.
        notes: what there is to say about the row beforehand.
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
    mask_image: str | None = None
    controlnet: str | None = None
    control_image: str | None = None
    control_scale: float | None = None
    resize: str | None = None
    background: str | None = None
    long_prompts: bool | None = None
    prompt_weights: bool | None = None
    columns: Columns = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def but(self, **changes: Any) -> "Job":
        """The job with some fields changed, as `dataclasses.replace` makes it, in a fifth of the time."""
        made = object.__new__(Job)
        values = {**vars(self), **changes}
        values.pop("group", None)
        object.__setattr__(made, "__dict__", values)
        return made

    @property
    def file_stem(self) -> str:
        """Name of the picture's file, without its suffix."""
        return file_stem(self.id)

    @cached_property
    def group(self) -> tuple[Any, ...]:
        """What jobs must share to be rendered in one batch.

        Whether there is a negative prompt at all counts, too: SDXL paints without one otherwise than with an empty one.
        """
        given = (self.init_image is None, self.mask_image is None, self.control_image is None)
        return (_shared(self), *given, bool(self.negative_prompt))

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that are given, by their names."""
        return {name: value for name in _SETTINGS if (value := getattr(self, name)) not in (None, "")}

    @property
    def fingerprint(self) -> str:
        """Hash of all settings; the same one means the same picture, while the files that they name stay the same."""
        return _digest({name: getattr(self, name) for name in _SETTINGS})[:16]


_SETTINGS = tuple(each.name for each in fields(Job) if each.name not in ("id", *UNPAINTED))
_shared = attrgetter(*(each.name for each in fields(Job) if each.name not in _PER_ROW))


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

    def shard(self, index: int, count: int, batch_size: int) -> "JobPlan":
        """The `index`-th (from 1) of `count` parts, which together have every picture, bad row and repetition once."""
        mine = slice(index - 1, None, count)
        jobs = dealt(self.jobs, count, batch_size)[index - 1]
        return replace(self, jobs=jobs, bad=self.bad[mine], duplicates=len(range(self.duplicates)[mine]))


@dataclass(frozen=True)
class Ingredients:
    """What all pictures of a run are rendered with: model, dtype of its weights, and what goes with it, as in a job."""

    model: str
    dtype: str
    vae: str | None = None
    config: str | None = None
    embeddings: str | None = None
    controlnet: str | None = None


class Planner:
    """Decides every setting of every picture, row by row.

    Args:
        options: the command line's settings, for what a row leaves open.
        cache: the caching that neither a row, the options, a LoRA nor the bundled model names.
        num_images: pictures per row; the seed counts up from the row's.
        multiple: what both sides of the model's pictures are multiples of, in pixels.
        draw_text: the prompt that a template and a seed give; raises `ValueError` for one that is not understood.
        draw_seed: the seed of the picture with this name, where its row asks for a drawn one.
        sets: finds the pictures of sets that rows, or else the options, name.

    Attributes:
        bad: rows that cannot be used.
        duplicates: how many pictures were asked for again.
    """

    def __init__(
        self,
        options: PictureSettings,
        source: Ingredients,
        *,
        cache: str = "none",
        num_images: int = 1,
        multiple: int = 8,
        draw_text: Callable[[str, int], str] | None = None,
        draw_seed: Callable[[str], int] | None = None,
        sets: PictureSets | None = None,
    ) -> None:
        self.bad: list[BadRow] = []
        self.duplicates = 0
        self._options, self._given, self._common = options, options.given(), asdict(source)
        self._num_images, self._multiple = num_images, multiple
        self._defaults = {"cache": cache, **defaults(source.model)}
        self._draw_text, self._sets = draw_text, sets or PictureSets(options)
        self._draw_seed = draw_seed or (lambda name: int(_digest(name)[:8], 16))
        self._ledger = Ledger()
        self._from_pictures = not self._given.keys().isdisjoint(PICTURES)
        self._base = lru_cache(maxsize=4096)(self._decided)

    def __call__(self, placed: PlacedRow | BadRow) -> list[tuple[str, Job]]:
        """The row's pictures that were not asked for before, each with the place of its row."""
        found: list[tuple[str, Job]] = []
        for each in self._sets.spread(placed):
            if isinstance(each, BadRow):
                self.bad.append(each)
                continue
            try:
                jobs = self._expand(each)
            except ValueError as error:
                self.bad.append(BadRow(each.where, str(error)))
                continue
            for job in jobs:
                verdict = self._ledger.enter(job.id, job, each.where)
                if verdict == "new":
                    found.append((each.where, job))
                elif verdict == "again":
                    self.duplicates += 1
                else:
                    first = f"{self._ledger.place(job.id)} has this id too and other settings; that one is rendered"
                    self.bad.append(BadRow(each.where, f"custom_id {job.id}: {first}"))
        return found

    def _expand(self, placed: PlacedRow) -> list[Job]:
        """All pictures of a row. Raises `ValueError` where its prompt cannot be drawn."""
        row, asked = placed.row, placed.row.given()
        own: dict[str, Any] = {"columns": placed.columns}
        shared = asked.keys() - _ROWS_OWN
        base = self._base(tuple((name, asked[name]) for name in sorted(shared)) if shared else ())
        if self._from_pictures or not asked.keys().isdisjoint(PICTURES):
            own |= self._of_pictures(asked)
        identifier = row.custom_id or row_id(row, placed.columns, asked=asked)
        seed = asked.get("seed", self._given.get("seed"))
        first = seed if seed not in (None, DRAWN_SEED) else self._first_seed(identifier, drawn=seed is not None)
        jobs = []
        for index in range(self._num_images):
            name, seed = identifier if index == 0 else f"{identifier}-{index + 1}", (first + index) % SEEDS
            texts = {"prompt": row.prompt, "negative_prompt": asked.get("negative_prompt", base.negative_prompt)}
            texts = drawn(self._draw_text, texts, seed) if self._draw_text else texts
            jobs.append(base.but(id=name, seed=seed, **own, **texts))
        return jobs

    def _decided(self, asked: tuple[tuple[str, Any], ...]) -> Job:
        """A job with the settings that rows share which ask for these, and nothing of a row's own."""
        given = self._given | dict(asked)
        loras = parse_loras(given.get("lora"))
        own = {name: value for lora in loras for name, value in defaults(lora.name).items()}
        settings = {**self._defaults, **own, **given}
        if "cache" in given:
            settings["cache"] = without_files(settings["cache"])
        elif settings.get("steps", MIN_STEPS_TO_CACHE) < MIN_STEPS_TO_CACHE:
            settings["cache"] = "none"
        settings["lora"] = (
            rebased(settings["lora"], {each.name: located(each.name) for each in loras}) if loras else None
        )
        settings |= {"resize": None, "background": None, "controlnet": None, "id": "", "prompt": "", "seed": 0}
        return Job(**{**self._common, **settings})

    def _of_pictures(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What a row's pictures decide: where they are, how they are used, and the size that a start gives."""
        given = self._given | asked
        named = {name: located(path) for name in PICTURES if (path := given.get(name))}
        used = {"resize": given.get("resize", RESIZE), "background": given.get("background", BACKGROUND)}
        controlnet = self._common["controlnet"] if "control_image" in named else None
        return named | used | {"controlnet": controlnet} | _size_of_start(named, given, self._multiple)

    def _first_seed(self, identifier: str, *, drawn: bool) -> int:
        """A seed of the name's own, or one that is drawn."""
        return self._draw_seed(identifier) if drawn else int(_digest(identifier)[:8], 16)


def plan_jobs(rows: Iterable[PlacedRow | BadRow], planner: Planner, most: int | None = None) -> JobPlan:
    """What the rows ask for: the first `most` pictures of them; later rows are not read."""
    jobs: list[Job] = []
    places: dict[str, str] = {}
    for placed in rows:
        for where, job in planner(placed):
            jobs.append(job)
            places[job.id] = where
        if most is not None and len(jobs) >= most:
            break
    return JobPlan(tuple(jobs[:most]), tuple(planner.bad), planner.duplicates, places)


def _size_of_start(named: Mapping[str, str], given: Mapping[str, Any], multiple: int) -> dict[str, int]:
    """Width and height of a picture that starts from another one, where the row and the options leave them open.

    They are that picture's, cut to what the model can paint; one that cannot be read is reported by those who look.
    """
    if {"width", "height"} <= given.keys():
        return {}
    try:
        width, height = picture_size(named.get("init_image") or named["control_image"])
    except (PictureError, KeyError):
        return {}
    if "width" in given:
        height = height * given["width"] // width
    elif "height" in given:
        width = width * given["height"] // height
    sides = {"width": width, "height": height}
    return {name: max(multiple, side // multiple * multiple) for name, side in sides.items() if name not in given}


def row_id(row: PromptRow, columns: Columns = (), picture: str = "", asked: Mapping[str, Any] | None = None) -> str:
    """A readable and unique name: the prompt's and a picture's first words, and a hash of all that the row says.

    Args:
        asked: what the row gives, where that is known already.
    """
    said = row.given() if asked is None else asked
    if said.get("negative_prompt") == "":
        said = {name: value for name, value in said.items() if value != ""}
    words = "-".join(filter(None, (first_words(row.prompt), first_words(picture))))
    parts = [said, columns, picture] if picture else [said, columns]  # words are cut, and may be those of two pictures
    whole = parts if columns or picture else said
    return f"{words or 'image'}-{_digest(whole)[:10]}"


def _digest(value: Any) -> str:
    return hashlib.sha256(_write(value).encode()).hexdigest()


def dealt(jobs: Iterable[Job], count: int, batch_size: int) -> list[tuple[Job, ...]]:
    """`count` parts: the full batches of the whole, dealt out in turn.

    As batches stay together, every part renders exactly what one run over the whole would.
    """
    whole = list(batches(jobs, batch_size))
    return [tuple(job for batch in whole[index::count] for job in batch) for index in range(count)]


def batches(jobs: Iterable[Job], size: int) -> Iterable[tuple[Job, ...]]:
    """Full batches of jobs that share their settings; groups come in the order in which they first appear."""
    jobs = tuple(jobs)
    order = {group: place for place, group in enumerate(dict.fromkeys(job.group for job in jobs))}
    ordered = sorted(jobs, key=lambda job: order[job.group])
    for _, group in groupby(ordered, key=lambda job: job.group):
        members = tuple(group)
        for start in range(0, len(members), size):
            yield members[start : start + size]
