"""Row-wise samplers make the steps of diffusers' schedulers, one by one: every level, weight and last step."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from diffaccel.sampling.noise_levels import NoiseLevels
from diffaccel.sampling.samplers import (
    LCM,
    TCD,
    DPMSolver,
    FlowMatching,
    clean_weights,
    grid_for,
    levels_of,
    multistep_sampler_for,
    sampler_for,
    signal_levels,
)

VARIANCE_PRESERVING = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNCLIPPED = {"clip_sample": False}
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),  # diffusers' DPM2
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),  # a rounding error in torchsde
]


def lay_out(grid: Any, steps: int) -> None:
    """Timesteps as pipelines without a shift of their own set them."""
    grid.set_timesteps(steps)


def walked(scheduler: Any, steps: int, sampler: Any = None) -> None:
    """Take every step with the scheduler and with the sampler that stands for it, from the same latents."""
    sampler = sampler or sampler_for(scheduler)
    grid = grid_for(sampler, scheduler, steps, lay_out)
    scheduler.set_timesteps(steps)
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    levels, signal = levels_of(sampler, grid), signal_levels(grid)
    torch.testing.assert_close(torch.tensor([level.timestep for level in levels]), scheduler.timesteps.float())
    exploding = isinstance(scheduler, EulerDiscreteScheduler | EulerAncestralDiscreteScheduler)  # x = clean + s noise
    rng = torch.Generator().manual_seed(0)
    before = before_clean = None
    for index, (start, t) in enumerate(zip(levels, scheduler.timesteps, strict=True)):
        last = index == len(levels) - 1
        end = sampler.terminal(grid) if last else sampler.following(grid, start) or levels[index + 1]
        x, prediction = torch.randn(2, 1, 3, 4, 4, generator=rng)
        torch.manual_seed(index)
        fresh = torch.randn(x.shape, dtype=x.dtype)
        torch.manual_seed(index)
        given = x / start.alpha if exploding else x
        theirs = scheduler.step(prediction, t, given).prev_sample
        theirs = theirs * end.alpha if exploding else theirs
        of_x, of_prediction = clean_weights(kind, start)
        clean = of_x * x + of_prediction * prediction
        noise = (x - start.alpha * clean) / start.sigma
        scale, skip = sampler.boundary(start)
        clean = scale * clean + skip * x
        weights = sampler.transition(start, end, signal)
        ours = weights.clean * clean + weights.noise * noise + weights.fresh * fresh
        if before is not None and not last:
            ours = ours + sampler.correction(before, start, end) * (clean - before_clean)
        torch.testing.assert_close(ours, theirs.to(ours), rtol=2e-4, atol=2e-4, msg=lambda m, i=index: f"step {i}: {m}")
        before, before_clean = start, clean


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("LCMScheduler", 4, {}),
        ("LCMScheduler", 3, {"timestep_scaling": 0.002}),  # at 10 nothing of the boundary is seen
        ("TCDScheduler", 4, {}),
        ("DDIMScheduler", 5, UNCLIPPED),
        ("DDIMScheduler", 7, {**UNCLIPPED, "set_alpha_to_one": False, "steps_offset": 1}),
        ("DDIMScheduler", 6, {**UNCLIPPED, "timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", 5, {"timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", 4, {"use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", 4, {"final_sigmas_type": "sigma_min"}),
        ("EulerAncestralDiscreteScheduler", 5, {}),
    ],
)
def test_variance_preserving_steps(name: str, steps: int, options: dict[str, Any], kind: str) -> None:
    walked(getattr(diffusers, name)(**VARIANCE_PRESERVING, prediction_type=kind, **options), steps)


@pytest.mark.parametrize("options", [{"shift": 3.0}, {"stochastic_sampling": True}])
def test_flow_matching_steps(options: dict[str, Any]) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    assert sampler_for(scheduler) == FlowMatching(stochastic="stochastic_sampling" in options)
    walked(scheduler, 5)


def test_steps_of_second_order() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**VARIANCE_PRESERVING, timestep_spacing="trailing")
    assert multistep_sampler_for(scheduler) == DPMSolver()
    walked(scheduler, 6, DPMSolver())


def test_distilled_weights_keep_their_sampler() -> None:
    lcm = diffusers.LCMScheduler(timestep_scaling=7.0)
    assert multistep_sampler_for(lcm) == sampler_for(lcm)
    assert sampler_for(lcm) == LCM(timestep_scaling=7.0)
    assert sampler_for(diffusers.LCMScheduler()) == LCM()


@pytest.mark.parametrize("eta", [-0.01, 1.01, float("nan")])
def test_stochasticity_is_a_share(eta: float) -> None:
    assert (TCD(0.0).eta, TCD(1.0).eta) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"^eta must be a number in \[0.0, 1.0\]; got "):
        TCD(eta)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "words"),
    [
        (
            LCM(),
            diffusers.FlowMatchEulerDiscreteScheduler,
            "LCM cannot step with this network, whose FlowMatch.* is of flow",
        ),
        (
            FlowMatching(),
            diffusers.DDIMScheduler,
            "whose DDIMScheduler is of noise levels of diffusion: leave sampler out",
        ),
    ],
    ids=["flow", "diffusion"],
)
def test_samplers_of_another_kind_are_refused(sampler: Any, scheduler: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grid_for(sampler, scheduler(), 4, lay_out)


def test_the_flow_shift_of_other_schedulers_is_kept() -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    grid = grid_for(sampler_for(scheduler), scheduler, 4, lay_out)
    assert grid.config.shift == 3.0


@pytest.mark.parametrize(
    "kind",
    [
        diffusers.KDPM2DiscreteScheduler,
        diffusers.KDPM2AncestralDiscreteScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.LMSDiscreteScheduler,
        diffusers.DPMSolverSDEScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
    ],
)
def test_noise_levels_are_those_by_which_schedulers_scale_their_input(kind: Any) -> None:
    """Also between whole timesteps, where samplers of second order call the network."""
    scheduler = kind(**VARIANCE_PRESERVING)
    scheduler.set_timesteps(5)
    levels, x = NoiseLevels(scheduler), torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps:
        alpha, _ = levels.at(t, x)
        torch.testing.assert_close(scheduler.scale_model_input(x, t), alpha.expand(x.shape), rtol=1e-4, atol=1e-5)
        scheduler.step(torch.zeros_like(x), t, x)


def test_noise_levels_are_those_of_a_scheduler_that_takes_its_input_as_it_is() -> None:
    scheduler = diffusers.DEISMultistepScheduler(**VARIANCE_PRESERVING)
    scheduler.set_timesteps(5)
    levels, x = NoiseLevels(scheduler), torch.ones(1)
    for t, ratio in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        alpha, sigma = levels.at(t, x)
        torch.testing.assert_close((sigma / alpha)[0], ratio.float(), rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"invert_sigmas": True}])
def test_flow_predictions_give_the_clean_sample_back(options: dict[str, bool]) -> None:
    levels = NoiseLevels(diffusers.FlowMatchEulerDiscreteScheduler(**options))
    clean, noise = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    alpha, sigma = levels.at(torch.tensor(250.0), clean)
    assert float(sigma) == pytest.approx(0.75 if options else 0.25)
    prediction = levels.predict(noise, clean, alpha, sigma)
    torch.testing.assert_close(prediction, clean - noise if options else noise - clean)
    torch.testing.assert_close(levels.clean(prediction, alpha * clean + sigma * noise, alpha, sigma), clean)
