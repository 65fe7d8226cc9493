"""The Fréchet distance against what is known in closed form."""

import pytest
import torch

from diffaccel.measure import Judge, captions, frechet_distance


def gaussian(mean: torch.Tensor, covariance: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """Samples (n, features) whose own mean and covariance are exactly these."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).T + mean


def covariance(seed: int, features: int = 5) -> torch.Tensor:
    a = torch.randn(features, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T + 0.1 * torch.eye(features, dtype=torch.float64)


def test_equal_sets_have_no_distance() -> None:
    one = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(one, one.flip(0)) == pytest.approx(0.0, abs=1e-10)


def test_a_shift_counts_with_its_square() -> None:
    one = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet_distance(one, one + 0.5) == pytest.approx(4 * 0.25)


def test_gaussians_of_independent_features() -> None:
    """Where covariances commute the distance is that of the standard deviations."""
    mean, other = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([0.5, 1.0, 1.0]).double()
    deviations, others = torch.tensor([1.0, 2.0, 0.1]).double(), torch.tensor([3.0, 2.0, 0.4]).double()
    one = gaussian(mean, deviations.square().diag(), 40)
    two = gaussian(other, others.square().diag(), 60, seed=1)
    expected = (mean - other).square().sum() + (deviations - others).square().sum()
    assert frechet_distance(one, two) == pytest.approx(expected.item())


def test_gaussians_of_any_covariance() -> None:
    """Against the eigenvalues of the product, a way that shares no root with the one under test."""
    mean, c, d = torch.zeros(5).double(), covariance(0), covariance(1)
    one, two = gaussian(mean, c, 40), gaussian(mean + 1, d, 60, seed=1)
    expected = 5 + c.trace() + d.trace() - 2 * torch.linalg.eigvals(c @ d).real.sqrt().sum()
    assert frechet_distance(one, two) == pytest.approx(expected.item())
    assert frechet_distance(two, one) == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (torch.zeros(9, 3), torch.zeros(9, 4), r"equally many; got \(9, 3\) and \(9, 4\)"),
        (torch.zeros(9), torch.zeros(9), r"equally many"),
        (torch.zeros(9, 4), torch.zeros(4, 4), r"4 features needs more samples; got 4"),
        (torch.zeros(9, 4), torch.full((9, 4), torch.nan), r"must be finite"),
    ],
)
def test_bad_features_are_refused(one: torch.Tensor, other: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(one, other)


def test_a_judge_gives_its_image_features() -> None:
    judge = Judge(captions())
    pictures = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    features = judge.features(pictures)
    with torch.no_grad():
        expected = judge.model.get_image_features(pixel_values=pictures * 2 - 1)
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(judge.features(pictures[:1]), expected[:1])
