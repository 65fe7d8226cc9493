"""Every number of a setting is checked at both ends, and its error names it."""

import math
from typing import Any

import pytest

from diffaccel.config import Config
from diffaccel.methods import DeepCache
from diffaccel.reuse.forecast import Aligned, Newton, Taylor
from diffaccel.reuse.measure import SeaFilter
from diffaccel.reuse.schedule import BackLoaded, FrontLoaded, Quadratic, ScaledSteps, Threshold, Uniform
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.motion import MotionNoise
from diffaccel.stream.slot_cache import SlotCache
from diffaccel.stream.smoothing import MotionBlend
from diffaccel.stream.steadiness import CrossFrame

INF = float("inf")
STREAM = {"prompt": "a cat", "height": 64, "width": 64, "timestep_indices": (10,)}
# the configuration without the value, the value's name, the least and the greatest that is valid
RANGES = [
    (Uniform, {}, "interval", 1, None),
    (Threshold, {}, "threshold", 0.0, INF),
    (Threshold, {"threshold": 0.1}, "max_reuse", 0, None),
    (ScaledSteps, {"steps": (0, 3)}, "of", 4, None),
    (ScaledSteps, {"steps": (0, 3), "of": 4}, "total", 1, None),
    (FrontLoaded, {}, "interval", 1, None),
    (FrontLoaded, {"interval": 2}, "power", 1.0, 10.0),
    (FrontLoaded, {"interval": 2}, "total", 1, None),
    (BackLoaded, {"interval": 2}, "total", 1, None),
    (Quadratic, {}, "interval", 1, None),
    (Quadratic, {"interval": 2}, "center", 0, None),
    (Quadratic, {"interval": 2}, "power", 0.1, 10.0),
    (Quadratic, {"interval": 2}, "total", 1, None),
    (Taylor, {}, "order", 0, 4),
    (Taylor, {}, "hermite", 1e-3, 1.0),
    (Newton, {}, "order", 1, 4),
    (Aligned, {}, "limit", 1.0, 100.0),
    (SeaFilter, {}, "power", 0.1, 10.0),
    (CausalContext, {}, "window", 1, None),
    (CausalContext, {}, "sink", 0, None),
    (CrossFrame, {}, "frames", 0, None),
    (CrossFrame, {}, "scene_change", 0.0, 1.0),
    (SlotCache, {"method": DeepCache(2)}, "scene_change", 0.0, 1.0),
    (MotionBlend, {}, "strength", 0.0, 0.98),
    (MotionBlend, {}, "match", 1e-6, 10.0),
    (MotionBlend, {}, "tolerance", 1e-6, 10.0),
    (MotionNoise, {}, "less", 0.0, 1.0),
    (MotionNoise, {}, "full", 1e-6, 2.0),
    (MotionNoise, {}, "inertia", 0.0, 0.999),
    (StreamConfig, STREAM, "clip_skip", 0, None),
    (StreamConfig, STREAM, "feedback", 0.0, 0.95),
    (StreamConfig, STREAM, "image_guidance_scale", 1.0, 100.0),
    (StreamConfig, STREAM, "deadline", 1e-4, 3600.0),
]


def beyond(value: float, direction: float) -> float:
    return value + int(direction) if isinstance(value, int) else math.nextafter(value, direction * INF)


@pytest.mark.parametrize(
    ("cls", "others", "name", "least", "most"), RANGES, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_numbers_are_checked_at_both_ends(
    cls: type[Config], others: dict[str, Any], name: str, least: float, most: float | None
) -> None:
    ends = [(least, -1), *([(most, 1)] if most not in (None, INF) else [])]
    for end, direction in ends:
        assert getattr(cls(**others, **{name: end}), name) == end
        wrong = beyond(end, direction)
        with pytest.raises(ValueError, match=rf"^{name} must be .*; got {wrong!r}$"):
            cls(**others, **{name: wrong})
    with pytest.raises(ValueError, match=rf"^{name} must be .*; got 'x'$"):
        cls(**others, **{name: "x"})


def test_a_bool_is_no_number_and_a_list_of_calls_is_kept_as_a_tuple() -> None:
    with pytest.raises(ValueError, match=r"^interval must be an integer >= 1; got True$"):
        Uniform(True)
    assert ScaledSteps([0, 3], 5).steps == (0, 3)  # type: ignore[arg-type]
