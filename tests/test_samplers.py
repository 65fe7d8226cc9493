"""Samplers by the names that people use: the right class, the model's noise schedule, and the right answer."""

import math
from typing import Any

import pytest
import stream_pipelines
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffaccel.sampling.schedulers import (
    SCHEDULERS,
    SPACINGS,
    canonical,
    sampler_named,
    sampler_problem,
    seed_noise,
    shown,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),  # diffusers' DPM2
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # a rounding error in torchsde
]
MODELS = DPMSolverMultistepScheduler(beta_start=0.001, beta_schedule="scaled_linear", timestep_spacing="trailing")
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
FLOW_NAMES = [
    f"{name} {spacing}".strip()
    for name in SCHEDULERS
    for spacing in ("", *SPACINGS)
    if not sampler_problem(f"{name} {spacing}", {"_class_name": "FlowMatchEulerDiscreteScheduler"})
]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_noise_schedule_stays_and_latents_are_not_clipped(name: str) -> None:
    made = sampler_named(name, MODELS)
    assert type(made).__name__ == SCHEDULERS[name].scheduler
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


@pytest.mark.parametrize(
    ("written", "name", "options"),
    [
        ("DPM++ 2M Karras", "dpm++ 2m karras", {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++"}),
        ("dpmpp_2m_sde", "dpm++ 2m sde", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPM++ 3M SDE Exponential", "dpm++ 3m sde exponential", {"use_exponential_sigmas": True, "solver_order": 3}),
        ("DPM++ SDE Karras", "dpm++ sde karras", {"use_karras_sigmas": True}),
        ("Euler a", "euler-a", {}),
        ("euler_ancestral", "euler-a", {}),
        ("k_euler sgm_uniform", "euler sgm uniform", {"timestep_spacing": "trailing"}),
        ("DPM2 a Karras", "dpm2-a karras", {"use_karras_sigmas": True}),
        ("PLMS", "pndm", {}),
        ("uni_pc", "unipc", {}),
        ("uni_pc_bh2", "unipc", {}),
        ("dpmpp_2m_sde_gpu karras", "dpm++ 2m sde karras", {"use_karras_sigmas": True}),
        ("dpm_2_ancestral", "dpm2-a", {}),
        ("Euler Simple", "euler simple", {"timestep_spacing": "trailing"}),
        ("ddim normal", "ddim normal", {"timestep_spacing": "linspace"}),
        ("dpmpp_2m beta", "dpm++ 2m beta", {"use_beta_sigmas": True}),
    ],
)
def test_names_as_other_tools_write_them(written: str, name: str, options: dict[str, Any]) -> None:
    assert canonical(written) == name
    made = sampler_named(written, MODELS)
    assert {key: made.config[key] for key in options} == options
    made.set_timesteps(4)
    assert canonical(str(shown(name))) == name


def test_every_name_is_found_again_as_automatic1111_writes_it() -> None:
    assert [canonical(str(shown(name))) for name in SCHEDULERS] == [
        "dpm++ 2m" if name == "dpm++" else name for name in SCHEDULERS
    ]
    assert (shown("euler-a sgm uniform"), shown("default")) == ("Euler a SGM Uniform", None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("magic", "unknown scheduler 'magic'; one of default, ddim"),
        ("DPM++ 2S a", "diffusers has no sampler 'dpm\\+\\+ 2s a'; the nearest is dpm\\+\\+ sde"),
        ("dpmpp_2s_ancestral", "the nearest is dpm\\+\\+ sde$"),
        ("DPM fast", "the nearest is dpm\\+\\+ 2m$"),
        ("DPM adaptive karras", "the nearest is dpm\\+\\+ 2m$"),
        ("Restart", "the nearest is heun$"),
        ("default karras", "name the sampler"),
        ("ddim karras", "ddim has no karras spacing on this model; it has sgm uniform, simple, normal"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sampler_named(name, MODELS)


@pytest.mark.parametrize("name", ["ddim", "euler-a", "tcd", "dpm++ sde", "dpm++ karras", "unipc sgm uniform"])
def test_a_model_of_flow_matching_refuses_what_is_not_for_it(name: str) -> None:
    with pytest.raises(ValueError, match=r"trained with flow matching: use dpm\+\+|spacing on this model; it has no"):
        sampler_named(name, FLOW)


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_flow_versions_give_the_exact_answer(name: str) -> None:
    """A velocity towards one point leads every sampler there; a constant one leads all there that add no noise."""
    noise, point = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = sampler_named(name, FLOW)
    scheduler.set_timesteps(6)
    latents = noise
    known = {"generator": torch.Generator().manual_seed(1)} if "unipc" not in name else {}
    for t in scheduler.timesteps:
        latents = scheduler.step((latents - point) / (t / 1000), t, latents, **known).prev_sample
    torch.testing.assert_close(latents, point, atol=6e-3, rtol=0)
    if "sde" in name or "lcm" in name:
        return
    scheduler, latents = sampler_named(name, FLOW), noise
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps:
        latents = scheduler.step(noise - point, t, latents).prev_sample
    torch.testing.assert_close(latents, point, atol=6e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("build", [stream_pipelines.sd3, stream_pipelines.flux, lambda: stream_pipelines.flux(True)])
def test_pipelines_of_flow_matching_run_with_each(build: Any) -> None:
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler
    config = {"_class_name": type(own).__name__, **own.config}
    for name in ("euler", "heun", "lcm", "dpm++", "dpm++ 2m sde", "unipc"):
        if not sampler_problem(name, config, type(pipe).__name__):
            pipe.scheduler = sampler_named(name, own)
            call = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
            assert pipe("a cat", generator=torch.Generator().manual_seed(0), **call).images.isfinite().all()


def test_noise_of_each_row_has_its_own_seed() -> None:
    """Whatever stands beside a row, the noise that DPM++ SDE adds to it stays."""
    results = []
    for seeds in ([3, 4], [3, 5]):
        scheduler = sampler_named("dpm++ sde", MODELS)
        seed_noise(scheduler, seeds)
        scheduler.set_timesteps(3)
        latents = torch.ones(2, 4, 4, 4)
        for t in scheduler.timesteps:
            latents = scheduler.step(0.1 * latents, t, latents).prev_sample
        results.append(latents)
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("shift", ["shift", "flow_shift"])
def test_the_shift_of_a_model_of_flow_matching_is_kept(shift: str) -> None:
    like = FLOW if shift == "shift" else UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0)
    for name, key in (("euler", "shift"), ("dpm++", "flow_shift"), ("unipc", "flow_shift")):
        assert sampler_named(name, like).config[key] == 3.0


def test_levels_that_depend_on_the_size_of_the_picture_are_taken_where_the_model_has_them() -> None:
    """FLUX hands `mu` to every sampler; where the model's levels do not depend on the size it says nothing."""
    plain, sized = (
        sampler_named("dpm++", FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=sized))
        for sized in (False, True)
    )
    for scheduler in (plain, sized):
        scheduler.set_timesteps(4, mu=0.5)
    assert plain.config.flow_shift == 3.0
    assert sized.config.flow_shift == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchHeunDiscreteScheduler"},
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
        {"_class_name": "FlowMapEulerDiscreteScheduler", "prediction_type": "flow_prediction"},
    ],
)
def test_what_flow_matching_cannot_do_is_said(config: dict[str, Any]) -> None:
    assert "trained with flow matching" in str(sampler_problem("ddim", config))
    assert "FluxPipeline asks for: use euler" in str(sampler_problem("heun", config, "FluxPipeline"))
    for pipeline in ("", "StableDiffusion3Pipeline", "SanaPipeline"):
        assert sampler_problem("heun", config, pipeline) is None
    problems = {name: sampler_problem(name, config, from_picture=True) for name in ("euler", "heun", "lcm", "dpm++")}
    assert [name for name, problem in problems.items() if problem] == ["dpm++"]
    assert sampler_problem("ddim", {"_class_name": "DDIMScheduler"}, from_picture=True) is None


@pytest.mark.parametrize(("name", "package"), [("lms", "scipy"), ("dpm++ sde", "torchsde"), ("euler beta", "scipy")])
def test_a_package_that_is_missing_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffaccel.sampling.schedulers.find_spec", lambda _: None)
    problem = sampler_problem(name, {"_class_name": "DDIMScheduler"})
    assert f"needs {package}: pip install 'diffaccel[samplers]'" in str(problem)


def test_models_of_other_noise_levels_keep_their_own_sampler() -> None:
    for own in (
        "EDMDPMSolverMultistep",
        "CosineDPMSolverMultistep",
        "CMStochasticIterative",
        "DDPMWuerstchen",
        "Amused",
    ):
        for name in ("euler", "dpm++ 2m karras"):
            assert "other noise levels" in str(sampler_problem(name, {"_class_name": f"{own}Scheduler"}))
    assert sampler_problem("default", {"_class_name": "EDMEulerScheduler"}) is None


def test_a_sampler_that_cannot_begin_without_signal_is_refused_where_that_is_needed() -> None:
    config = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    problems = {name: sampler_problem(name, config) for name in ("heun", "pndm", "euler", "dpm++", "ddim", "unipc")}
    assert [name for name, problem in problems.items() if problem] == ["heun", "pndm"]
    assert "noise without any signal" in str(problems["heun"])


def test_a_name_without_spacing_has_none_whatever_the_models_own_sampler_has() -> None:
    like = DPMSolverMultistepScheduler(use_karras_sigmas=True, timestep_spacing="trailing")
    for name in ("euler", "dpm++ 2m", "unipc"):
        config = sampler_named(name, like).config
        assert (config.use_karras_sigmas, config.timestep_spacing) == (False, "trailing")
    assert sampler_named("default", like).config.use_karras_sigmas
    assert sampler_named("euler karras", like).config.use_karras_sigmas
