"""Every number of a setting is checked at both ends, its error names it, and what is left out stays."""

import math
from typing import Any

import pytest

from diffaccel.config import Config
from diffaccel.methods import DeepCache
from diffaccel.reuse.forecast import Aligned, Newton, Taylor
from diffaccel.reuse.measure import SeaFilter
from diffaccel.reuse.schedule import BackLoaded, FrontLoaded, Quadratic, ScaledSteps, Threshold, Uniform
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.sampling.guidance import FullGuidance, NoGuidance, OneTimeNegative, SelfNegative
from diffaccel.sampling.samplers import LCM, TCD, FlowMatching
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.motion import MotionNoise
from diffaccel.stream.similarity import SimilarityFilter
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


@pytest.mark.parametrize(
    ("required", "whole"),
    [
        ({"interval": 2}, FrontLoaded(2, power=1.5, total=None)),
        ({"interval": 2}, Quadratic(2, center=15, power=1.4, total=None)),
        ({"threshold": 0.1}, Threshold(0.1, max_reuse=None, measure=None)),
        ({}, Taylor(order=1, hermite=None)),
        ({}, Newton(order=2)),
        ({}, Aligned(limit=1.5)),
        ({}, SeaFilter(power=3.0)),
        ({}, LCM(timestep_scaling=10.0, sigma_data=0.5)),
        ({}, TCD(eta=0.3)),
        ({}, FlowMatching(stochastic=False)),
        ({}, FullGuidance(scale=1.5)),
        ({}, SelfNegative(scale=1.2, delta=1.0)),
        ({}, OneTimeNegative(scale=1.2, delta=1.0)),
        ({}, CausalContext(window=4, sink=0, refresh="never", commit="clean", positions="auto", offload=False)),
        ({}, CrossFrame(frames=4, blocks=(), scene_change=0.1)),
        ({"method": DeepCache(2)}, SlotCache(DeepCache(2), key="stage", scene_change=0.1, control=None)),
        ({}, SimilarityFilter(threshold=0.98, max_skip=10, seed=0)),
        ({}, MotionBlend(strength=0.85, match=0.1, tolerance=0.2)),
        ({}, MotionNoise(less=0.2, full=0.2, inertia=0.1)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_is_left_out_is_as_before(required: dict[str, Any], whole: Any) -> None:
    """Another default would change the pictures of everyone who named none."""
    assert type(whole)(**required) == whole


def test_what_a_stream_is_not_told_is_as_before() -> None:
    left_out = StreamConfig(**STREAM)
    assert (left_out.num_inference_steps, left_out.guidance, left_out.frame_buffer) == (50, NoGuidance(), 1)
    assert (left_out.shared_noise, left_out.add_noise, left_out.stream_batch) == (False, True, True)
    assert (left_out.output_type, left_out.fit, left_out.blend) == ("pil", "crop", "linear")
    assert (left_out.seed, left_out.feedback, left_out.controlnet_scale) == (0, 0.0, 1.0)
    assert (left_out.negative_prompt, left_out.regions, left_out.image_guidance_scale) == ("", (), 1.0)
