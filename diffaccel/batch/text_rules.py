"""How a row's prompts are read: in parts or with weights, where it asks for them and its pipeline can."""

from typing import TYPE_CHECKING

from diffaccel.models.weighted_text import WeightedText, read_as, reading_problem

if TYPE_CHECKING:
    from diffaccel.batch.jobs import Job


def text_problem(pipeline: str, job: "Job") -> str | None:
    """What keeps a pipeline of the class with this name from reading the job's prompts as asked, if anything."""
    asked = {"long": bool(job.long_prompts), "weights": bool(job.prompt_weights)}
    return reading_problem(pipeline, (job.prompt, job.negative_prompt), **asked)


def texts_of(job: "Job") -> tuple[WeightedText, WeightedText]:
    """The job's prompt and negative prompt, with weights where it asks for them."""
    prompt, negative = (read_as(text, weights=bool(job.prompt_weights)) for text in (job.prompt, job.negative_prompt))
    return prompt, negative
