"""Weights of blends of features computed earlier: least squares from Gram matrices, or a Taylor expansion."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from diffaccel.reuse.forecast import differences, expansion

RIDGE = 1e-3  # of the features' mean square: keeps weights small where features are nearly equal

Gram = NDArray[np.float64]


def blend(gram: Gram, target: int, sources: Sequence[int]) -> tuple[float, ...]:
    """The weights w that minimize ||F_t - sum_j w_j F_j||^2 + ridge, drawn towards (1, 0, ...).

    Args:
        gram: (calls, calls), gram[i, j] = <F_i, F_j>.
        target: the call t whose feature is to be blended.
        sources: calls whose features are at hand, the latest first.
    """
    own = gram[np.ix_(sources, sources)]
    hold = np.zeros(len(sources))
    hold[0] = 1.0
    if len(sources) == 1:
        return (1.0,)
    scale = RIDGE * gram[target, target]
    step = np.linalg.solve(own + scale * np.eye(len(sources)), gram[list(sources), target] - own @ hold)
    return tuple(float(round(weight, 5)) for weight in hold + step)


def taylor(target: int, sources: Sequence[int]) -> tuple[float, ...]:
    """The weights that make a blend the Taylor expansion of order len(sources) - 1 of `Taylor`.

    Args:
        target: the call t whose feature is forecast.
        sources: calls whose features are at hand, the latest first.
    """
    features = torch.eye(len(sources), dtype=torch.float64)
    derivatives = [features[-1]]
    for place in range(len(sources) - 2, -1, -1):
        gap = sources[place] - sources[place + 1]
        derivatives = differences(derivatives, features[place], gap, len(sources) - 1)
    return tuple(expansion(derivatives, target - sources[0]).tolist())


def left_over(gram: Gram, target: int, sources: Sequence[int], weights: Sequence[float]) -> float:
    """||F_t - sum_j w_j F_j|| / ||F_t||"""
    w = np.asarray(weights)
    own, cross = gram[np.ix_(sources, sources)], gram[list(sources), target]
    square = gram[target, target] - 2 * w @ cross + w @ own @ w
    return float(np.sqrt(max(square, 0.0) / gram[target, target]))
