"""Fixtures of the real-time tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffaccel import models
from diffaccel.sampling.guidance import SelfNegative
from diffaccel.stream.engine import StreamEngine


@pytest.fixture(scope="session")
def pipe(tiny_sd: Path) -> Any:
    """The tiny pipeline; read-only."""
    return models.load(tiny_sd, device="cpu")


@pytest.fixture
def open_engine(pipe: Any) -> Callable[..., StreamEngine]:
    """Builds an engine of three stages on the tiny pipeline; keyword arguments replace the defaults."""

    def build(**changes: Any) -> StreamEngine:
        settings: dict[str, Any] = {
            "prompt": "a cat",
            "strength": 0.6,
            "num_steps": 3,
            "guidance": SelfNegative(1.2),
            "height": 32,
            "width": 64,
        }
        return StreamEngine(pipe, **settings | changes)

    return build
