"""The cost of each kind of network call, counted on a copy of the network whose tensors have no storage."""

from functools import partial

import torch

from diffaccel.hooks import Attachment
from diffaccel.host import Host
from diffaccel.macs import count_macs, skeleton
from diffaccel.plan import Plan
from diffaccel.tally import CallKind, Shapes, Tally


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
        """Multiply-accumulates of all calls in `tally`: as they were, and had the pipeline's all been computed."""
        plain = {self._in_full(shapes): 0 for shapes, _ in tally.asked}
        new = {*tally.calls, *plain} - self._known.keys()
        if new:
            self._count(tally, new)
        done = sum(self._known[kind] * count for kind, count in tally.calls.items())
        return done, sum(self._known[self._in_full(shapes)] * count for (shapes, _), count in tally.asked.items())

    def _in_full(self, shapes: Shapes) -> CallKind:
        """A call of these shapes that computes everything."""
        return CallKind(shapes, (True,) * len(self.plan.parts))

    def _count(self, tally: Tally, kinds: set[CallKind]) -> None:
        """For each shape run a full call, which records what the others of `kinds` then replay."""
        clone = skeleton(self.model)
        session = self.plan.without_wrappers().session(clone, Host())
        Attachment(clone, session)
        for shapes in {kind.shapes for kind in kinds}:
            full = self._in_full(shapes)
            for kind in [full, *(kind for kind in kinds if kind.shapes == shapes and kind != full)]:
                with session.forced(kind.computes):
                    self._known[kind] = count_macs(partial(clone, **tally.examples[shapes]))
