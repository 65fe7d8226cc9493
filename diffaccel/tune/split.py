"""Prompts in three parts: to search on, to choose among the best found, and to confirm what was chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffaccel.measure.workload import Workload

CALIBRATION = 8  # most prompts that the search runs, unless it is told otherwise
VALIDATION = 8  # most prompts that choose, each with noise of two seeds
HELD_OUT = 16  # most prompts that confirm


@dataclass(frozen=True)
class Split:
    """Three workloads whose seeds all differ.

    Attributes:
        seen: what the search runs.
        validation: what the best of the search are chosen by.
        held_out: what confirms the chosen one; nothing is chosen by it.
    """

    seen: Workload
    validation: Workload
    held_out: Workload


def split(prompts: Sequence[str], seed: int, calibration: int, settings: Mapping[str, Any]) -> Split:
    """Up to a third of the prompts each: the first to search, the last to confirm, those before them to choose.

    Where there are fewer than three, some serve twice, with other noise.

    Args:
        prompts: at least one.
        seed: of the search; the others have the three that follow.
        calibration: most prompts to search on.
        settings: of the pipeline's calls.
    """
    third = max(1, len(prompts) // 3)
    held_out = prompts[-min(HELD_OUT, third) :]
    others = prompts[: -len(held_out)] or prompts
    validation = others[-min(VALIDATION, third) :]
    seen = others[: -len(validation)] or others
    return Split(
        Workload(tuple(seen[:calibration]), (seed,), settings),
        Workload(tuple(validation), (seed + 1, seed + 2), settings),
        Workload(tuple(held_out), (seed + 3,), settings),
    )
