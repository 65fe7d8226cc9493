"""Streams whose pictures begin with less noise where they move: as a plain loop paints them at those noise levels."""

from typing import Any

import pytest
import torch
from stream_pipelines import Build
from stream_reference import Step, clean_latents, lcm, noises, text
from test_every_method_in_streams import close, pipeline
from test_stream_host import hold

from diffaccel import DeepCache, MotionNoise, SelfNegative, SimilarityFilter, SlotCache

MOTION = MotionNoise(less=0.15, full=0.5, inertia=0.25)


def clip() -> torch.Tensor:
    """Six pictures ``(6, 3, 32, 32)`` in [0, 1] that move ever more."""
    base = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3))
    return torch.stack([base.lerp(1 - base, (k / 6) ** 2) for k in range(6)])


def begun(still: float) -> list[float]:
    """What each picture of the clip begins at, written plainly."""
    found, before, last = [], still, None
    for picture in (clip().double() * 2 - 1).numpy():
        moved = 0.0 if last is None else float(((picture - last) ** 2).mean() ** 0.5)
        before = 0.75 * (still - 0.15 * min(1.0, moved / 0.5)) + 0.25 * before
        found, last = [*found, before], picture
    return found


@pytest.mark.parametrize("settings", [{}, {"stream_batch": False}, {"guidance": SelfNegative(1.3)}], ids=str)
def test_pictures_begin_where_a_plain_loop_begins(engine: Build, sd: Any, settings: dict[str, Any]) -> None:
    stream = engine(motion=MOTION, **settings)
    grid = stream._course.settings.stages.timesteps
    shown = [out.image for out in stream.stream(clip())]
    strengths = begun(grid[0] / 1000)
    assert strengths[0] == grid[0] / 1000
    assert strengths[0] > strengths[2] > strengths[5] > grid[1] / 1000
    noise, prompt = noises(2, 3, 1, (4, 4, 4)), text(sd, "a cat")
    guided = {"guidance": "self", "scale": 1.3} if "guidance" in settings else {}
    for picture, strength, image in zip(clip(), strengths, shown, strict=True):
        times = [round(strength * 1000), *map(int, grid[1:])]
        steps = [Step(t, noise[i, 0], prompt, **guided) for i, t in enumerate(times)]  # type: ignore[arg-type]
        close(image, lcm(sd, clean_latents(sd, picture[None])[0], steps))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_streams_with_and_without_it_share_calls(name: str) -> None:
    films = [clip(), clip().flip(0), clip()]
    settings: list[dict[str, Any]] = [
        {"motion": MotionNoise(0.1)},
        {},
        {"motion": MotionNoise(0.15), "frame_buffer": 2},
    ]
    host = hold(pipeline(name), [{"timestep_indices": (15, 30)} | own for own in settings], films)
    assert host.report().streams_per_call["network"] > 1.3


def test_a_still_scene_is_painted_as_ever_and_still_frames_are_skipped(engine: Build) -> None:
    still = clip()[:1].repeat(4, 1, 1, 1)
    close(*(torch.stack([out.image for out in s.stream(still)]) for s in (engine(motion=MOTION), engine())))
    filtered = engine(motion=MOTION, similarity=SimilarityFilter(0.98, 10), timestep_indices=(25,))
    assert sum(out.skipped for out in filtered.stream(still)) > 0


def test_frames_that_move_reuse_what_those_before_stored(engine: Build) -> None:
    cached = engine(motion=MOTION, cache=SlotCache(DeepCache(2), scene_change=1.0))
    assert len(list(cached.stream(clip()))) == 6
    assert cached.report().replayed_rows > 6


def test_it_changes_live_and_frames_in_flight_go_on(engine: Build) -> None:
    stream, shown = engine(motion=MOTION), []
    for k, picture in enumerate(clip()):
        shown += stream.push(picture)
        stream.update(**({"prompt": "a dog"} if k % 2 else {"motion": MOTION if k == 2 else None}))
    shown += stream.flush()
    assert [out.frame_id for out in shown] == list(range(6))
    assert all(out.image.isfinite().all() for out in shown)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"motion": MotionNoise(0.4)},
            "first stage, which begins at 0.80, and the second one at 0.50: use .* below 0.30",
        ),
        (
            {"motion": MotionNoise(0.3), "timestep_indices": (38,)},
            "at 0.24, and there is none below it: use .* below 0.24",
        ),
        ({"motion": 0.2}, "motion must be a MotionNoise object, not 0.2"),
    ],
)
def test_too_much_less_noise_is_refused(engine: Build, settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        engine(**settings)
    stream = engine(**{**settings, "motion": None})
    with pytest.raises((ValueError, TypeError), match=words):
        stream.update(motion=settings["motion"])
    assert stream.config.motion is None
