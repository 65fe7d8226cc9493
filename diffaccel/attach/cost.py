"""The cost of each kind of network call, counted on a copy of the network whose tensors have no storage."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch

from diffaccel.attach.macs import count_macs, skeleton
from diffaccel.attach.plan import Plan
from diffaccel.networks.inputs import Signature
from diffaccel.runtime.act import Lifetime
from diffaccel.runtime.attachment import Attachment
from diffaccel.runtime.call import Call
from diffaccel.runtime.lanes import Lane
from diffaccel.runtime.memory import Memory, PartMemory
from diffaccel.runtime.session import Session
from diffaccel.runtime.tally import Tally
from diffaccel.runtime.trace import CallKind, CallTrace, Shapes


class UncountableError(RuntimeError):
    """The cost of a network's calls cannot be told from the shapes of its inputs."""


class CostModel:
    """Counts multiply-accumulates of the calls of one accelerated denoiser, each kind once.

    The network counts as it is when a kind of call is first asked about, LoRA layers included.

    Args:
        model: the denoiser, which is only read.
        plan: what is reused in it.
        count: what is counted of a call, given a function that makes it.
    """

    def __init__(
        self, model: torch.nn.Module, plan: Plan, count: Callable[[Callable[[], Any]], int] = count_macs
    ) -> None:
        self.model = model
        self.plan = plan
        self.count = count
        self._known: dict[CallKind, int] = {}

    def of(self, call: CallTrace) -> tuple[int, int]:
        """Multiply-accumulates of one call that `macs` has counted: as it was, and in full."""
        return sum(self._known[kind] for kind in call.kinds), self._known[self._in_full(call.shapes)]

    def macs(self, tally: Tally) -> tuple[int, int]:
        """Multiply-accumulates of all calls in `tally`: as they were, and had the pipeline's all been computed.

        Raises:
            UncountableError: if the network reads values of its inputs, as Lumina 2 does of its masks, or was changed
                since, so that it takes others.
        """
        asked = tally.switched.copy()
        for (shapes, _), count in tally.asked.items():
            asked[shapes] += count
        plain = {self._in_full(shapes): count for shapes, count in asked.items()}
        new = {*tally.calls, *plain} - self._known.keys()
        if new:
            self._count(tally, new)
        done, full = (sum(self._known[k] * n for k, n in kinds.items()) for kinds in (tally.calls, plain))
        return done, full

    def _in_full(self, shapes: Shapes) -> CallKind:
        """A call of these shapes that computes everything."""
        count = len(self.plan.parts)
        return CallKind(shapes, (True,) * count, (0,) * count, ((),) * count)

    def _count(self, tally: Tally, kinds: set[CallKind]) -> None:
        """For each shape run a full call, which stores what the others of `kinds` then reuse."""
        for variants in {kind.variants for kind in kinds}:
            clone = skeleton(self.model)
            session = Session(clone, self.plan.fixed(variants))
            Attachment(clone, session)
            alike = {kind for kind in kinds if kind.variants == variants}
            for shapes in {kind.shapes for kind in alike}:
                memory = Memory(session.parts)
                full = self._in_full(shapes)
                self._known[full] = self._macs(clone, session, memory, tally.examples[shapes], full)
                stored = memory.copied_parts()
                for kind in {kind for kind in alike if kind.shapes == shapes} - {full}:
                    with memory.at(stored):
                        self._known[kind] = self._macs(clone, session, memory, tally.examples[shapes], kind)

    def _macs(
        self, clone: torch.nn.Module, session: Session, memory: Memory, example: Mapping[str, Any], kind: CallKind
    ) -> int:
        """Multiply-accumulates of a call on tensors without storage."""
        inputs = Signature(clone).bind((), example)
        lanes = tuple(Lane("cost", row) for row in range(inputs.rows))
        for index, (part, computed) in enumerate(zip(session.parts, kind.computes, strict=True)):
            if computed and part.lifetime != "run":  # projections look for themselves what is missing
                memory.parts[index] = PartMemory()
            for slot in kind.missing[index]:
                memory.parts[index].lanes.take(lanes)[0].entries[slot] = None
        call = Call(inputs, dict.fromkeys(get_args(Lifetime), lanes), forced=kind.computes)
        try:
            return self.count(lambda: session.run(call, memory, lambda call: clone.forward(**call.inputs.values)))
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            raise UncountableError(
                f"multiply-accumulates of {type(clone).__name__} are not known: it reads values of its inputs, and "
                "they are counted on tensors that have none"
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UncountableError(
                f"multiply-accumulates of {type(clone).__name__} are not known: it was changed since these calls, and "
                f"does not take their inputs any more, as where an IP-Adapter was loaded ({error}): run the pipeline "
                "as it is now, or ask for the report before such changes"
            ) from error


class SubstituteCost(CostModel):
    """Counts those of a network that takes some of another one's calls, which are held against the other's.

    Args:
        model: the network.
        plan: what is reused in it.
        place: the cost of the other network's calls, which is asked first.
    """

    def __init__(self, model: torch.nn.Module, plan: Plan, place: CostModel) -> None:
        super().__init__(model, plan)
        self.place = place

    def of(self, call: CallTrace) -> tuple[int, int]:
        """Multiply-accumulates of one call: as it was, and in full on the other network."""
        return super().of(call)[0], self.place._known[self.place._in_full(call.shapes)]

    def macs(self, tally: Tally) -> tuple[int, int]:
        """Multiply-accumulates of all calls in `tally`; what they would have been counts at the other network."""
        return super().macs(tally)[0], 0
