"""The stochastic similarity filter against its formula."""

import random

import pytest
import torch

from diffaccel.stream.similarity import SimilarityFilter, SimilarityState, cosine, skip_probability


def test_probability_is_the_papers() -> None:
    assert skip_probability(0.99, 0.98) == pytest.approx(0.5)
    assert skip_probability(0.98, 0.98) == 0.0
    assert skip_probability(0.2, 0.98) == 0.0
    assert skip_probability(1.0, 0.98) == 1.0
    assert skip_probability(1.0, 1.0) == 1.0
    assert skip_probability(0.9999, 1.0) == 0.0


def test_cosine() -> None:
    a, b = torch.rand(3, 8, 8) - 0.5, torch.rand(3, 8, 8) - 0.5
    expected = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
    assert cosine(a, b) == pytest.approx(expected, abs=1e-6)
    assert cosine(a, a) == pytest.approx(1.0)
    assert cosine(torch.zeros(3), torch.zeros(3)) == 1.0
    assert cosine(torch.zeros(3), torch.ones(3)) == 0.0


def decisions(config: SimilarityFilter, frames: list[torch.Tensor]) -> list[bool]:
    state = SimilarityState(config)
    return [state.skips(frame) for frame in frames]


def reference(config: SimilarityFilter, frames: list[torch.Tensor]) -> list[bool]:
    """The rules, spelled out."""
    draws, last, skipped, out = random.Random(config.seed), None, 0, []
    for frame in frames:
        skip = False
        if last is not None and skipped < config.max_skip:
            cos = torch.nn.functional.cosine_similarity(frame.flatten(), last.flatten(), dim=0).item()
            skip = draws.random() < max(0.0, (cos - config.threshold) / (1 - config.threshold))
        skipped = skipped + 1 if skip else 0
        last = last if skip else frame
        out.append(skip)
    return out


@pytest.mark.parametrize("seed", range(5))
def test_follows_the_rules(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(3, 8, 8, generator=generator)
    frames = [base + 0.2 * torch.rand(3, 8, 8, generator=generator) for _ in range(60)]
    config = SimilarityFilter(threshold=0.97, max_skip=3, seed=seed)
    assert decisions(config, frames) == reference(config, frames)
    assert 0 < sum(decisions(config, frames)) < 60


def test_at_most_max_skip_in_a_row() -> None:
    frames = [torch.ones(3, 4, 4)] * 12
    assert decisions(SimilarityFilter(0.9, max_skip=3), frames) == [False, True, True, True] * 3


def test_the_reference_changes_only_when_a_frame_passes() -> None:
    """A slow drift is noticed, because every frame is compared with the last one that passed."""
    angles = torch.linspace(0, 1.5, 40)
    frames = [torch.stack((a.cos(), a.sin())) for a in angles]
    skips = decisions(SimilarityFilter(0.95, max_skip=1000), frames)
    assert 2 <= skips.count(False) < 40
    assert not any(decisions(SimilarityFilter(1.0, max_skip=1000), frames))


def test_a_new_size_passes() -> None:
    assert decisions(SimilarityFilter(0.0), [torch.ones(3, 4, 4), torch.ones(3, 8, 8)]) == [False, False]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"threshold": 1.5}, r"threshold must be a number in \[-1.0, 1.0\]; got 1.5"),
        ({"threshold": float("nan")}, r"threshold must be a number in \[-1.0, 1.0\]; got nan"),
        ({"max_skip": 0}, "max_skip=0 skips nothing: leave the filter out, with similarity=None"),
        ({"max_skip": -1}, "max_skip must be an integer >= 1; got -1"),
    ],
)
def test_bad_values(arguments: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SimilarityFilter(**arguments)
