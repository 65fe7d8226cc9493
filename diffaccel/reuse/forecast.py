"""How a stored feature reaches a later call: unchanged, or extrapolated from its past (TaylorSeer, 2503.06923)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from diffaccel.config import Config
from diffaccel.config.checks import whole


class Forecast(Config):
    """Base of the ways to extrapolate stored features.

    Attributes:
        keeps_graph: whether features are stored with autograd's graph, as where weights are learned through them.
    """

    keeps_graph: ClassVar[bool] = False

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


@dataclass(frozen=True)
class Newton(Forecast):
    """The polynomial through the last computed features, at the calls where they really were computed.

    Taylor expansions take their differences as derivatives at one point, which is exact only where computed calls are
    evenly spaced. Newton's divided differences need no such thing, so that this goes well with schedules whose gaps
    differ (`Threshold`, `FrontLoaded`), and is the best of the forecasts at small intervals. Written as weights of the
    stored features, F(t) = sum_j F(s_j) prod_{m != j} (t - s_m) / (s_j - s_m).

    Args:
        order: degree of the polynomial, 1..4; it stores one feature more than that. With fewer features the degree is
            lower.
    """

    order: int = 2

    def __post_init__(self) -> None:
        whole("order", self.order, 1, 4)

    def update(self, history: Any, feature: Any, step: int) -> Any:
        """History is a list of (call, feature), latest first."""
        return [(step, feature), *(history or [])][: self.order + 1]

    def predict(self, history: Any, step: int) -> Any:
        """The polynomial's value at call `step`."""
        weights = newton_weights([past for past, _ in history], step)
        flat = [tree_flatten(feature)[0] for _, feature in history]
        return tree_unflatten([weighted(tensors, weights) for tensors in zip(*flat, strict=True)], _spec(history[0][1]))


def newton_weights(steps: Sequence[int], step: int) -> list[float]:
    """Weights of values at `steps` in the polynomial through them, at `step`."""
    return [math.prod((step - other) / (own - other) for other in steps if other != own) for own in steps]


class Blend(Forecast):
    """A weighted sum of the last computed features, with weights of its own for each call that reuses.

    F(t) = sum_j w_j F(s_j), where s_0 > s_1 > ... are the last computed calls. Holding a feature is w = (1,), a Taylor
    expansion of order 1 is w = (1 + k / g, -k / g) for k calls ahead and g calls between the two.

    Args:
        weights: for each call its weights, latest feature first; a call that is not listed, or finds fewer features
            than weights, takes the last feature unchanged.
    """

    def __init__(self, weights: Mapping[int, tuple[float, ...]]) -> None:
        self.weights = weights
        self.depth = max((len(values) for values in weights.values()), default=1)

    def update(self, history: Any, feature: Any, step: int) -> Any:  # noqa: ARG002
        """The last features, latest first."""
        return [feature, *(history or [])][: self.depth]

    def predict(self, history: Any, step: int) -> Any:
        """The weighted sum for call `step`."""
        weights = self.weights.get(step, (1.0,))
        if len(weights) > len(history) or weights == (1.0,):
            return history[0]
        flat = [tree_flatten(feature)[0] for feature in history[: len(weights)]]
        return tree_unflatten([weighted(tensors, weights) for tensors in zip(*flat, strict=True)], _spec(history[0]))


def weighted(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """sum_j w_j x_j"""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def _spec(tree: Any) -> Any:
    """The structure of a tree of tensors."""
    return tree_flatten(tree)[1]
