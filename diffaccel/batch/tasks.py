"""What a row asks a model to do: paint from a text, from a picture, or within one, with or without a ControlNet."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from diffaccel.batch.pictures import PictureError, picture_size
from diffaccel.models.embedding import share_words

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffaccel.batch.jobs import Job

Task = Literal["text", "image", "inpaint"]
_CANNOT = {
    "image": "init_image: {pipeline} cannot start from a picture: leave init_image out, or use a model that can",
    "inpaint": "mask_image: {pipeline} cannot paint within a picture: leave mask_image out, or use a model that can",
}


def task_of(job: "Job") -> Task:
    """What the job asks for."""
    return "inpaint" if job.mask_image else "image" if job.init_image else "text"


def pictures_problem(job: "Job") -> str | None:
    """What is wrong with how a job's pictures go together, if anything."""
    if job.mask_image and not job.init_image:
        return "mask_image: it needs the picture that it is a mask of (init_image)"
    if job.control_image and not job.controlnet:
        return "control_image: it needs a ControlNet (--controlnet)"
    if job.mask_image and job.init_image:
        return _mask_problem(job.init_image, job.mask_image)
    return None


def guidance_problem(job: "Job") -> str | None:
    """What is wrong with residual guidance where guidance is off, if it is asked for."""
    if job.guidance == "full" or job.guidance_scale is None or job.guidance_scale > 1:
        return None
    kind = job.guidance.partition(":")[0]
    return f"guidance: {kind} needs a guidance_scale above 1 (got {job.guidance_scale:g}), where there is guidance"


def _mask_problem(picture: str, mask: str) -> str | None:
    """What is wrong with a mask of another shape than its picture."""
    try:
        (width, height), (mask_width, mask_height) = picture_size(picture), picture_size(mask)
    except PictureError:  # those who look at each picture say so
        return None
    if abs(width * mask_height / mask_width - height) <= 1 or abs(height * mask_width / mask_height - width) <= 1:
        return None
    return f"mask_image: it is {mask_width}x{mask_height}, and its picture {width}x{height}, of another shape"


def task_problem(pipeline: str, job: "Job") -> str | None:
    """What keeps a pipeline of the class with this name from what the job asks for, if anything."""
    task = task_of(job)
    return None if (task, job.controlnet) == ("text", None) else _lacking(pipeline, task, job.controlnet is not None)


@lru_cache
def _lacking(pipeline: str, task: Task, controlnet: bool) -> str | None:
    from diffaccel.models.quiet import quiet_loading

    with quiet_loading():
        from diffaccel._diffusers import task_class

        if task != "text" and task_class(pipeline, task) is None:
            return _CANNOT[task].format(pipeline=pipeline)
        if controlnet and task_class(pipeline, task, controlnet=True) is None:
            where = {"text": "", "image": ", from a picture", "inpaint": ", within a picture"}[task]
            return f"control_image: there is no pipeline for {pipeline} with a ControlNet{where}"
    return None


class Pipelines:
    """The pipelines that the parts of a loaded one make, each built when it is first asked for; weights are shared."""

    def __init__(self, pipe: "DiffusionPipeline") -> None:
        self._pipe = pipe
        self._made: dict[tuple[Task, str | None], DiffusionPipeline] = {}
        self._controlnets: dict[str, Any] = {}

    def of(self, job: "Job") -> "DiffusionPipeline":
        """The pipeline that does what a job asks for. Raises `ValueError` where there is none."""
        key = task_of(job), job.controlnet
        if key == ("text", None):
            return self._pipe
        if key not in self._made:
            if problem := task_problem(type(self._pipe).__name__, job):
                raise ValueError(problem)
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, task: Task, controlnet: str | None) -> "DiffusionPipeline":
        from diffaccel.models.quiet import quiet_loading

        with quiet_loading():
            import diffusers

            names = {"text": "Text2Image", "image": "Image2Image", "inpaint": "Inpainting"}
            more = {"controlnet": self._controlnet(controlnet)} if controlnet else {}
            pipe: DiffusionPipeline = getattr(diffusers, f"AutoPipelineFor{names[task]}").from_pipe(self._pipe, **more)
        share_words(self._pipe, pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _controlnet(self, name: str) -> Any:
        from diffaccel.models import load_controlnet

        if name not in self._controlnets:
            place = {"dtype": self._pipe.dtype, "device": self._pipe._execution_device}
            self._controlnets[name] = load_controlnet(name, **place, like=self._pipe.components.get("unet"))
        return self._controlnets[name]
