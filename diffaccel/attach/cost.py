"""The cost of each kind of network call, counted on a copy of the network whose tensors have no storage."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from diffaccel.attach.macs import count_macs, skeleton
from diffaccel.attach.plan import Plan
from diffaccel.runtime.attachment import Attachment
from diffaccel.runtime.host import Host
from diffaccel.runtime.tally import CallKind, Shapes, Tally


class UncountableError(RuntimeError):
    """The cost of a network's calls cannot be told from the shapes of its inputs."""


class CostModel:
    """Counts multiply-accumulates of the calls of one accelerated denoiser, each kind once.

    The network counts as it is when a kind of call is first asked about, LoRA layers included.

    Args:
        model: the denoiser, which is only read.
        plan: what is reused in it.
    """

    def __init__(self, model: torch.nn.Module, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self._known: dict[CallKind, int] = {}

    def macs(self, tally: Tally) -> tuple[int, int]:
        """Multiply-accumulates of all calls in `tally`: as they were, and had the pipeline's all been computed.

        Raises:
            UncountableError: if the network reads values of its inputs, as Lumina 2 does of its masks.
        """
        plain = {self._in_full(shapes): 0 for shapes, _ in tally.asked}
        new = {*tally.calls, *plain} - self._known.keys()
        if new:
            self._count(tally, new)
        done = sum(self._known[kind] * count for kind, count in tally.calls.items())
        return done, sum(self._known[self._in_full(shapes)] * count for (shapes, _), count in tally.asked.items())

    def _in_full(self, shapes: Shapes) -> CallKind:
        """A call of these shapes that computes everything."""
        count = len(self.plan.parts)
        return CallKind(shapes, (True,) * count, (0,) * count)

    def _count(self, tally: Tally, kinds: set[CallKind]) -> None:
        """For each shape run a full call, which records what the others of `kinds` then replay."""
        for ranges in {kind.ranges for kind in kinds}:
            clone = skeleton(self.model)
            session = self.plan.bare(ranges).session(clone, Host())
            Attachment(clone, session)
            alike = {kind for kind in kinds if kind.ranges == ranges}
            for shapes in {kind.shapes for kind in alike}:
                full = self._in_full(shapes)
                for kind in [full, *(kind for kind in alike if kind.shapes == shapes and kind != full)]:
                    with session.forced(kind.computes):
                        self._known[kind] = self._macs(clone, tally.examples[shapes])

    def _macs(self, clone: torch.nn.Module, inputs: Mapping[str, Any]) -> int:
        """Multiply-accumulates of a call on tensors without storage."""
        try:
            return count_macs(partial(clone, **inputs))
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            raise UncountableError(
                f"multiply-accumulates of {type(clone).__name__} are not known: it reads values of its inputs, and "
                "they are counted on tensors that have none"
            ) from error
