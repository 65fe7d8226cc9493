"""Seats that take some of another one's calls, with features and hooks of their own: small networks, and stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffaccel._diffusers import GUIDERS, RunningCall, hook_on
from diffaccel.attach.seat import Seat
from diffaccel.config.checks import check
from diffaccel.control.attach import CONTROL, attached_to
from diffaccel.networks.attention import is_read, of_pipeline
from diffaccel.networks.compiled import IN_PLACE, has_compiled_forward
from diffaccel.networks.inputs import Inputs, Signature
from diffaccel.runtime.attachment import ActHook, lost_from
from diffaccel.runtime.run import MOST_CALLS, NetworkRun, Run
from diffaccel.runtime.session import RunNetwork, Session
from diffaccel.runtime.shared_hooks import SharedHooks
from diffaccel.runtime.substitute import Stretch, Substitute, Turns, translated
from diffaccel.runtime.wrapper import Wrapper


class DeputySeat(Seat):
    """Runs the calls of `place` that are its own. Its hooks obey in them alone: other calls of its network are plain.

    Args:
        place: the seat whose calls it takes.
        model: the network on which it does.
        session: what is reused in it.
        turns: which calls are its own.
        wrappers: what stands between the pipeline and its network, outermost last.
    """

    taker: ClassVar[str]

    def __init__(
        self, place: Seat, model: Any, session: Session, turns: Turns | Stretch, wrappers: Sequence[Wrapper]
    ) -> None:
        self.place, self.turns = place, turns
        super().__init__(model, None, session, place.runs, wrappers)

    def attach(self) -> None:
        """Put the hooks on, for the first time or after `detach`."""
        places = self.session.places(self.model)
        self._hooked = {name: self.model.get_submodule(name) for name in places}
        self._hooks = SharedHooks({self._hooked[name]: ActHook(found) for name, found in places.items()})

    def detach(self) -> None:
        """Take all hooks off."""
        self._hooks.close()

    def lost(self) -> str | None:
        """As the place's seat says it."""
        return lost_from(self.model, self._hooked)

    @property
    def is_bypassed(self) -> bool:
        """As the place's seat says it."""
        return self.place.is_bypassed

    def follow(
        self, run: Run, running: RunningCall | None, inputs: Inputs, name: str | None, network: RunNetwork
    ) -> Any:
        """A call of a run.

        Raises:
            RuntimeError: where the steps of the run are not seen, so that its turns could not be told.
        """
        if run.networks[self].contexts.most > MOST_CALLS:
            raise RuntimeError(
                f"{self.taker} cannot tell the steps of this run, whose scheduler is not seen to step: pass "
                "scheduler= to accelerate()"
            )
        with self._hooks.using():
            return super().follow(run, running, inputs, name, network)

    def _require_memory(self, begins: int) -> None:
        """Refuse methods that rely on what was stored before the call at which the last turn begins.

        Raises:
            ValueError: naming the calls.
        """
        for start in [wrapper.relies_from for wrapper in self.wrappers if wrapper.relies_from is not None]:
            check(
                begins < start,
                f"the network changes at call {begins}, and from call {start} on another method needs what the same "
                f"network stored before: let it begin at call {begins + 1} or later, or change the network earlier",
            )

    def _total(self, run: Run) -> int | None:
        return self.place._total(run)


class SubstituteSeat(DeputySeat):
    """Runs calls on another network.

    Args:
        place: the seat of the network whose calls it takes.
        model: its own network.
        session: what is reused in it.
        substitute: which calls are its own, and whether they can be.
        wrappers: what stands between the pipeline and its network, outermost last.
    """

    is_substitute: ClassVar[bool] = True
    taker = "NetworkSwitch"

    def __init__(
        self, place: Seat, model: Any, session: Session, substitute: Substitute, wrappers: Sequence[Wrapper]
    ) -> None:
        self._require_fit, self._names = substitute.require_fit, Signature(model)
        super().__init__(place, model, session, substitute.turns, wrappers)

    @property
    def label(self) -> str:
        """What it is called in the report."""
        return f"small {type(self.model).__name__}"

    def follow(
        self,
        run: Run,
        running: RunningCall | None,
        inputs: Inputs,
        name: str | None,
        network: RunNetwork,  # noqa: ARG002
    ) -> Any:
        """A call of a run, on the own network.

        Raises:
            ValueError: for what is meant for the blocks of the other network.
        """
        self._require_own_blocks(run, inputs)
        inputs = translated(inputs, self._names, type(self.model).__name__)
        return super().follow(run, running, inputs, name, lambda call: self.model(**call.inputs.values))

    def _start(self, run: Run) -> NetworkRun:
        """Refuse turns that do not fit the run, or that end where a method needs what came before."""
        assert isinstance(self.turns, Turns)
        self._require_fit(run)
        theirs = of_pipeline(self.place._processed) - of_pipeline(self._processed)
        check(
            not theirs or is_read(self.place._processed),
            f"{type(run.host.pipe).__name__} works through {', '.join(sorted(theirs))} on layers of the large network, "
            "which the small one has not: use a method that only reuses features",
        )
        total = self._total(run)
        self.turns.validate(total)
        self._require_memory(max(self.turns.changes(total), default=0))
        return super()._start(run)

    def _require_own_blocks(self, run: Run, inputs: Inputs) -> None:
        """Refuse calls that blocks of the other network are prepared for."""
        controlled = CONTROL in (inputs.values.get("added_cond_kwargs") or {}) and attached_to(self.model) is None
        check(
            not controlled,
            f"control blocks are on the large network, and {type(self.model).__name__} has none: attach some to it, "
            "too, or use a method that only reuses features",
        )
        hook = None if getattr(run.host.pipe, "guider", None) is None else hook_on(self.place.model, GUIDERS)
        check(
            hook is None,
            f"the pipeline's guider changes blocks of the large network ({hook}), and {type(self.model).__name__} has "
            "others: use a method that only reuses features, or another guider",
        )


class StageSeat(DeputySeat):
    """Runs calls on the same network with other methods."""

    taker = "Staged"

    @property
    def label(self) -> str:
        """What the network is called in the report."""
        return self.place.label

    def attach(self) -> None:
        """Put the hooks on, for the first time or after `detach`.

        Raises:
            RuntimeError: if compiled code would not find the hooks that change from stage to stage.
        """
        modules = [self.model, *self.model.modules()]
        if any(getattr(m, IN_PLACE, None) or has_compiled_forward(m) for m in modules):
            raise RuntimeError(
                "Staged changes in mid-run what modules do, and code that is compiled already does not follow: use one "
                "method for the whole run, or a network that is not compiled"
            )
        super().attach()

    def _start(self, run: Run) -> NetworkRun:
        """Refuse stages that the run does not have, or that begin where a method needs what came before."""
        assert isinstance(self.turns, Stretch)
        total = self._total(run)
        self.turns.validate(total)
        first = self.turns.first(total)
        self._require_memory(first if first else -1)
        return super()._start(run)


def no_stages(seats: Sequence[Seat]) -> None:
    """Raise ValueError where some seats are those of stages, which calls outside of runs have no part in."""
    staged = any(isinstance(seat, StageSeat) for seat in seats)
    check(not staged, "calls that are forced belong to no run, and so to no stage of one: use a method without stages")
