"""Noise of several seeds, and results that go into the next frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stream_pipelines import Build

from diffaccel.sampling.guidance import NoGuidance
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.engine import StreamEngine
from diffaccel.stream.seeds import SeededNoise, weighted_seeds
from diffaccel.stream.state import StreamState


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def between(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    """Shoemake's formula on the directions, and the lengths between those of both."""
    u, v = a / a.norm(), b / b.norm()
    angle = torch.arccos((u * v).sum())
    direction = (torch.sin((1 - weight) * angle) * u + torch.sin(weight * angle) * v) / torch.sin(angle)
    return direction * ((1 - weight) * a.norm() + weight * b.norm())


def test_noise_of_two_seeds_lies_between_them() -> None:
    first, second = drawn(1, 2, 4, 8, 8), drawn(5, 2, 4, 8, 8)
    mixed = SeededNoise({1: 3.0, 5: 1.0}).draw(2, 4, 8, 8)
    wanted = torch.stack([between(a, b, 0.25) for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(mixed, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(SeededNoise([(1, 1.0), (5, 0.0)]).draw(2, 4, 8, 8), first, rtol=0, atol=0)
    torch.testing.assert_close(SeededNoise(5).draw(2, 4, 8, 8), second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        ("one", TypeError, "a seed is an integer, a mapping of seed to weight, or pairs, not 'one'"),
        (True, TypeError, "not True"),
        ({2**64: 1.0}, ValueError, "seed must be a 64-bit integer"),
        ({1: -1.0, 2: 3.0}, ValueError, "weights of seeds must be finite, not negative"),
        ({}, ValueError, "and sum to more than 0"),
        ({1: float("inf")}, ValueError, "must be finite"),
    ],
)
def test_bad_seeds_are_refused(seed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        weighted_seeds(seed)


def latents_of(stream: StreamEngine, frame: torch.Tensor) -> torch.Tensor:
    """The result of a frame that one stage finishes at once, ``(1, C, h, w)``."""
    (output,) = stream.push(frame)
    image: torch.Tensor = output.image
    return image[None]


def test_a_frame_is_painted_with_the_noise_between_two_seeds(engine: Build, frames: torch.Tensor) -> None:
    shape = latents_of(engine(timestep_indices=(30,)), frames[0]).shape
    noise = between(drawn(1, *shape), drawn(2, *shape), 0.5)
    wanted = engine(timestep_indices=(30,)).push(frames[0], latents=noise)[0].image
    blended = engine(timestep_indices=(30,), seed={1: 1.0, 2: 1.0}).push(frames[0])[0].image
    torch.testing.assert_close(blended, wanted, rtol=1e-4, atol=1e-4)


def test_feedback_puts_the_last_result_into_the_next_input(
    engine: Build, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = engine(timestep_indices=(30,), feedback=0.4)
    first, second = latents_of(fed, frames[0]), latents_of(fed, frames[1])
    plain = engine(timestep_indices=(30,))
    torch.testing.assert_close(latents_of(plain, frames[0]), first, rtol=0, atol=0)
    assert not torch.allclose(latents_of(plain, frames[1]), second, atol=1e-3)
    encode = plain._codec.encode
    monkeypatch.setattr(plain._codec, "encode", lambda pixels: 0.6 * encode(pixels) + 0.4 * first)
    torch.testing.assert_close(latents_of(plain, frames[1]), second, rtol=1e-4, atol=1e-4)


def test_feedback_is_forgotten_with_the_frames(engine: Build, frames: torch.Tensor) -> None:
    fed = engine(timestep_indices=(30,), feedback=0.4)
    alone = latents_of(fed, frames[1])
    fed.reset()
    latents_of(fed, frames[0])
    fed.reset()
    torch.testing.assert_close(latents_of(fed, frames[1]), alone, rtol=0, atol=0)


def test_a_result_that_is_not_finite_is_not_fed_back() -> None:
    config = StreamConfig(prompt="a cat", guidance=NoGuidance(), timestep_indices=(30,), height=32, width=32)
    state, source = StreamState(config, torch.device("cpu")), torch.ones(1, 4, 2, 2)
    state.keep_result(torch.full((1, 4, 2, 2), float("nan")))
    assert torch.equal(state.fed_back(source, 0.5), source)
    state.keep_result(torch.full((1, 4, 2, 2), 3.0))
    assert torch.equal(state.fed_back(source, 0.5), 2 * source)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "much"])
def test_feedback_out_of_range_is_refused(engine: Build, value: Any) -> None:
    with pytest.raises(ValueError, match=r"feedback must be a number in \[0.0, 0.95\]"):
        engine(feedback=value)
