"""Stochastic similarity filter (StreamDiffusion, arXiv 2312.12491, section 3.5): skip frames that hardly changed.

Published code sleeps to slow its producer down; here the caller paces, and the draw comes from a seeded generator.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from diffaccel.config import Config
from diffaccel.config.checks import check, number, whole


@dataclass(frozen=True)
class SimilarityFilter(Config):
    """Configuration of the filter.

    A frame is skipped with probability ``max(0, (cos - threshold) / (1 - threshold))``, where ``cos`` is the cosine
    similarity to the last frame that passed, both flattened and in [-1, 1].

    Args:
        threshold: similarity from which frames may be skipped, in [-1, 1].
        max_skip: most frames skipped in a row; the next one passes.
        seed: seed of the draws.

    Raises:
        ValueError: for a threshold outside [-1, 1] or ``max_skip < 1``.
    """

    threshold: float = 0.98
    max_skip: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        number("threshold", self.threshold, -1.0, 1.0)
        check(self.max_skip != 0, "max_skip=0 skips nothing: leave the filter out, with similarity=None")
        whole("max_skip", self.max_skip, 1)


def skip_probability(similarity: float, threshold: float) -> float:
    """Probability of skipping a frame at cosine ``similarity`` to the reference, 1 for an identical frame."""
    if similarity >= 1.0:
        return 1.0
    return max(0.0, (similarity - threshold) / (1.0 - threshold)) if threshold < 1.0 else 0.0


def cosine(frame: torch.Tensor, reference: torch.Tensor) -> float:
    """Cosine similarity of two frames of one shape, clamped to [-1, 1]; two black (all-zero) frames count as equal."""
    a, b = frame.flatten().float(), reference.flatten().float()
    dot, norms = torch.stack((a @ b, a.norm() * b.norm())).tolist()
    if norms == 0.0:
        return 1.0 if torch.equal(a, b) else 0.0
    return float(min(1.0, max(-1.0, dot / norms)))


class SimilarityState:
    """What a running filter remembers: the reference frame, the skips in a row, the generator."""

    def __init__(self, config: SimilarityFilter) -> None:
        self.config = config
        self._random = random.Random(config.seed)
        self._reference: torch.Tensor | None = None
        self._skipped = 0

    def skips(self, frame: torch.Tensor) -> bool:
        """Decide on ``frame`` (any shape, [-1, 1]); a frame that passes becomes the reference.

        Reading the similarity of a frame on a device waits for that device; frames from a camera are on the host.
        """
        reference = self._reference
        if reference is not None and reference.shape == frame.shape and self._skipped < self.config.max_skip:
            probability = skip_probability(cosine(frame, reference), self.config.threshold)
            if self._random.random() < probability:
                self._skipped += 1
                return True
        self.accept(frame)
        return False

    def accept(self, frame: torch.Tensor) -> None:
        """Let ``frame`` pass without asking: it becomes the reference, the count of skips starts again."""
        self._reference, self._skipped = frame, 0

    def forget(self) -> None:
        """Let the next frame pass: what was painted of the reference is out of date."""
        self._reference = None
