"""How a stored feature reaches a later call: unchanged, or extrapolated from its past (TaylorSeer, 2503.06923)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from diffaccel.config import Config, whole


class Forecast(Config):
    """Base of the ways to extrapolate stored features."""

    def update(self, history: Any, feature: Any, step: int) -> Any:
        """The history after `feature` was computed at call `step`; `history` is None at first."""
        raise NotImplementedError

    def predict(self, history: Any, step: int) -> Any:
        """The feature expected at call `step`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Taylor(Forecast):
    """Taylor expansion of each feature over network calls, with finite differences as derivatives.

    D_0 = F and D_{j+1} = (D_j - D_j of the computed call before) / (calls between them) at computed calls; k calls
    later the feature is forecast as sum_j D_j k^j / j! (TaylorSeer, arXiv 2503.06923, equations 6 to 8).

    Args:
        order: highest power of the expansion, 0..4; 0 replays the feature unchanged. Stores order + 1 features.
    """

    order: int = 1

    def __post_init__(self) -> None:
        whole("order", self.order, 0, 4)

    def update(self, history: Any, feature: Any, step: int) -> Any:
        """History is (call of the last computation, one list of differences per tensor, structure of the feature)."""
        tensors, structure = tree_flatten(feature)
        if history is None:
            return step, [[tensor] for tensor in tensors], structure
        past, lists, _ = history
        updated = [differences(old, new, step - past, self.order) for old, new in zip(lists, tensors, strict=True)]
        return step, updated, structure

    def predict(self, history: Any, step: int) -> Any:
        """The stored feature carried forward to call `step`."""
        past, lists, structure = history
        return tree_unflatten([expansion(derivatives, step - past) for derivatives in lists], structure)


def differences(old: Sequence[torch.Tensor], feature: torch.Tensor, gap: int, order: int) -> list[torch.Tensor]:
    """Finite differences D_0 .. D_order at a new computed call, `gap` calls after the differences `old`."""
    new = [feature]
    for previous in old[:order]:
        new.append((new[-1] - previous) / gap)
    return new


def expansion(derivatives: Sequence[torch.Tensor], ahead: int) -> torch.Tensor:
    """sum_j D_j ahead^j / j!"""
    total = derivatives[0]
    for j, derivative in enumerate(derivatives[1:], start=1):
        total = total + derivative * (ahead**j / math.factorial(j))
    return total
