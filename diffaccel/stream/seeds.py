"""Noise from a seed, or from several that are blended, as a picture between two pictures asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from diffaccel.config.checks import weighted_pairs, weights
from diffaccel.networks.conditioning import slerp

Seed = int | Mapping[int, float] | Sequence[tuple[int, float]]


def weighted_seeds(seed: Seed) -> tuple[tuple[int, float], ...]:
    """A seed in its one form: pairs of seed and weight.

    Raises:
        TypeError: where it is neither a number, a mapping, nor pairs.
        ValueError: for seeds that are no 64-bit integers, and weights that are negative or sum to 0.
    """
    alone = isinstance(seed, int) and not isinstance(seed, bool)
    problem = f"a seed is an integer, a mapping of seed to weight, or pairs, not {seed!r}"
    pairs = weighted_pairs({seed: 1.0} if alone else seed, problem)
    for one, _ in pairs:
        if isinstance(one, bool) or not isinstance(one, int) or not -(2**63) <= one < 2**64:
            raise ValueError(f"seed must be a 64-bit integer, not {one!r}")
    weights("weights of seeds", [weight for _, weight in pairs])
    return pairs


class SeededNoise:
    """Draws of standard normal noise on the CPU, one after the other.

    Args:
        seed: one, or several with weights: their noises are blended by spherical interpolation (Shoemake 1985), one at
            a time, which keeps their variance.
    """

    def __init__(self, seed: Seed) -> None:
        pairs = [(one, weight) for one, weight in weighted_seeds(seed) if weight > 0]
        self._parts = [(torch.Generator().manual_seed(one), weight) for one, weight in pairs]

    def draw(self, rows: int, *shape: int) -> torch.Tensor:
        """The next noise, ``(rows, *shape)``; each row is blended by itself."""
        generator, seen = self._parts[0]
        mixed = torch.randn(rows, *shape, generator=generator)
        for generator, weight in self._parts[1:]:
            seen += weight
            other = torch.randn(rows, *shape, generator=generator)
            mixed = slerp(mixed.flatten(1), other.flatten(1), weight / seen).view(rows, *shape)
        return mixed
