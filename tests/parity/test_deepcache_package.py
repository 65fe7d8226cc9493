"""Equal to the authors' package, DeepCache 0.1.1, where that is right: samplers that make one call a step."""

from functools import cache
from typing import Any

import pytest
import torch
from cells import cells
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from tiny_networks import generate, pipeline, sd_unet, sdxl_unet

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache

STEPS = 7
PAIRS = [(2, 0), (3, 0), (5, 0), (3, 1), (2, 2), (3, 3), (4, 4), (2, 5), (5, 7), (3, 8)]
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(steps_offset=1, clip_sample=False),
    "dpm++": lambda: DPMSolverMultistepScheduler(steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(steps_offset=1),
}


UNETS = {"sd": sd_unet, "sdxl": sdxl_unet}
QUICK = {("sd", "ddim", 3, 0), ("sd", "euler", 4, 4), ("sdxl", "dpm++", 2, 2), ("sdxl", "ddim", 5, 7)}


@cache
def painted(network: str, scheduler: str) -> tuple[Any, torch.Tensor]:
    """A pipeline, and what it paints in full."""
    pipe = pipeline(UNETS[network](), SCHEDULERS[scheduler]())
    return pipe, generate(pipe, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "scheduler", "interval", "branch"),
    cells(
        [(network, scheduler, *pair) for network in UNETS for scheduler in SCHEDULERS for pair in PAIRS],
        QUICK.__contains__,
        lambda cell: "-".join(map(str, cell)),
    ),
)
def test_equals_the_package(network: str, scheduler: str, interval: int, branch: int) -> None:
    from DeepCache import DeepCacheSDHelper

    pipe, plain = painted(network, scheduler)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    theirs = generate(pipe, STEPS)
    helper.disable()
    with accelerate(pipe, DeepCache(interval=interval, branch=branch)):
        ours = generate(pipe, STEPS)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)
