"""Acts: what happens at some modules of a network; and parts: an act, when it reuses, and how it carries what it kept.

An act is a frozen description. At work it is a `PartState`, which the session prepares before each network call and
commits after it, and `Place`s, one for each module, which the module's hook asks. So hooks read plain attributes of one
object and nothing else, which compiled code can follow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from diffaccel.networks.inputs import Inputs
from diffaccel.reuse.ends import NO_ENDS, Ends
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.schedule import Schedule
from diffaccel.runtime.drift import Drift
from diffaccel.runtime.lanes import Block, LaneMemory, Lanes, Span, cat_rows, pieces_of
from diffaccel.runtime.resting import awake, device_of, renewed, settle
from diffaccel.runtime.trees import copied, detached

if TYPE_CHECKING:
    from diffaccel.runtime.call import Call

Lifetime = Literal["run", "control", "prompt", "frame", "video"]
"""What the memory of a part lasts as long as: a run of a pipeline or a stream, the same with one control image, a
prompt, a frame's control image, a video that is made chunk by chunk. In the first two, each group of rows decides for
itself."""


class Act(ABC):
    """What happens at some modules.

    Attributes:
        exclusive: whether no other method's act may work at the same modules. One that is not works within the others.
        from_first: whether it may reuse in a call before which nothing was stored.
        rests: whether what it stores may lie in the machine's memory between the calls that read it.
    """

    exclusive: ClassVar[bool] = True
    rests: ClassVar[bool] = True
    from_first: ClassVar[bool] = False

    @property
    def tells_alignment(self) -> bool:
        """Whether it measures in front of what it skips how far a forecast should go."""
        return False

    @property
    @abstractmethod
    def modules(self) -> tuple[str, ...]:
        """Names of its modules."""

    @property
    def measured(self) -> tuple[str, ...]:
        """Modules whose outputs it measures, within which nothing else may be replayed."""
        return ()

    @property
    def replayed(self) -> tuple[str, ...]:
        """Modules whose outputs come from earlier calls when it reuses; none that others' acts may work at, too."""
        return self.modules if self.exclusive else ()

    @property
    def slots(self) -> int:
        """Number of things that it stores for a lane."""
        return 0

    @abstractmethod
    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """What it does at each of its modules, each with the module's name."""

    def state(self, part: Part) -> PartState:
        """The part at work."""
        return PartState(part)

    def begin(self, state: PartState) -> None:  # noqa: B027 - most acts have nothing to prepare
        """Prepare for a network call; the decision may still be taken back here, as where something is missing."""

    def missing(self, state: PartState) -> tuple[int, ...]:  # noqa: ARG002
        """In a call that reuses, slots of which nothing is stored, so that their modules run."""
        return ()

    def variant(self, step: int, total: int | None) -> int:  # noqa: ARG002
        """Which of several ways to work is in force at a call; calls of another way cost something else."""
        return 0

    def fixed(self, variant: int) -> Act:  # noqa: ARG002
        """The same act with one of its ways always in force."""
        return self


@dataclass(frozen=True)
class Part:
    """An act, and when it reuses.

    Attributes:
        act: what happens, and where.
        schedule: when it computes.
        forecast: how stored features are carried to later calls; None leaves them unchanged.
        lifetime: what its memory lasts as long as.
        merge: what remains of stored rows when a method drops the negative half of a guided batch in mid-run: a
            function of positive and negative rows; None leaves the positive ones as they are.
        ends: calls at the ends of a run, in which it computes in any case.
        offload: whether what it carries to later calls lies in the machine's memory meanwhile.
    """

    act: Act
    schedule: Schedule
    forecast: Forecast | None = None
    lifetime: Lifetime = "run"
    merge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    ends: Ends = NO_ENDS
    offload: bool = False

    def __post_init__(self) -> None:
        if self.offload and not self.act.rests:
            raise ValueError(
                "offload=True is for features that later calls read now and then; what this method keeps is read in "
                "every call: leave it out"
            )
        if self.forecast is not None and self.forecast.aligns and not self.act.tells_alignment:
            name = type(self.forecast).__name__
            raise ValueError(
                f"{name} goes by what front blocks measure, which BlockCache alone has: use forecast=Taylor(1) here"
            )

    @property
    def counts_run(self) -> bool:
        """Whether it needs a run that ends, which an endless stream is not."""
        return self.schedule.counts_run or self.ends.counts_run

    def validate(self, total: int | None) -> None:
        """Raise ValueError if it does not fit a run of `total` network calls (None: unknown)."""
        self.schedule.validate(total)
        self.ends.validate(total)

    @property
    def of_run(self) -> bool:
        """Whether what it keeps is of a run or a stream, whose groups of rows decide for themselves."""
        return self.lifetime in ("run", "control")


SEVERAL_TIMES = (
    "a module whose output is kept runs several times in one network call, as with forward chunking or FreeNoise, so "
    "that one output would stand for all: switch that off, or use a method that keeps whole blocks, such as "
    "DeepCache or DeltaCache"
)


class PartState:
    """A part in the network call that is running; what its places read and write.

    Attributes:
        compute: whether its modules run.
        steps: for each block the index of the call within its run.
        variant: which way of the act is in force.
        writable: whether the network writes into outputs in place, so that what is stored must be copied.
        blocks: what its lanes stored, in the order of the rows; where it computes, what they will have stored.
        sizes: rows of each block.
        measures: where rows decide in mid-call, the rule: from their measured changes to whether they compute.
        late: places of the rows that must compute in a second call, because others reuse in this one.
        call: the network call.
        drift: what its rows gathered in earlier calls, by which they decide.
        alignment: for each row how far a forecast that asks for it goes, ``(rows,)``; None where it was not measured.
        homes: for each slot the device of features that rest in the machine's memory, None for those that do not.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.compute = True
        self.steps: list[int] = []
        self.variant = 0
        self.writable = False
        self.blocks: list[Block] = []
        self.sizes: list[int] = []
        self.measures: Callable[[list[float]], list[bool]] | None = None
        self.late: tuple[int, ...] = ()
        self.call: Call | None = None
        self.drift = Drift()
        self.alignment: torch.Tensor | None = None
        self.homes: dict[int, torch.device | None] = {}
        self._written: set[int] = set()

    @property
    def row_lanes(self) -> Lanes:
        """Lanes of its rows, in their order."""
        return tuple(lane for block in self.blocks for lane in block.lanes)

    def settle(self, decided: Sequence[bool]) -> None:
        """Rows have decided: all compute now, or those that must do so in a second call."""
        self.compute = all(decided)
        self.late = () if self.compute else tuple(row for row, computes in enumerate(decided) if computes)

    def prepare(
        self,
        own: Lanes,
        kept: LaneMemory,
        *,
        compute: bool,
        steps: Sequence[int],
        total: int | None,
        writable: bool,
        inputs: Inputs,  # noqa: ARG002 - for states that know what a network is given
        spans: Sequence[Span] = (),  # noqa: ARG002
    ) -> None:
        """Prepare for a call.

        Args:
            own: lanes of its rows.
            kept: what lanes stored.
            compute: what was decided.
            steps: for each row the index of the call in its run; blocks are cut where it differs.
            total: how many calls there are.
            writable: whether the network writes into outputs in place.
            inputs: of the network.
            spans: for each row the frames of a video that it shows, if any.
        """
        self.blocks, self.steps = [], []
        self._written.clear()
        for start, end in stretches(steps):
            found = self._blocks(own[start:end], kept, compute=compute, step=steps[start])
            self.blocks += found
            self.steps += [steps[start]] * len(found)
        self.sizes = [len(block.lanes) for block in self.blocks]
        self.compute, self.writable = compute, writable
        self.variant = self.part.act.variant(steps[0], total)
        self.measures, self.late, self.alignment = None, (), None
        self.part.act.begin(self)

    def _blocks(self, own: Lanes, kept: LaneMemory, *, compute: bool, step: int) -> list[Block]:
        """What lanes at one step stored, or blocks of nothing."""
        slots = self.part.act.slots
        if compute and (self.part.forecast is None or not kept.is_before(own, step)):
            return [Block(own, [None] * slots)]
        found = kept.take(own)  # copied, so that a call that fails has changed nothing
        return [Block(block.lanes, list(block.entries) if block.entries else [None] * slots) for block in found]

    def commit(self, kept: LaneMemory) -> None:
        """Store what was computed, once the network has returned."""
        for block, step in zip(self.blocks, self.steps, strict=True) if self.compute else ():
            kept.put([block], step)
        if self.compute:
            settle(self.homes.values())

    def why_full(self) -> str:
        """After the call, why it computed in full though it was to reuse; empty where it did not."""
        return ""

    def knows(self, slot: int) -> bool:
        """Whether all lanes stored something there."""
        return all(len(block.entries) > slot and block.entries[slot] is not None for block in self.blocks)

    def read(self, slot: int, *, carried: bool = True) -> Any:
        """What is stored, carried to this call, all rows together."""
        if len(self.blocks) == 1:
            return self._carry(0, slot, carried)
        return cat_rows([self._carry(index, slot, carried) for index, _ in enumerate(self.blocks)])

    def _carry(self, index: int, slot: int, carried: bool) -> Any:
        entry, forecast = self.blocks[index].entries[slot], self.part.forecast if carried else None
        if carried and (home := self.homes.get(slot)) is not None:
            entry = awake(entry, home)
        if forecast is None:
            return entry
        if forecast.aligns and self.alignment is not None:
            start = sum(self.sizes[:index])
            return forecast.align(entry, self.alignment[start : start + self.sizes[index]])
        return forecast.predict(entry, self.steps[index])

    def write(self, slot: int, value: Any, *, carried: bool = True) -> None:
        """Store what was computed for all rows, once. Nothing keeps autograd's graph, unless the forecast does."""
        if slot in self._written:
            raise RuntimeError(SEVERAL_TIMES)
        self._written.add(slot)
        forecast = self.part.forecast if carried else None
        value = value if forecast is not None and forecast.keeps_graph else detached(value)
        value = copied(value) if self.writable else value
        pieces = [value] if len(self.blocks) == 1 else pieces_of(value, self.sizes)
        home = self.homes[slot] = device_of(value) if carried and self.part.offload else None
        for block, step, piece in zip(self.blocks, self.steps, pieces, strict=True):
            update = partial(_updated, forecast, piece, step)
            entry = block.entries[slot]
            block.entries[slot] = update(entry) if home is None else renewed(entry, update, home)


class Place:
    """What an act does at one module. A module runs unless one of its places reuses."""

    @property
    def apart(self) -> bool:
        """Once the inputs are changed, whether they can no longer be those of the same module for other callers."""
        return False

    def ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Callable[..., Any]) -> None:
        """Decide what is still to be decided, before any place of the module is asked whether it reuses."""

    def reuses(self) -> bool:
        """Whether the module must not run in this call."""
        return False

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The module's inputs, as it shall see them."""
        return args, kwargs

    def recall(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """The output, without running the module."""
        raise RuntimeError("this act stores no outputs")

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What runs where the module runs: its forward, or something in its stead."""
        return forward

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """The module's output, as those after it shall see it."""
        return output


def _updated(forecast: Forecast | None, piece: Any, step: int, history: Any) -> Any:
    """What is stored after a feature was computed."""
    return piece if forecast is None else forecast.update(history, piece, step)


def stretches(values: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of the longest stretches of equal neighbours."""
    starts = [i for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))
