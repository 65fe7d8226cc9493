"""What is wrong with jobs that can be known without loading the model."""

from collections.abc import Callable, Iterable
from functools import lru_cache

from diffaccel.batch.call_defaults import has_guidance_built_in
from diffaccel.batch.jobs import Job
from diffaccel.batch.pictures import PictureError, check_picture, size_problem, strength_problem
from diffaccel.batch.settings import PICTURES
from diffaccel.batch.tasks import guidance_problem, pictures_problem, task_problem
from diffaccel.batch.text_rules import text_problem
from diffaccel.models import ModelError, ModelSource, find_lora, parse_loras
from diffaccel.models.quiet import quiet_loading
from diffaccel.sampling.schedulers import sampler_problem


def find_problems(jobs: Iterable[Job], source: ModelSource, *, lora_partial: bool = False) -> dict[str, str]:
    """Why jobs cannot be rendered, by their ids: the files that they name, and settings that do not go together.

    Pictures are opened, not decoded, and LoRAs compared with the networks' configurations, each file once. Jobs whose
    problems only the loaded model would show are not among those found.

    Raises `ModelError` where a configuration file of the model is damaged.
    """
    picture, pipeline = lru_cache(maxsize=None)(_picture_problem), str(source.index["_class_name"])
    lora = lru_cache(maxsize=None)(lambda name: lora_problem(name, source, lora_partial))
    multiple, sampler = pixel_multiple(source), lru_cache(maxsize=None)(scheduler_problem)
    shared: dict[object, str | None] = {}  # of what all jobs of a group have
    checks: tuple[Callable[[Job], str | None], ...] = (
        lambda job: lora(job.lora),
        lambda job: sampler(job.scheduler, source, job.init_image is not None),
        lambda job: _strength_problem(job, source),
        lambda job: size_problem(job.model, (job.width, job.height), multiple),
        lambda job: task_problem(pipeline, job),
        guidance_problem,
        lambda job: _built_in_problem(job, source),
    )
    found = {}
    for job in jobs:
        reason = None
        if job.init_image or job.mask_image or job.control_image:
            paths = ((name, getattr(job, name)) for name in PICTURES)
            reason = next((words for name, path in paths if path and (words := picture(name, path))), None)
            reason = reason or pictures_problem(job)
        if reason is None:
            group = job.group
            if group not in shared:
                shared[group] = next((words for check in checks if (words := check(job))), None)
            reason = shared[group] or text_problem(pipeline, job)
        if reason is not None:
            found[job.id] = reason
    return found


def _picture_problem(name: str, path: str | None) -> str | None:
    try:
        if path is not None:
            check_picture(path)
    except PictureError as error:
        return f"{name}: {error}"
    return None


def lora_problem(name: str | None, source: ModelSource, partial: bool) -> str | None:
    """Why LoRAs cannot be used on a model, if there is a reason: they are missing, damaged, or for another network."""
    if name is None:
        return None
    try:
        for lora in parse_loras(name):
            find_lora(lora.name)
        with quiet_loading():
            from diffaccel.batch.fit import require_loras

            require_loras(parse_loras(name), source, partial=partial)
    except ModelError as error:
        return f"lora: {error}"
    return None


def scheduler_problem(name: str, source: ModelSource, from_picture: bool) -> str | None:
    """What keeps a model from being sampled by that name, if anything; from a picture some are not to be had."""
    config, pipeline = source.config_of("scheduler", "scheduler_config.json"), str(source.index["_class_name"])
    problem = sampler_problem(name, config, pipeline, from_picture=from_picture)
    return f"scheduler: {problem}" if problem else None


def _strength_problem(job: Job, source: ModelSource) -> str | None:
    if job.strength is None:
        return None
    if job.init_image is None:
        return "strength: it needs a picture to start from (init_image)"
    return strength_problem(job.steps, job.strength) if job.steps and source.denoiser == "unet" else None


def _built_in_problem(job: Job, source: ModelSource) -> str | None:
    """What is wrong with residual guidance on a model that has its guidance built in, if it is asked for."""
    if job.guidance == "full" or not has_guidance_built_in(source):
        return None
    return (
        f"guidance: {source.name} has its guidance built in, and computes no negative prompt that "
        f"{job.guidance.partition(':')[0]} could spare: leave it out"
    )


def pixel_multiple(source: ModelSource) -> int:
    """What both sides of a picture must be multiples of; 1 where the configuration files do not tell."""
    denoiser, vae = source.config_of("transformer"), source.config_of("vae")
    levels = vae.get("encoder_block_out_channels") or vae.get("block_out_channels")
    patch, binned = denoiser.get("patch_size"), denoiser.get("sample_size") in (32, 64, 128, 256)
    if not isinstance(patch, int) or not levels or (binned and str(source.index["_class_name"]).startswith("PixArt")):
        return 1
    return int(patch * 2 ** (len(levels) - 1))
