"""Equal to the authors' package, DeepCache 0.1.1, where that is right: samplers that make one call a step."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from tiny_networks import generate, pipeline, sd_unet, sdxl_unet

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache

PAIRS = [(2, 0), (3, 0), (5, 0), (3, 1), (2, 2), (3, 3), (4, 4), (2, 5), (5, 7), (3, 8)]
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(steps_offset=1, clip_sample=False),
    "dpm++": lambda: DPMSolverMultistepScheduler(steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(steps_offset=1),
}


@pytest.fixture(scope="module", params=[sd_unet, sdxl_unet], ids=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return pipeline(request.param())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("interval", "branch"), PAIRS)
def test_equals_the_package(pipe: Any, scheduler: str, interval: int, branch: int) -> None:
    from DeepCache import DeepCacheSDHelper

    pipe.scheduler = SCHEDULERS[scheduler]()
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    theirs = generate(pipe, steps=7)
    helper.disable()
    with accelerate(pipe, DeepCache(interval=interval, branch=branch)):
        ours = generate(pipe, steps=7)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, generate(pipe, steps=7))
