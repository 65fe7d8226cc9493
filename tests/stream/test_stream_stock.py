"""With every stage of a schedule the engine draws what the stock pipeline draws: each family and sampler."""

from typing import Any

import pytest
import stream_pipelines
import torch
from cells import cells
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)

from diffaccel.sampling.guidance import FullGuidance, NoGuidance
from diffaccel.sampling.samplers import TCD
from diffaccel.stream.engine import StreamEngine

STEPS = 4
FAMILIES = ("sdxl", "sd3", "flux", "flux_dev", "sana", "pixart", "z_image")


def family(name: str) -> Any:
    pipe = stream_pipelines.flux(guidance_embeds=True) if name == "flux_dev" else getattr(stream_pipelines, name)()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(pipe: Any, latents: torch.Tensor, seed: int, **arguments: Any) -> torch.Tensor:
    """Finished latents of the stock pipeline; its generator stands behind the draw for the first stage."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(latents.shape, generator=generator)
    name = type(pipe).__name__
    c, h, w = latents.shape[1:]
    if name == "FluxPipeline":
        latents = pipe._pack_latents(latents, 1, c, h, w)
    if name in ("SanaPipeline", "PixArtAlphaPipeline"):
        arguments |= {"clean_caption": False, "use_resolution_binning": False}
    out = pipe(
        "a red cat", latents=latents, generator=generator, num_inference_steps=STEPS, output_type="latent", height=32,
        width=32, **arguments,
    ).images  # fmt: skip
    return pipe._unpack_latents(out, 32, 32, pipe.vae_scale_factor) if name == "FluxPipeline" else out


def ours(pipe: Any, latents: torch.Tensor, **settings: Any) -> list[torch.Tensor]:
    engine = StreamEngine(
        pipe, prompt="a red cat", timestep_indices=range(STEPS), num_inference_steps=STEPS, height=32, width=32, seed=3,
        output_type="latent", **settings,
    )  # fmt: skip
    return [o.image for x in latents for o in engine.push(latents=x)] + [o.image for o in engine.flush()]


def latents_for(pipe: Any, frames: int = 2) -> torch.Tensor:
    probe = StreamEngine(pipe, prompt="a", timestep_indices=(0,), height=32, width=32)
    shape = probe._builder.latent_shape
    return torch.randn(frames, *shape, generator=torch.Generator().manual_seed(5))


def check(pipe: Any, guidance_scale: float, arguments: dict[str, Any] | None = None, **settings: Any) -> None:
    latents = latents_for(pipe)
    for image, x in zip(ours(pipe, latents, **settings), latents, strict=True):
        expected = stock(pipe, x[None], 3, guidance_scale=guidance_scale, **arguments or {})[0]
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    check(family(name), {"z_image": 0.0, "flux_dev": 3.5}.get(name, 1.0), guidance=NoGuidance())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd3", "sana", "pixart"])
def test_full_guidance_on_families(name: str) -> None:
    check(family(name), 2.5, guidance=FullGuidance(2.5))


SCHEDULERS = [
    (LCMScheduler, {}, {}, {}),
    (TCDScheduler, {}, {"eta": 0.3}, {}),
    (TCDScheduler, {}, {"eta": 0.0}, {"sampler": TCD(0.0)}),
    (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, {}, {}),
    (EulerDiscreteScheduler, {"timestep_spacing": "leading"}, {}, {}),
    (EulerDiscreteScheduler, {"timestep_spacing": "linspace", "use_karras_sigmas": True}, {}, {}),
    (EulerDiscreteScheduler, {"interpolation_type": "log_linear"}, {}, {}),
    (EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}, {}, {}),
    (DDIMScheduler, {"clip_sample": False}, {}, {}),
    (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"}, {}, {}),
]


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
CASES = [
    (*case, prediction_type)
    for case in SCHEDULERS
    for prediction_type in PREDICTION_TYPES
    if (case[0], prediction_type) != (EulerAncestralDiscreteScheduler, "sample")  # diffusers does not implement it
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "config", "arguments", "settings", "prediction_type"),
    cells(CASES, lambda case: case[-1] == PREDICTION_TYPES[SCHEDULERS.index(case[:-1]) % 3]),
)
def test_samplers(
    scheduler: Any, config: dict[str, Any], arguments: dict[str, Any], settings: dict[str, Any], prediction_type: str
) -> None:
    check(stream_pipelines.sd(scheduler, prediction_type=prediction_type, **config), 1.0, arguments, **settings)


@pytest.mark.parametrize(
    ("scheduler", "config"),
    [
        (DDIMScheduler, {"clip_sample": False, "timestep_spacing": "linspace"}),  # steps beside its own grid
        (EulerDiscreteScheduler, {"final_sigmas_type": "sigma_min"}),  # does not end at clean latents
    ],
)
def test_schedulers_that_end_steps_elsewhere(scheduler: Any, config: dict[str, Any]) -> None:
    check(stream_pipelines.sd(scheduler, **config), 1.0)


def test_flow_matching_with_fresh_noise() -> None:
    pipe = family("sana")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    check(pipe, 1.0)


def test_a_scheduler_that_clips_is_refused() -> None:
    pipe = stream_pipelines.sd(DDIMScheduler, clip_sample=False, thresholding=True)
    with pytest.raises(ValueError, match=r"register_to_config\(thresholding=False\)"):
        latents_for(pipe)
    pipe.scheduler.register_to_config(thresholding=False)
    check(pipe, 1.0)


def test_one_step_turbo() -> None:
    pipe = stream_pipelines.sd(EulerDiscreteScheduler, timestep_spacing="trailing")
    engine = StreamEngine(
        pipe, prompt="a", timestep_indices=(0,), num_inference_steps=1, height=32, width=32, output_type="latent"
    )
    noise = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    (output,) = engine.push(latents=noise)
    a, b = pipe.scheduler.alphas_cumprod[999].sqrt(), (1 - pipe.scheduler.alphas_cumprod[999]).sqrt()
    text = pipe.encode_prompt("a", "cpu", 1, False)[0]
    with torch.no_grad():
        eps = pipe.unet((b * noise)[None], 999, encoder_hidden_states=text).sample[0]
    expected = (b * noise - b * eps) / a
    torch.testing.assert_close(output.image, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_scheduler_of_the_pipeline_is_not_touched() -> None:
    pipe = stream_pipelines.sd()
    before = {k: v for k, v in vars(pipe.scheduler).items() if not isinstance(v, torch.Tensor)}
    ours(pipe, latents_for(pipe))
    after = {k: v for k, v in vars(pipe.scheduler).items() if not isinstance(v, torch.Tensor)}
    assert {k: str(v) for k, v in before.items()} == {k: str(v) for k, v in after.items()}
