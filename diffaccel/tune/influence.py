"""HarmoniCa's image error proxy (arXiv 2410.01723, section 4.2): what each call's cache does to the final sample."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from diffaccel.attach.handle import accelerate
from diffaccel.methods.learned_cache import LearnedCache
from diffaccel.methods.routers import Routers
from diffaccel.tune.router_steps import mean_square


def influences(pipe: Any, routers: Routers, sample: Callable[[], Any]) -> torch.Tensor:
    """lambda_t = mean |x_0(routers of calls 0..t) - x_0(routers of calls 0..t-1)|^2 of each call, ``(calls,)``.

    Routers are switched on one call after the other; those of later calls are open. What a call does to the sample thus
    includes that its cache may be old.

    Args:
        pipe: the pipeline.
        routers: as they are deployed.
        sample: runs the pipeline, always from the same noise; returns the final samples.
    """
    total, opened = routers.total, (1.0,) * len(routers.units)

    def up_to(call: int) -> Any:
        weights = routers.weights[: call + 1] + (opened,) * (total - call - 1)
        with accelerate(pipe, LearnedCache(replace(routers, weights=weights))):
            return sample()

    found, before = [0.0], up_to(0)
    for call in range(1, total):
        if all(weight > routers.threshold for weight in routers.weights[call]):
            found.append(0.0)  # nothing is reused: the samples are equal
            continue
        after = up_to(call)
        found.append(float(mean_square(after, before)))
        before = after
    return torch.tensor(found)
