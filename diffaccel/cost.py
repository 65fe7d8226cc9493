"""The cost of each kind of network call, counted on a copy of the network whose tensors have no storage."""

from functools import partial
from typing import Any

import torch

from diffaccel.clock import RunClock
from diffaccel.hooks import Attachment
from diffaccel.macs import count_macs, skeleton
from diffaccel.plan import Plan
from diffaccel.tally import CallKind, Tally


class CostModel:
    """Counts multiply-accumulates of the calls of one accelerated denoiser, each kind once.

    Args:
        model: the denoiser, which is only read.
        plan: what is reused in it.
    """

    def __init__(self, model: torch.nn.Module, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self._known: dict[CallKind, int] = {}

    def macs(self, tally: Tally) -> tuple[int, int]:
        """Multiply-accumulates of all calls in `tally`: as they were, and had every one computed everything."""
        new = tally.calls.keys() - self._known.keys()
        if new:
            self._count(tally, {kind.shapes for kind in new}, new)
        done = sum(self._known[kind] * count for kind, count in tally.calls.items())
        return done, sum(self._known[_in_full(kind)] * count for kind, count in tally.calls.items())

    def _count(self, tally: Tally, shapes: set[tuple[Any, ...]], kinds: set[CallKind]) -> None:
        """Run one full call of each of `shapes`, which records what the others of `kinds` replay."""
        clone = skeleton(self.model)
        session = self.plan.session(clone, RunClock())
        Attachment(clone, session)
        for shape in shapes:
            full = CallKind(shape, (True,) * len(self.plan.parts))
            for kind in [full, *(kind for kind in kinds if kind.shapes == shape and kind != full)]:
                with session.forced(kind.computes):
                    self._known[kind] = count_macs(partial(clone, **tally.examples[shape]))


def _in_full(kind: CallKind) -> CallKind:
    """A call of the same shapes that computes everything."""
    return CallKind(kind.shapes, (True,) * len(kind.computes))
