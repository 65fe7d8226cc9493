"""How a stored feature reaches a later call: unchanged, or extrapolated from its past (TaylorSeer, 2503.06923)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from diffaccel.config import Config
from diffaccel.config.checks import number, whole


class Forecast(Config):
    """Base of the ways to extrapolate stored features.

    Attributes:
        keeps_graph: whether features are stored with autograd's graph, as where weights are learned through them.
        aligns: whether it goes by what blocks in front measure of each row.
    """

    keeps_graph: ClassVar[bool] = False
    aligns: ClassVar[bool] = False

    def update(self, history: Any, feature: Any, step: int) -> Any:
        """The history after `feature` was computed at call `step`; `history` is None at first."""
        raise NotImplementedError

    def predict(self, history: Any, step: int) -> Any:
        """The feature expected at call `step`."""
        raise NotImplementedError

    def alignment(
        self, residual: torch.Tensor, known: Sequence[torch.Tensor], rows: int, apart: bool
    ) -> torch.Tensor | None:
        """For each row how far to go, given what the front blocks added in this call and in the last computed ones."""

    def align(self, history: Any, weights: torch.Tensor) -> Any:
        """The feature expected, given how far each row has gone, ``(rows,)``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Taylor(Forecast):
    """Taylor expansion of each feature over network calls, with finite differences as derivatives.

    D_0 = F and D_{j+1} = (D_j - D_j of the computed call before) / (calls between them) at computed calls; k calls
    later the feature is forecast as sum_j D_j k^j / j! (TaylorSeer, arXiv 2503.06923, equations 6 to 8).

    Args:
        order: highest power of the expansion, 0..4; 0 replays the feature unchanged. Stores order + 1 features.
        hermite: the contraction sigma of HiCache (arXiv 2508.16984), in (0, 1]: powers k^j are replaced by scaled
            Hermite polynomials sigma^j H_j(sigma k), which damp what is carried far; 0.5 is the paper's. None keeps the
            powers.
    """

    order: int = 1
    hermite: float | None = None

    def __post_init__(self) -> None:
        whole("order", self.order, 0, 4)
        if self.hermite is not None:
            number("hermite", self.hermite, 1e-3, 1.0)

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
        return tree_unflatten([expansion(derivatives, step - past, self.hermite) for derivatives in lists], structure)


def differences(old: Sequence[torch.Tensor], feature: torch.Tensor, gap: int, order: int) -> list[torch.Tensor]:
    """Finite differences D_0 .. D_order at a new computed call, `gap` calls after the differences `old`."""
    new = [feature]
    for previous in old[:order]:
        new.append((new[-1] - previous) / gap)
    return new


def expansion(derivatives: Sequence[torch.Tensor], ahead: int, hermite: float | None = None) -> torch.Tensor:
    """sum_j D_j P_j(ahead) / j!, with powers, or scaled Hermite polynomials, for P_j"""
    total = derivatives[0]
    for j, derivative in enumerate(derivatives[1:], start=1):
        basis = ahead**j if hermite is None else hermite**j * hermite_polynomial(j, hermite * ahead)
        total = total + derivative * (basis / math.factorial(j))
    return total


def hermite_polynomial(order: int, x: float) -> float:
    """H_0 = 1, H_1 = 2x, H_(j+1) = 2x H_j - 2j H_(j-1)"""
    before, value = 0.0, 1.0
    for j in range(order):
        before, value = value, 2 * x * value - 2 * j * before
    return value


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


@dataclass(frozen=True)
class Aligned(Forecast):
    """Go from the last but one computed feature through the last one, as far as the front blocks' residual has gone.

    F = F_1 + gamma (F_0 - F_1) with gamma = mean|r - r_1| / mean|r_0 - r_1| of each row, where r is what the front
    blocks add now, and r_0, r_1 what they added in the last computed calls (DiCache, arXiv 2508.17356, cache trajectory
    alignment). For `BlockCache`, whose front blocks run in every call. Stores two features.

    Args:
        limit: gamma is taken to be in 1..limit, as in the authors' code; 1 replays the feature unchanged.
    """

    aligns: ClassVar[bool] = True

    limit: float = 1.5

    def __post_init__(self) -> None:
        number("limit", self.limit, 1.0, 100.0)

    def update(self, history: Any, feature: Any, step: int) -> Any:  # noqa: ARG002
        """The last two features, latest first."""
        return [feature, feature if history is None else history[0]]

    def predict(self, history: Any, step: int) -> Any:  # noqa: ARG002
        """The last feature, where nothing was measured."""
        return history[0]

    def alignment(
        self, residual: torch.Tensor, known: Sequence[torch.Tensor], rows: int, apart: bool
    ) -> torch.Tensor | None:
        """gamma of each row, ``(rows,)``; residuals are ``(rows * anything, ...)``."""
        count = rows if apart else 1
        moved, before = (
            (x - known[1]).abs().reshape(count, -1).mean(dim=1, dtype=torch.float32) for x in (residual, known[0])
        )
        gamma = (moved / before).nan_to_num(nan=1.0, posinf=self.limit).clamp(1.0, self.limit)
        return gamma.expand(rows)

    def align(self, history: Any, weights: torch.Tensor) -> Any:
        """F_1 + gamma (F_0 - F_1)"""
        (latest, form), (before, _) = (tree_flatten(feature) for feature in history)
        pairs = zip(latest, before, strict=True)
        return tree_unflatten([_aligned(a, b, weights) if isinstance(a, torch.Tensor) else a for a, b in pairs], form)


def _aligned(latest: torch.Tensor, before: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Tensors ``(rows * anything, ...)``, weights ``(rows,)``."""
    each = weights.to(latest.dtype).repeat_interleave(latest.shape[0] // len(weights))
    return before + each.reshape(-1, *[1] * (latest.dim() - 1)) * (latest - before)


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
