"""Fixtures of the streaming tests."""

from collections.abc import Callable
from typing import Any

import pytest
import stream_pipelines
import torch

from diffaccel.sampling.guidance import NoGuidance
from diffaccel.stream.engine import StreamEngine


@pytest.fixture(scope="session")
def sd() -> Any:
    """The tiny Stable Diffusion pipeline with an LCM scheduler; read-only."""
    return stream_pipelines.sd()


@pytest.fixture(scope="module")
def engine(sd: Any) -> Callable[..., StreamEngine]:
    """Builds an engine on the tiny pipeline; keyword arguments replace the defaults."""

    def build(pipe: Any = sd, **changes: Any) -> StreamEngine:
        settings: dict[str, Any] = {
            "prompt": "a cat",
            "negative_prompt": "blurry",
            "timestep_indices": (10, 25, 40),
            "guidance": NoGuidance(),
            "height": 32,
            "width": 32,
            "seed": 2,
            "output_type": "latent",
        }
        settings |= changes
        if "strength" in changes:
            del settings["timestep_indices"]
        return StreamEngine(pipe, **settings)

    return build


@pytest.fixture(scope="session")
def frames() -> torch.Tensor:
    """Nine different pictures, ``(9, 3, 32, 32)`` in [0, 1]."""
    return torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(1))
