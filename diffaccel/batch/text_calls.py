"""Rows whose prompts are read in parts, dealt out to calls of a pipeline that takes one length each.

Each row is encoded by itself, its prompt and negative prompt to the same number of parts, so that an embedding depends
on nothing but its row.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from diffaccel.batch.jobs import Job
from diffaccel.batch.text_rules import text_problem, texts_of
from diffaccel.models.text_parts import Embeddings, PartedText

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class TextCalls:
    """Embeddings of rows that need some, on a pipeline."""

    def __init__(self, pipe: "DiffusionPipeline") -> None:
        self._pipe, self._text = pipe, PartedText(pipe)

    def __call__(self, jobs: Sequence[Job]) -> list[tuple[list[int], Embeddings]]:
        """Places of jobs that one call of the pipeline can take, with the embeddings of those that need some."""
        rows = [self._row(job) for job in jobs]
        lengths = [row["prompt_embeds"].shape[1] if row else 0 for row in rows]
        found: list[tuple[list[int], Embeddings]] = []
        for length in dict.fromkeys(lengths):
            places = [place for place, each in enumerate(lengths) if each == length]
            names = rows[places[0]]
            found.append((places, {name: torch.cat([rows[place][name] for place in places]) for name in names}))
        return found

    def _row(self, job: Job) -> Embeddings:
        """Embeddings of the job's prompts; none where the pipeline's own do."""
        if not (job.long_prompts or job.prompt_weights):
            return {}
        if problem := text_problem(type(self._pipe).__name__, job):
            raise ValueError(problem)
        texts = texts_of(job)
        if not any(map(self._text.needed, texts)):
            return {}
        prompt, negative = self._text.padded([self._text.encode(text) for text in texts])
        if not job.negative_prompt and self._pipe.config.get("force_zeros_for_empty_prompt"):
            negative = {name: torch.zeros_like(each) for name, each in negative.items()}
        return {**prompt, **{f"negative_{name}": each for name, each in negative.items()}}
