"""Residual guidance in ordinary sampling, against equation 5 written out step by step."""

import logging
import weakref
from itertools import product
from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers import StableDiffusionImg2ImgPipeline as Img2Img
from tiny_networks import TEXT, generate, picture_unet, pipeline, sdxl_unet

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache, Method, ResidualGuidance, TGate
from diffaccel.reuse.forecast import Taylor
from diffaccel.sampling.noise_levels import NoiseLevels

SCALE = 1.3


@pytest.mark.parametrize(
    ("prediction", "negative", "delta"),
    cells(
        product(("epsilon", "v_prediction", "sample"), ("one-time", "self"), (1.0, 0.8)),
        {("epsilon", "self", 0.8), ("v_prediction", "one-time", 0.8), ("sample", "self", 1.0)}.__contains__,
        "{0[0]}-{0[1]}-{0[2]}".format,
    ),
)
def test_equals_equation_five(prediction: str, negative: str, delta: float) -> None:
    unet = picture_unet()
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type=prediction)
    pipe = pipeline(unet, scheduler)
    with accelerate(pipe, ResidualGuidance(negative, delta)):
        ours = generate(pipe, guidance_scale=SCALE)

    generator = torch.Generator().manual_seed(0)
    text, empty = (torch.randn(1, 7, TEXT, generator=generator) for _ in range(2))
    x, z = torch.randn(1, 4, 16, 16, generator=generator), torch.zeros(1, 4, 16, 16)
    scheduler.set_timesteps(6)
    for i, t in enumerate(scheduler.timesteps):
        a, b = scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt()

        def to_noise(output: torch.Tensor, x: torch.Tensor = x, a: Any = a, b: Any = b) -> torch.Tensor:
            if prediction == "epsilon":
                return output
            return a * output + b * x if prediction == "v_prediction" else (x - a * output) / b

        with torch.no_grad():
            cond = to_noise(unet(x, t, text).sample)
            if negative == "one-time" and i == 0:
                noise = to_noise(unet(x, t, empty).sample)
                z, e_neg = (x - b * noise) / a, noise
            else:
                e_neg = delta * (x - a * z) / b
        guided = e_neg + SCALE * (cond - e_neg)
        clean = (x - b * guided) / a
        output = {"epsilon": guided, "v_prediction": a * guided - b * clean, "sample": clean}[prediction]
        x = scheduler.step(output, t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("negative", "expected"),
    cells(
        [("one-time", [2, 1, 1, 1, 1, 1]), ("self", [1] * 6)], lambda cell: cell[0] == "one-time", lambda cell: cell[0]
    ),
)
def test_rows(negative: str, expected: list[int]) -> None:
    pipe = pipeline(picture_unet())
    rows: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    with accelerate(pipe, ResidualGuidance(negative)) as handle:
        pictures = [generate(pipe, guidance_scale=SCALE) for _ in range(2)]
        saved = handle.report().macs_saved
    assert rows == 2 * expected
    assert torch.equal(*pictures)
    assert saved == pytest.approx(1 - sum(expected) / 12)


@pytest.mark.parametrize(("renew", "expected"), [(1, [2] * 6), (2, [2, 1, 2, 1, 2, 1]), (4, [2, 1, 1, 1, 2, 1])])
def test_renewed_negative(renew: int, expected: list[int]) -> None:
    pipe = pipeline(picture_unet())
    plain = generate(pipe, guidance_scale=SCALE)
    once, rows = ResidualGuidance(), []
    pipe.unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    with accelerate(pipe, once):
        stale = generate(pipe, guidance_scale=SCALE)
    rows.clear()
    with accelerate(pipe, ResidualGuidance(renew=renew)):
        renewed = generate(pipe, guidance_scale=SCALE)
    assert rows == expected
    assert torch.equal(renewed, plain) == (renew == 1)
    assert (renewed - plain).norm() < (stale - plain).norm()


def test_a_held_difference_follows_the_picture() -> None:
    pipe, seen = pipeline(picture_unet(), DDIMScheduler(steps_offset=1, clip_sample=False)), []
    keep = lambda module, args, kwargs, output: seen.append((args[0].chunk(2), args[1], output[0].chunk(2)))  # noqa: E731
    plain = generate(pipe, guidance_scale=SCALE)
    with accelerate(pipe, ResidualGuidance(held="difference", renew=1)):
        assert torch.equal(generate(pipe, guidance_scale=SCALE), plain)
    with accelerate(pipe, ResidualGuidance(held="difference")):
        pipe.unet.register_forward_hook(keep, with_kwargs=True)
        generate(pipe, guidance_scale=SCALE)
    levels, differences = NoiseLevels(pipe.scheduler), []
    for (x, _), t, (negative, positive) in seen:
        alpha, sigma = levels.at(t, x)
        differences.append(((x - sigma * negative) - (x - sigma * positive)) / alpha)
    assert len(differences) == 6
    for difference in differences[1:]:
        torch.testing.assert_close(difference, differences[0], atol=1e-4, rtol=0)


class _Watched(Taylor):
    """Notes at which calls there was a past to learn from."""

    def update(self, history: Any, feature: Any, step: int) -> Any:
        self.calls.append((step, None if history is None else history[0]))
        return super().update(history, feature, step)


def test_what_is_stored_outlives_calls_without_the_negative_half() -> None:
    pipe, forecast = pipeline(picture_unet()), _Watched(1)
    object.__setattr__(forecast, "calls", [])
    with accelerate(pipe, DeepCache(interval=2, forecast=forecast), ResidualGuidance(renew=2)) as handle:
        generate(pipe, guidance_scale=SCALE)
        assert handle.report().replayed == 3
    assert forecast.calls == [(0, None), (2, 0), (4, 2)]
    forecast.calls.clear()
    with accelerate(pipe, DeepCache(interval=3, forecast=forecast), ResidualGuidance(renew=4)):
        generate(pipe, guidance_scale=SCALE)  # the positive half alone computes in call 3: the negative one's is stale
    assert forecast.calls == [(0, None), (3, 0), (4, 0), (4, 3)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"renew": 0}, "renew must be"),
        ({"negative": "self", "renew": 2}, "is for"),
        ({"held": "nothing"}, "held must be one of"),
        ({"negative": "self", "held": "difference"}, "is for"),
    ],
)
def test_bad_renewals_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualGuidance(**settings)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_noise_levels_are_the_schedulers(kind: Any) -> None:
    scheduler = kind(steps_offset=1)
    scheduler.set_timesteps(7)
    levels = NoiseLevels(scheduler)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        alpha, noise = levels.at(t, torch.zeros(1, 4, 2, 2, dtype=torch.float64))
        assert (noise / alpha).item() == pytest.approx(sigma.item(), rel=2e-3)
        assert (alpha**2 + noise**2).item() == pytest.approx(1)


def test_noise_levels_of_flow_matching() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    levels = NoiseLevels(scheduler)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        alpha, noise = levels.at(t, torch.zeros(1, 4, 2, 2))
        assert (alpha.item(), noise.item()) == (pytest.approx(1 - sigma.item()), pytest.approx(sigma.item()))
    x, clean, noise = torch.randn(3, 1, 4, 2, 2).unbind(0)
    predictions = ("epsilon", "v_prediction", "sample")
    for kind in (levels, *(NoiseLevels(DDIMScheduler(prediction_type=told)) for told in predictions)):
        alpha, sigma = kind.at(500, x)
        x = alpha * clean + sigma * noise
        torch.testing.assert_close(kind.clean(kind.predict(noise, clean, alpha, sigma), x, alpha, sigma), clean)


def test_what_cannot_work_is_refused() -> None:
    unet = picture_unet()
    pipe = pipeline(unet)
    with (
        accelerate(pipe, ResidualGuidance()),
        pytest.raises(ValueError, match=r"> 1, say accelerate\(.*\) if each call stacks"),
    ):
        generate(pipe, guidance_scale=1.0)
    with accelerate(unet, ResidualGuidance()), pytest.raises(ValueError, match="pass a pipeline that has one"):
        unet(torch.randn(2, 4, 16, 16), 500, torch.randn(2, 7, TEXT))
    pipe.scheduler = EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction", steps_offset=1)
    with accelerate(pipe, ResidualGuidance()), pytest.raises(ValueError, match="noise levels of EulerDiscrete"):
        generate(pipe)


def test_self_negative_from_a_picture_is_refused() -> None:
    pipe = Img2Img(**pipeline(picture_unet()).components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.randn(1, 4, 16, 16)
    with accelerate(pipe, ResidualGuidance("self")), pytest.raises(ValueError, match="negative='one-time'"):
        generate(pipe, image=image, strength=0.5)
    with accelerate(pipe, ResidualGuidance()):
        assert torch.isfinite(generate(pipe, image=image, strength=0.5, guidance_scale=SCALE)).all()


@pytest.mark.parametrize("method", [ResidualGuidance(), ResidualGuidance("self"), TGate(gate=2)], ids=str)
def test_no_sample_outlives_its_call(method: Method) -> None:
    pipe, samples, alive = pipeline(picture_unet()), [], []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        samples.append(weakref.ref(args[0]))
        alive.append(sum(sample() is not None for sample in samples))

    pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
    with accelerate(pipe, method):
        generate(pipe, guidance_scale=SCALE)
    assert max(alive) <= 2  # a call's own, and the one before it, which the pipeline's loop still names


@pytest.mark.slow
@pytest.mark.parametrize("method", [ResidualGuidance(), ResidualGuidance("self"), ResidualGuidance(delta=0.8)], ids=str)
def test_runs_that_start_without_any_signal(method: ResidualGuidance) -> None:
    scheduler = DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )
    pipe = pipeline(picture_unet(), scheduler)
    pictures = []
    for last in (0.0, 1e-10):  # none, and next to none
        scheduler.alphas_cumprod[-1] = last
        with accelerate(pipe, method):
            pictures.append(generate(pipe, guidance_scale=SCALE, guidance_rescale=0.7))
    assert torch.isfinite(pictures[0]).all()
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-3)


def test_delta_is_refused_where_there_is_no_signal() -> None:
    zero = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=1, clip_sample=False)
    pipe = pipeline(picture_unet(), zero)
    with accelerate(pipe, ResidualGuidance("self", 0.8)), pytest.raises(ValueError, match=r"delta=0\.8 is undefined"):
        generate(pipe, guidance_scale=SCALE)
    pipe = stream_pipelines.sd3()
    for method in (ResidualGuidance("self"), ResidualGuidance(delta=0.8)):
        with accelerate(pipe, method):
            assert torch.isfinite(pipe("a cat", num_inference_steps=2, output_type="latent").images).all()
    with accelerate(pipe, ResidualGuidance("self", 0.8)), pytest.raises(ValueError, match=r"delta=0\.8 is undefined"):
        pipe("a cat", num_inference_steps=2, output_type="latent")


def test_a_run_that_ends_early_starts_from_noise() -> None:
    pipe, kept = pipeline(sdxl_unet()), []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        kept.append(tensors["latents"])
        return tensors

    with accelerate(pipe, ResidualGuidance(negative="self")):
        generate(pipe, steps=4, guidance_scale=SCALE, callback_on_step_end=keep)
        assert torch.equal(generate(pipe, steps=4, denoising_end=0.5, guidance_scale=SCALE), kept[1])


@pytest.mark.parametrize(
    ("method", "steps", "told"),
    [
        (ResidualGuidance(), 9, 1),
        (ResidualGuidance("self"), 9, 1),
        (ResidualGuidance(), 8, 0),
        (ResidualGuidance(renew=3), 9, 0),
    ],
    ids=["one-time", "self", "few steps", "renewed"],
)
def test_long_runs_without_renewal_are_told_once(
    method: Method, steps: int, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = pipeline(picture_unet(), DDIMScheduler(steps_offset=1, clip_sample=False))
    with caplog.at_level(logging.WARNING), accelerate(pipe, method):
        for _ in range(2):
            generate(pipe, guidance_scale=SCALE, num_inference_steps=steps)
    assert [f"all {steps} calls" in text for text in caplog.messages] == [True] * told
