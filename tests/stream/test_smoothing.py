"""Pictures that go along with what moves: a recursive filter by hand, nothing where there is nothing before."""

import importlib.util
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import stream_pipelines
import torch
from test_stream_host import hold

from diffaccel import MotionBlend, SimilarityFilter, StreamEngine

Build = Callable[..., StreamEngine]
SMOOTH = MotionBlend(0.8, match=0.2, tolerance=0.4)
OTHER_WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"stream_batch": False},
    {"frame_buffer": 2},
    {"frame_buffer": 4},
    {"cache": None, "similarity": SimilarityFilter(1.0)},
)


def film(frames: int = 6, side: int = 32) -> torch.Tensor:
    """A soft disc that wanders over a slope, ``(frames, 3, side, side)`` in [0, 1]."""
    axis = torch.linspace(-1, 1, side)
    x, y = axis[None, :], axis[:, None]
    pictures = []
    for k in range(frames):
        disc = torch.sigmoid(20 * (0.5 - ((x - 0.12 * k + 0.3) ** 2 + (y + 0.05 * k) ** 2).sqrt()))
        pictures.append(torch.stack([disc, 0.5 + 0.2 * x.expand_as(disc), 1 - 0.8 * disc]))
    return torch.stack(pictures).clamp(0, 1)


def by_hand(pushed: torch.Tensor, painted: torch.Tensor, how: MotionBlend) -> np.ndarray:
    """The filter in OpenCV alone, ``(frames, H, W, 3)`` in [0, 1]."""
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    seen, result = pushed.movedim(1, -1).numpy(), painted.movedim(1, -1).numpy().copy()
    greys = [np.rint(255 * frame @ np.array([0.299, 0.587, 0.114])).astype(np.uint8) for frame in seen]
    height, width = greys[0].shape
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    for k in range(1, len(seen)):
        flow = search.calc(greys[k], greys[k - 1], None)
        places = columns + flow[..., 0], rows + flow[..., 1]
        bring = lambda picture: cv2.remap(picture, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # noqa: B023, E731
        match = ((bring(seen[k - 1]) - seen[k]) ** 2).mean(-1)
        old = bring(result[k - 1])
        apart = np.abs(old - result[k]).mean(-1)
        ones = np.ones_like(apart)
        apart, counts = (
            cv2.boxFilter(x, -1, (5, 5), normalize=False, borderType=cv2.BORDER_CONSTANT) for x in (apart, ones)
        )
        share = how.strength * np.exp(-match / how.match**2 - (apart / counts / how.tolerance) ** 2)
        result[k] += share[..., None] * (old - result[k])
    return result


def painted(engine: StreamEngine, frames: torch.Tensor) -> torch.Tensor:
    with engine:
        return torch.stack([output.image for output in engine.stream(frames)])


@pytest.fixture
def build(engine: Build) -> Build:
    return lambda **settings: engine(**{"output_type": "pt", **settings})


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHER_WAYS, ids=str)
def test_it_is_the_filter_by_hand(build: Build, way: dict[str, Any]) -> None:
    frames = film()
    plain = painted(build(**way), frames)
    smooth = painted(build(**way, smoothing=SMOOTH), frames)
    # remap has places in 1/32 of a pixel
    np.testing.assert_allclose(smooth.movedim(1, -1), by_hand(frames, plain, SMOOTH).clip(0, 1), atol=0.01)
    assert (smooth - plain).abs().max() > 0.02


def test_no_strength_and_the_first_frame_are_plain(build: Build) -> None:
    frames = film()
    plain = painted(build(), frames)
    assert torch.equal(painted(build(smoothing=MotionBlend(0.0)), frames), plain)
    assert torch.equal(painted(build(smoothing=SMOOTH), frames[:1]), painted(build(), frames[:1]))


def test_noise_on_moving_pictures_is_evened_out_and_new_shapes_show_at_once(build: Build) -> None:
    frames, rng = film(8), torch.Generator().manual_seed(0)
    state = build(smoothing=MotionBlend())._state.smoothing
    assert state is not None
    noisy = (frames + 0.05 * torch.randn(frames.shape, generator=rng)) * 2 - 1
    noisy[7, :, :16] = -1.0  # black comes from nowhere
    tracks = state.enter(list((frames * 2 - 1).split(1)), None)
    steady = torch.cat([state.leave(noisy[k : k + 1], tracks[k : k + 1]) for k in range(8)])
    before, after = ((x[6] - (frames[6] * 2 - 1)).square().mean().sqrt() for x in (noisy, steady))
    assert after < 0.7 * before
    assert (steady[7, :, :12] + 1).abs().max() < 0.05


def test_other_settings_begin_anew_and_frames_that_were_dropped_lead_nowhere(build: Build) -> None:
    frames = film()
    one, plain = build(smoothing=SMOOTH, stream_batch=False), build(stream_batch=False)
    for engine in (one, plain):
        for frame in frames[:3]:
            engine.push(frame)
        engine.update(prompt="a dog")
    changed = [engine.push(frames[3])[0].image for engine in (one, plain)]
    assert torch.equal(*changed)
    left = build(smoothing=SMOOTH)
    flight = left.stream(frames[:4])
    next(flight)
    flight.close()  # two frames that were followed are dropped
    assert torch.equal(painted(left, frames[4:5])[0], painted(build(), frames[4:5])[0])


def test_it_is_switched_while_frames_fly(build: Build) -> None:
    engine, shown = build(smoothing=SMOOTH), []
    for k, frame in enumerate(film()):
        shown += engine.push(frame)
        engine.update(smoothing=None if k % 2 else MotionBlend(0.5 + k / 10))
    shown += engine.flush()
    assert [output.frame_id for output in shown] == list(range(6))
    assert all(output.image.isfinite().all() for output in shown)


def test_a_picture_that_is_not_finite_spoils_no_other(build: Build, sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, decode, calls = build(smoothing=SMOOTH, stream_batch=False), sd.vae.decode, []

    def spoiled(latents: torch.Tensor, **settings: Any) -> Any:
        calls.append(latents)
        (pictures,) = decode(latents, **settings)
        return (pictures * torch.nan if len(calls) == 2 else pictures,)

    monkeypatch.setattr(sd.vae, "decode", spoiled)
    shown = [output for frame in film() for output in engine.push(frame)]
    assert [output.frame_id for output in shown] == [0, 2, 3, 4, 5]
    assert engine.report().frames_not_finite == 1


def test_pictures_from_text_pass(build: Build) -> None:
    plain, smooth = build(), build(smoothing=SMOOTH)
    assert torch.equal(painted(smooth, [None] * 4), painted(plain, [None] * 4))  # type: ignore[arg-type]


@pytest.mark.slow
def test_streams_of_a_host_are_smoothed_apart() -> None:
    frames = film()
    smooth = {"smoothing": SMOOTH, "output_type": "pt"}
    hold(stream_pipelines.sd(), [smooth, smooth, {"output_type": "pt"}], [frames, frames.flip(0), frames.flip(3)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smoothing": SMOOTH, "output_type": "latent"}, "output_type='latent' makes none"),
        ({"smoothing": 0.5}, "smoothing must be a MotionBlend object, not 0.5"),
    ],
)
def test_what_cannot_be_smoothed_is_refused(build: Build, settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        build(**settings)
    with pytest.raises((ValueError, TypeError), match=words):
        build().update(**settings)


@pytest.mark.parametrize("values", [{"strength": 1.0}, {"strength": -0.1}, {"match": 0.0}, {"tolerance": float("nan")}])
def test_values_out_of_range_are_named(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        MotionBlend(**values)


def test_without_opencv_it_says_what_to_install(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("diffaccel.stream.smoothing.find_spec", lambda name: None if name == "cv2" else find(name))
    with pytest.raises(ValueError, match=r"diffaccel\[camera\]"):
        build(smoothing=SMOOTH)
