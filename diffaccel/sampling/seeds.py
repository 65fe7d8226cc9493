"""Generators of noise, from any whole number as a seed."""

import torch


def generator_of(seed: int) -> torch.Generator:
    """A generator on the CPU that is seeded with as many bits of a number as torch takes."""
    return torch.Generator().manual_seed(seed % 2**64)
