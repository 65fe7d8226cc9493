"""Equal, frame by frame, to what the original StreamDiffusion 0.1.1 computed with the same tiny weights."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from diffaccel.sampling.guidance import FullGuidance, Guidance, NoGuidance, SelfNegative
from diffaccel.stream.engine import StreamEngine

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(DATA.parent / "stream"))

CASES = {
    "img2img_none_T3": ((22, 32, 45), NoGuidance()),
    "img2img_self_T3": ((22, 32, 45), SelfNegative(1.4, 0.5)),
    "img2img_full_T3": ((22, 32, 45), FullGuidance(1.4)),
    "txt2img_none_T4": ((0, 16, 32, 45), NoGuidance()),
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(DATA / "streamdiffusion.safetensors")


@pytest.fixture(scope="module")
def pipe() -> Any:
    from stream_pipelines import tiny_vae

    pipe = StableDiffusionPipeline.from_pretrained(DATA / "tiny-sd", safety_checker=None)
    return pipe, tiny_vae()


def build(pipe: Any, indices: tuple[int, ...], guidance: Guidance, **changes: Any) -> StreamEngine:
    settings = {
        "prompt": "a cat with sunglasses",
        "negative_prompt": "blurry, bad",
        "timestep_indices": indices,
        "num_inference_steps": 50,
        "guidance": guidance,
        "height": 64,
        "width": 64,
        "seed": 2,
        "vae": pipe[1],
    }
    return StreamEngine(pipe[0], **settings | changes)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("stream_batch", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_every_frame(case: str, stream_batch: bool, pipe: Any, recorded: dict[str, torch.Tensor]) -> None:
    indices, guidance = CASES[case]
    engine = build(pipe, indices, guidance, output_type="latent", stream_batch=stream_batch)
    theirs = recorded[f"{case}/finished"]
    outputs = []
    for k in range(8):
        if case.startswith("txt2img"):
            outputs += engine.push(latents=recorded[f"{case}/noise"][k])
        else:
            outputs += engine.push(recorded["input"][k])
    delay = len(indices) - 1
    assert [o.frame_id for o in outputs] == list(range(8 - delay if stream_batch else 8))
    for output in outputs[: 8 - delay]:
        close(output.image, theirs[output.frame_id + delay])  # frame j leaves there at call j + N - 1


@pytest.mark.parametrize("case", CASES)
def test_coefficients_and_noise(case: str, pipe: Any, recorded: dict[str, torch.Tensor]) -> None:
    indices, guidance = CASES[case]
    stages = build(pipe, indices, guidance)._course.settings.stages
    assert list(stages.timesteps) == recorded[f"{case}/sub_timesteps_tensor"].tolist()
    close(torch.tensor(stages.alphas), recorded[f"{case}/alpha_prod_t_sqrt"].flatten())
    close(torch.tensor([level.sigma for level in stages.levels]), recorded[f"{case}/beta_prod_t_sqrt"].flatten())
    boundary = torch.tensor([stages.sampler.boundary(level) for level in stages.levels])
    close(boundary[:, 0], recorded[f"{case}/c_out"].flatten())
    close(boundary[:, 1], recorded[f"{case}/c_skip"].flatten())
    assert torch.equal(stages.noise, recorded[f"{case}/init_noise"])


def test_decoded_picture(pipe: Any, recorded: dict[str, torch.Tensor]) -> None:
    indices, guidance = CASES["img2img_self_T3"]
    engine = build(pipe, indices, guidance, output_type="pt")
    outputs = [o for k in range(8) for o in engine.push(recorded["input"][k])]
    close(outputs[5].image, (recorded["img2img_self_T3/image"][0] / 2 + 0.5).clamp(0, 1))
