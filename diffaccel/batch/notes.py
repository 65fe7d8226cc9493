"""What there is to say about rows beforehand: what of them the model at hand will not honour, and what looks meant.

A note costs no picture. It is told once, also by a dry run, and stands in the manifest and on the contact sheet.
"""

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache

from diffaccel.batch.call_defaults import call_defaults, has_guidance_built_in
from diffaccel.batch.jobs import Job
from diffaccel.batch.pictures import PictureError, picture_note
from diffaccel.batch.text_limits import TextLimits
from diffaccel.models import ModelSource
from diffaccel.models.embedding import vectors_of
from diffaccel.models.markup import REMEDIES, markup
from diffaccel.models.weighted_text import reads_in_parts

_SHOWN = 200
_MARKED = re.compile(r"[({<]|__|BREAK")


class Notes:
    """Says what there is to say about rows that a model is to render.

    Args:
        templates: wildcards and alternatives are drawn, so that braces left in a prompt are meant as such.
        controlnet: the run has a ControlNet.
        remedies: options by which more of a prompt is read, as `markup` names them; those of `diffaccel generate`.
        embeddings: learned words, as `diffaccel.models.parse_embeddings` reads them.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        templates: bool = False,
        controlnet: bool = False,
        remedies: Collection[str] = tuple(REMEDIES),
        embeddings: str | None = None,
    ) -> None:
        self._source, self._templates, self._controlnet, self._remedies = source, templates, controlnet, remedies
        self._limits = TextLimits(source, vectors_of(embeddings))
        self._picture = lru_cache(maxsize=4096)(_of_picture)

    def __call__(self, jobs: Sequence[Job]) -> list[tuple[str, ...]]:
        """The notes about each job, in their order."""
        lost = [self._lost(name, jobs) for name in ("prompt", "negative_prompt")]
        about = map(self._about, jobs)
        return [
            tuple(filter(None, (text, other, *more))) if text or other or more else ()
            for text, other, more in zip(*lost, about, strict=True)
        ]

    def _lost(self, name: str, jobs: Sequence[Job]) -> list[str]:
        """What is said of words that no encoder reads."""
        asked = ["" if job.long_prompts or job.prompt_weights else getattr(job, name) for job in jobs]
        found = self._limits.lost(asked) if any(asked) else asked
        return [self._lost_note(name, lost) if lost else "" for lost in found]

    def _lost_note(self, name: str, lost: str) -> str:
        assert self._limits.reach is not None, "lost words have a limit"
        shown = lost if len(lost) <= _SHOWN else f"{lost[: _SHOWN // 2]} ... {lost[-_SHOWN // 2 :]}"
        remedy = "; --long-prompts reads all" if reads_in_parts(self._source.index["_class_name"]) else ""
        return f"{name}: beyond the encoder's {self._limits.reach[1]} tokens, and not read: {shown!r}{remedy}"

    def _about(self, job: Job) -> list[str]:
        notes = [self._picture(path) for path in (job.init_image, job.mask_image, job.control_image) if path]
        notes += self._markup("prompt", job)
        if job.negative_prompt and (reason := self._unguided(job)):
            notes.append(f"negative_prompt: it changes nothing, for {reason}")
        elif job.negative_prompt:
            notes += self._markup("negative_prompt", job)
        if job.control_scale is not None and not (self._controlnet or job.control_image):
            notes.append("control_scale: it changes nothing without a ControlNet (--controlnet)")
        if self._controlnet and not job.control_image:
            notes.append("control_image: there is none, so this is drawn without the ControlNet")
        return notes

    def _markup(self, name: str, job: Job) -> list[str]:
        """What looks meant in one of the job's prompts, and is drawn as text."""
        text: str = getattr(job, name)
        if not _MARKED.search(text):
            return []
        read = {"weights": bool(job.prompt_weights), "templates": self._templates}
        return markup(text, **read, remedies=self._remedies, name=name)

    def _unguided(self, job: Job) -> str | None:
        """Why a negative prompt changes nothing, if it does not."""
        if job.guidance.partition(":")[0] == "self":
            return "--guidance self never looks at it: use full or one-time"
        if self._distilled:
            return f"{self._source.name} has its guidance built in"
        scale = job.guidance_scale if job.guidance_scale is not None else self._default_scale
        if scale is None or scale > 1:
            return None
        return f"guidance is off at guidance_scale {scale:g}: raise it above 1"

    @cached_property
    def _distilled(self) -> bool:
        """As `has_guidance_built_in`."""
        return has_guidance_built_in(self._source)

    @cached_property
    def _default_scale(self) -> float | None:
        scale = call_defaults(self._source.index["_class_name"]).get("guidance_scale")
        return float(scale) if isinstance(scale, int | float) else None


def _of_picture(path: str) -> str:
    with suppress(PictureError):  # one that cannot be read is the row's problem, which others name
        return picture_note(path) or ""
    return ""


def noted(jobs: Sequence[Job], notes: Notes) -> list[Job]:
    """The jobs with their notes."""
    return [job.but(notes=each) if each else job for job, each in zip(jobs, notes(jobs), strict=True)]
