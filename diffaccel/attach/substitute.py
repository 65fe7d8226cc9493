"""The seat of a network that takes some of another one's calls, with features and hooks of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffaccel._diffusers import RunningCall
from diffaccel.attach.seat import Seat
from diffaccel.config.checks import check
from diffaccel.networks.inputs import Inputs, Signature
from diffaccel.runtime.attachment import ActHook
from diffaccel.runtime.run import MOST_CALLS, NetworkRun, Run
from diffaccel.runtime.session import RunNetwork, Session
from diffaccel.runtime.shared_hooks import SharedHooks
from diffaccel.runtime.substitute import Substitute, translated
from diffaccel.runtime.wrapper import Wrapper


class SubstituteSeat(Seat):
    """Runs the calls of `place` that are its own. Its hooks obey in them alone: other calls of its network are plain.

    Args:
        place: the seat of the network whose calls it takes.
        model: its own network.
        session: what is reused in it.
        substitute: which calls are its own, and whether they can be.
        wrappers: what stands between the pipeline and its network, outermost last.
    """

    is_substitute: ClassVar[bool] = True

    def __init__(
        self, place: Seat, model: Any, session: Session, substitute: Substitute, wrappers: Sequence[Wrapper]
    ) -> None:
        self.place, self.turns, self._require_fit = place, substitute.turns, substitute.require_fit
        self._names = Signature(model)
        super().__init__(model, None, session, place.runs, wrappers)

    def attach(self) -> None:
        """Put the hooks on, for the first time or after `detach`."""
        places = self.session.places(self.model)
        self._hooks = SharedHooks({self.model.get_submodule(name): ActHook(found) for name, found in places.items()})

    def detach(self) -> None:
        """Take all hooks off."""
        self._hooks.close()

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
            RuntimeError: where the steps of the run are not seen, so that its turns could not be told.
        """
        if run.networks[self].contexts.most > MOST_CALLS:
            raise RuntimeError(
                "NetworkSwitch cannot tell the steps of this run, whose scheduler is not seen to step: pass "
                "scheduler= to accelerate()"
            )
        inputs = translated(inputs, self._names, type(self.model).__name__)
        with self._hooks.using():
            return super().follow(run, running, inputs, name, lambda call: self.model(**call.inputs.values))

    def _start(self, run: Run) -> NetworkRun:
        """Refuse turns that do not fit the run, or that end where a method needs what came before."""
        self._require_fit(run)
        total = self._total(run)
        self.turns.validate(total)
        last = max(self.turns.changes(total), default=0)
        for start in [wrapper.relies_from for wrapper in self.wrappers if wrapper.relies_from is not None]:
            check(
                last < start,
                f"the network changes at call {last}, and from call {start} on another method needs what the same "
                f"network stored before: let it begin at call {last + 1} or later, or change the network earlier",
            )
        return super()._start(run)

    def _total(self, run: Run) -> int | None:
        return self.place._total(run)
