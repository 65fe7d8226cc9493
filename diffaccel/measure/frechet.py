"""Fréchet distance: how far a set of pictures is, as a whole, from another set, in the features of an image network.

Each set of features is taken for a Gaussian; the distance of two Gaussians (Fréchet, or 2-Wasserstein, squared) is

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

(Dowson & Landau 1982; of Inception's features it is the FID of Heusel et al. 2017, arXiv 1706.08500, equation 6). Here
the features are emoji-clip's, which has seen drawings and nothing else, so figures compare only with one another.
"""

import torch

from diffaccel.config.checks import check


def frechet_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Squared Fréchet distance of two sets of features, in squared units of a feature; 0 where they are equal.

    Covariances are the unbiased ones, without a ridge. Estimated from n samples the distance is biased upwards, about
    as 1 / n: compare only sets of equal sizes, and beside the distance of two real sets.

    Args:
        one: (n, features).
        other: (m, features).

    Raises:
        ValueError: the sets differ in features, hold no more samples than features, or numbers that are not finite.
    """
    check(
        one.ndim == other.ndim == 2 and one.shape[1] == other.shape[1],
        f"sets of features are (n, features), equally many; got {tuple(one.shape)} and {tuple(other.shape)}",
    )
    fewest, features = min(len(one), len(other)), one.shape[1]
    check(fewest > features, f"a covariance of {features} features needs more samples; got {fewest}")
    check(bool(one.isfinite().all() and other.isfinite().all()), "features must be finite; look at the pictures")
    (mean, root), (other_mean, other_root) = _moments(one), _moments(other)
    between = torch.linalg.svdvals(root @ other_root).sum()  # tr (C_a C_b)^(1/2), as the roots are symmetric
    spread = root.square().sum() + other_root.square().sum() - 2 * between
    distance = (mean - other_mean).square().sum() + spread
    return max(0.0, float(distance))  # below 0 by rounding alone


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (features,) and symmetric root of the covariance (features, features), in float64."""
    features = features.double()
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    return features.mean(0), (vectors * values.clamp(min=0).sqrt()) @ vectors.T
