"""A model of what a plan costs in quality, to choose what is worth a real run; real runs decide.

Each reuse moves the final pictures along a direction that one real run has shown, in proportion to the error of its
blend; moves add up, with their signs. Errors do not quite add in truth, which is why nothing is decided here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from diffaccel.methods.recipe import BRANCH, OUTPUT
from diffaccel.tune.blend import left_over
from diffaccel.tune.space import COMPUTE, CallPlan, Choice, Space

Vectors = NDArray[np.float64]
Manner = tuple[str, int, bool]  # kind of part, most features of a blend, whether it is a Taylor expansion


@dataclass(frozen=True)
class Probe:
    """One reuse at one call, run alone.

    Attributes:
        call: the call.
        name: the part that it reused.
        error: relative error of the blend, ||F - F_blend|| / ||F||.
        size: root of the mean square by which the pictures moved.
    """

    call: int
    name: str
    error: float
    size: float


class ErrorModel:
    """Predicts the PSNR of plans.

    Args:
        space: the choices.
        directions: for each call from 1 on, how the pictures moved when the output was reused there alone,
            (calls - 1, pictures, values).
        errors: relative error of the output's blend in each of those runs.
        probes: single runs of the other parts.
    """

    def __init__(self, space: Space, directions: Vectors, errors: Vectors, probes: list[Probe]) -> None:
        self.space = space
        moves = np.concatenate([np.zeros_like(directions[:1]), directions])  # (calls, pictures, values)
        self.products = np.einsum("ipv,jpv->pij", moves, moves) / moves.shape[2]  # (pictures, calls, calls)
        self.errors = np.concatenate([[1.0], np.maximum(errors, 1e-9)])
        self.gains = {OUTPUT: np.ones(len(moves))} | self._gains(probes)
        self._known: dict[tuple[str, int, tuple[int, ...], bool], float] = {}

    def psnr(self, plan: CallPlan, scales: Mapping[Manner, float] = MappingProxyType({})) -> float:
        """Mean PSNR that is expected of a plan, in dB; `scales` are what errors were found to count, see `scale`."""
        sources = self.space.sources(plan)
        amounts = np.array(
            [
                self._amount(call, choice, sources[call]) * _scale(choice, scales) if choice.reused else 0.0
                for call, choice in enumerate(plan)
            ]
        )
        squares = np.einsum("i,pij,j->p", amounts, self.products, amounts)
        return float(np.mean(-10 * np.log10(np.maximum(squares, 1e-10))))

    def scale(self, plan: CallPlan, psnr: float) -> dict[Manner, float]:
        """What errors count, by a real run of a plan that makes one choice at all calls that reuse.

        Errors cancel in part where many calls in a row make the same ones; by how much is for runs to say.
        """
        choices = {choice for choice in plan if choice.reused}
        return {manner(choice): float(10 ** ((self.psnr(plan) - psnr) / 20)) for choice in choices}

    def _amount(self, call: int, choice: Choice, sources: Mapping[str, tuple[int, ...]]) -> float:
        """How far a call moves the pictures, in units of the move that was seen there."""
        return math.hypot(*(self._error(name, call, found, choice.taylor) for name, found in sources.items()))

    def _error(self, name: str, call: int, sources: tuple[int, ...], taylor: bool) -> float:
        """The amount of one reuse."""
        key = name, call, sources, taylor
        if key not in self._known:
            weights = self.space.weights(name, call, sources, taylor)
            error = left_over(self.space.grams[name], call, sources, weights)
            self._known[key] = error / self.errors[call] * float(self.gains[name][call])
        return self._known[key]

    def _gains(self, probes: list[Probe]) -> dict[str, Vectors]:
        """How much a relative error of each part counts against one of the output, by call, between its probes."""
        calls = np.arange(len(self.errors))
        sizes = np.sqrt(np.maximum(self.products.diagonal(axis1=1, axis2=2).mean(axis=0), 1e-20))  # (calls,)
        gains = {}
        for name in {probe.name for probe in probes}:
            own = sorted((p for p in probes if p.name == name), key=lambda p: p.call)
            ratios = [p.size / max(p.error, 1e-9) / (sizes[p.call] / self.errors[p.call]) for p in own]
            logs = np.interp(calls, [p.call for p in own], np.log(np.maximum(ratios, 1e-6)))
            gains[name] = np.exp(logs)
        return gains


def manner(choice: Choice) -> Manner:
    """What a choice reuses, groups of blocks not told apart, and how."""
    name = choice.reused[0]
    return name if name.startswith(BRANCH) else name.split()[0], choice.order, choice.taylor


def _scale(choice: Choice, scales: Mapping[Manner, float]) -> float:
    """What the errors of a choice count: as was found, or on average of other parts carried alike, or of all."""
    if not scales:
        return 1.0
    own = manner(choice)
    if own in scales:
        return scales[own]
    alike = [scale for key, scale in scales.items() if key[1:] == own[1:]] or list(scales.values())
    return float(np.exp(np.mean(np.log(alike))))


def single(name: str, call: int, total: int) -> CallPlan:
    """The plan that reuses one part at one call."""
    return tuple(Choice((name,)) if i == call else COMPUTE for i in range(total))
