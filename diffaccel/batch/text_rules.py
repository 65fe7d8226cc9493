"""Which prompts can be read in parts or with weights, and by which pipelines, told without torch."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from diffaccel.batch.weights import TextPart, weighted_parts

if TYPE_CHECKING:
    from diffaccel.batch.jobs import Job


def reads_in_parts(pipeline: str) -> bool:
    """Whether long and weighted prompts can be read: whether CLIP is all that the pipelines of this class read with."""
    return pipeline.startswith(("StableDiffusion", "LatentConsistency")) and not pipeline.startswith("StableDiffusion3")


def text_problem(pipeline: str, job: "Job") -> str | None:
    """What keeps a pipeline of the class with this name from reading the job's prompts as asked, if anything."""
    asked = "long_prompts" if job.long_prompts else "prompt_weights" if job.prompt_weights else None
    if asked is None:
        return None
    if not reads_in_parts(pipeline):
        return f"{asked}: {pipeline} does not read with CLIP alone, so its prompts are read as they are: leave it out"
    if not has_compel():
        return f"{asked}: it needs compel: pip install 'diffaccel[prompts]'"
    try:
        parts_of(job, job.prompt), parts_of(job, job.negative_prompt)
    except ValueError as error:
        return f"prompt: {error}"
    return None


def has_compel() -> bool:
    """Whether the library that encodes in parts is installed."""
    return find_spec("compel") is not None


def parts_of(job: "Job", text: str) -> tuple[TextPart, ...]:
    """The parts and weights of a text, where the job asks for them; else the text itself."""
    return weighted_parts(text) if job.prompt_weights else (((text, 1.0),),)
