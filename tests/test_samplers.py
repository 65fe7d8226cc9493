"""Changing a pipeline's sampler keeps its noise schedule, and does not clip latents."""

import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from diffaccel.sampling.schedulers import SCHEDULERS, sampler_named

MODELS = DPMSolverMultistepScheduler(beta_start=0.001, beta_schedule="scaled_linear", timestep_spacing="trailing")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_noise_schedule_stays_and_latents_are_not_clipped(name: str) -> None:
    made = sampler_named(name, MODELS)
    assert type(made).__name__ == SCHEDULERS[name]
    assert (made.config.beta_start, made.config.beta_schedule) == (0.001, "scaled_linear")
    assert not made.config.get("clip_sample", False)


def test_a_model_of_pixels_is_clipped_as_it_says() -> None:
    assert sampler_named("ddpm", DDIMScheduler(clip_sample=True)).config.clip_sample
    assert not sampler_named("ddpm", DDIMScheduler(clip_sample=False)).config.clip_sample


def test_default_is_a_new_one_of_the_same_class() -> None:
    made = sampler_named("default", MODELS)
    assert made is not MODELS
    assert type(made) is DPMSolverMultistepScheduler
    assert dict(made.config) == dict(MODELS.config)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown scheduler 'magic'; one of default, ddim"):
        sampler_named("magic", MODELS)
