"""One network of an accelerated pipeline: each call that the pipeline makes becomes a `Call` of the right run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch

from diffaccel._diffusers import RESET_ATTRIBUTE, ContextName, Hook, RunningCall
from diffaccel.networks.attention import is_read, with_processor
from diffaccel.networks.inputs import Inputs, Signature
from diffaccel.runtime.act import Lifetime
from diffaccel.runtime.attachment import Attachment
from diffaccel.runtime.call import Call, Forced
from diffaccel.runtime.contexts import KNOWN, fingerprint
from diffaccel.runtime.lanes import Lane
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.run import MOST_CALLS, NetworkRun, Run, Runs
from diffaccel.runtime.session import RunNetwork, Session
from diffaccel.runtime.timesteps import differs
from diffaccel.runtime.wrapper import Wrapper, within

if TYPE_CHECKING:
    from diffaccel.attach.substitute import DeputySeat


class RootHook(Hook):
    """Sits on a network and hands its calls to the seat."""

    _is_stateful = True

    def __init__(self, seat: Seat) -> None:
        super().__init__()
        self.seat = seat
        self.context = ContextName()

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Run one network call."""
        return self.seat.call(args, kwargs, self.original, self.context.name)

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Forget the run: diffusers calls this at the end of a pipeline."""
        self.seat.runs.end()
        return module


class Seat:
    """A network at work for a handle.

    Args:
        model: the network.
        name: its name among the pipeline's components, None for a bare network.
        session: what is reused in it.
        runs: of the handle.
        wrappers: what stands between the pipeline and the network, outermost last.
        leader: the denoiser's seat, for a ControlNet that runs before it.

    Attributes:
        deputies: seats that take some of the calls.
        is_substitute: whether it takes calls of another network.
    """

    deputies: Sequence[DeputySeat] = ()
    is_substitute: ClassVar[bool] = False

    def __init__(
        self,
        model: torch.nn.Module,
        name: str | None,
        session: Session,
        runs: Runs,
        wrappers: Sequence[Wrapper],
        leader: Seat | None = None,
    ) -> None:
        self.model, self.name, self.session, self.runs = model, name, session, runs
        self.wrappers, self.leader = tuple(wrappers), leader
        self._signature = Signature(model)
        self._processed = with_processor(model)
        self._checkpointing = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
        self._forced: Forced = None
        self._context: str | None = None
        self._steered = Memory(session.parts)  # features of calls that somebody else decides about
        self._lock = threading.RLock()  # one call at a time: the hooks read one state
        self.attach()

    @property
    def label(self) -> str:
        """What the network is called in the report."""
        return self.name or type(self.model).__name__

    def attach(self) -> None:
        """Put the hooks on, for the first time or after `detach`."""
        self.attachment = Attachment(self.model, self.session, RootHook(self))
        if not hasattr(self.model, RESET_ATTRIBUTE):
            self.model.__dict__[RESET_ATTRIBUTE] = self.runs.end

    def detach(self) -> None:
        """Take all hooks off.

        Raises:
            RuntimeError: if something was put on top of our hooks since; nothing is changed then.
        """
        with self._lock:  # not in the middle of another thread's call
            self.attachment.remove()
            self.model.__dict__.pop(RESET_ATTRIBUTE, None)
            self._steered.clear()

    def lost(self) -> str | None:
        """Name of a module with a hook that was taken out of the network since; None if there is none."""
        return self.attachment.lost()

    @property
    def is_bypassed(self) -> bool:
        """Whether hooks were taken off together with what lay beneath them, as where offload ends."""
        return self.attachment.is_bypassed

    def reset(self) -> None:
        """Forget features of calls that were forced; those of runs go with the runs."""
        self._steered.clear()

    def nbytes(self) -> int:
        """Bytes of the storage that features take at the moment."""
        runs = sum(run.networks[self].memory.nbytes() for run in self.runs.open if self in run.networks)
        return runs + self._steered.nbytes()

    @contextmanager
    def forced(self, compute: Forced, context: str | None) -> Iterator[None]:
        """See `Handle.forced`."""
        before = self._forced, self._context
        self._forced, self._context = compute, context
        try:
            yield
        finally:
            self._forced, self._context = before

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], forward: Any, name: str | None) -> Any:
        """Run one call of the network as the pipeline makes it; one that raises ends its run."""
        with self._lock:
            self._require_alone()
            self._require_once()
            inputs = self._signature.bind(args, kwargs)
            network: RunNetwork = lambda call: forward(**call.inputs.values)  # noqa: E731
            if self._forced is not None:
                return self._steer(inputs, network)
            run, running = self.runs.current(inputs.timestep)
            try:
                run.advance(inputs.timestep)
                seat = self._on_duty(run)
                output = seat.follow(run, running, inputs, self._context or name, network)
                if seat.is_substitute:
                    self.session.tally.pass_on(inputs)
                return output
            except BaseException:
                self.runs.drop(run)
                raise

    def _require_alone(self) -> None:
        """Refuse another cache on the same network."""
        if getattr(self.model, "is_cache_enabled", False):
            raise RuntimeError(
                f"enable_cache() was called on this {type(self.model).__name__} while diffaccel accelerates it: call "
                "disable_cache(), or detach() on the handle"
            )

    def _require_once(self) -> None:
        """Refuse blocks that run again in the backward pass, when the acts are at another call."""
        if torch.is_grad_enabled() and any(module.gradient_checkpointing for module in self._checkpointing):
            raise RuntimeError(
                f"gradient checkpointing runs blocks of this {type(self.model).__name__} again in the backward pass, "
                "where nothing tells which call they belong to: call disable_gradient_checkpointing() on it, or "
                "detach() on the handle"
            )

    def _steer(self, inputs: Inputs, network: RunNetwork) -> Any:
        """A call that the caller decides about, outside of any run."""
        group = ("forced", self._context, fingerprint(inputs.sample))
        lanes = tuple(Lane(group, row) for row in range(inputs.rows))
        call = Call(inputs, dict.fromkeys(get_args(Lifetime), lanes), forced=self._forced)
        return self._wrapped(call, self._steered, network, None)

    def _on_duty(self, run: Run) -> Seat:
        """Who takes the call at hand; one that comes back has nothing to reuse."""
        own = run.networks.get(self) or self._start(run)
        if not self.deputies or own.in_full:
            return self
        assert own.first is not None
        step, total = run.step - own.first, self._total(run)
        chosen = next((seat for seat in self.deputies if seat.turns.takes(step, total)), self)
        for seat in (self, *self.deputies):
            theirs = run.networks[seat]
            if seat is not chosen and not theirs.idle:
                theirs.memory.break_off()
            theirs.idle = seat is not chosen
        return chosen

    def follow(
        self, run: Run, running: RunningCall | None, inputs: Inputs, name: str | None, network: RunNetwork
    ) -> Any:
        """A call of a run that has started."""
        own = run.networks[self]
        context, leading = self._context_in(run, own, inputs, name)
        memory, in_full = own.memory, own.in_full
        if own.contexts.most > MOST_CALLS:
            in_full = "more calls with one prompt than steps tell apart"
        elif own.contexts.too_many:
            in_full = own.in_full = f"more than {KNOWN} prompts in one step"
        elif inputs.fills_cache:
            in_full = "calls for keys and values that the network keeps itself"
        if in_full:
            self.session.tally.full[in_full] += 1
            memory = Memory(self.session.parts)
        count = inputs.rows
        roles = self._roles(run, own, running, inputs, context, name) if self._reads_roles and not in_full else ()
        group = (lambda row: (context, roles[row])) if self._by_prompt and roles else (lambda row: context)  # noqa: ARG005
        features = tuple(Lane(group(row), row) for row in range(count))
        prompt = ("prompt", own.contexts.constants(inputs), fingerprint(inputs.sample))
        prompts = tuple(Lane(prompt, row) for row in range(count))
        assert own.first is not None
        image = own.contexts.control(inputs) if self.leader is not None else 0  # a ControlNet's is its control image
        pictured = tuple(Lane(group(row), (row, image)) for row in range(count))
        lanes = {"run": features, "control": pictured, "prompt": prompts, "frame": prompts}
        step = run.step - own.first
        call = Call(inputs, lanes, step, self._total(run), roles=roles, run=run, view=context[2:])  # type: ignore[arg-type]
        return self._wrapped(call, memory, network, leading, alone=bool(in_full))

    def _start(self, run: Run) -> NetworkRun:
        """What a run remembers of this network; refuses what does not fit it before anything computes."""
        own = NetworkRun(Memory(self.session.parts), first=run.step)
        if self.runs.thread not in (None, threading.get_ident()):
            own.in_full = "another thread's calls, which asked for no acceleration"
            run.networks[self] = own
            return own
        if is_read(self._processed):
            own.in_full = "the pipeline reads what attentions compute"
        elif run.host.pipe is not None and differs(run.opening):  # whose rows share one table of timesteps
            own.in_full = "rows of one call are at timesteps of their own"
        total = self._total(run)
        for part in self.session.parts:
            part.validate(total)
        for wrapper in self.wrappers:
            wrapper.ends.validate(total)
            wrapper.start_run(run, total)
        run.networks[self] = own
        for seat in self.deputies:
            seat._start(run)
        return own

    def _total(self, run: Run) -> int | None:
        """Calls of a run that the pipeline makes of this network."""
        return run.total((self.leader or self).model)

    def _context_in(self, run: Run, own: NetworkRun, inputs: Inputs, name: str | None) -> tuple[Any, Memory | None]:
        """The context of a call; a ControlNet shares that of the denoiser's call to come, whose memory decides."""
        if self.leader is None:
            return own.contexts.of(inputs, name, run.step), None
        lead = run.networks.get(self.leader) or self.leader._start(run)
        return lead.contexts.of(self._prompted(inputs), name, run.step, peek=True), lead.memory

    def _prompted(self, inputs: Inputs) -> Inputs:
        """Inputs whose conditioning is the prompt; a ControlNet's own is its control image."""
        if self.leader is None:
            return inputs
        return replace(inputs, names=(*inputs.names[:2], self.leader._signature.names[2]))

    @property
    def _reads_roles(self) -> bool:
        return self._by_prompt or any(wrapper.reads_roles for wrapper in self.wrappers)

    @property
    def _by_prompt(self) -> bool:
        """Whether rows of the prompt and of the negative prompt decide apart; a ControlNet's as the denoiser's do."""
        return any(part.schedule.reads_prompt for part in (self.leader or self).session.parts)

    def _roles(
        self, run: Run, own: NetworkRun, running: RunningCall | None, inputs: Inputs, context: Any, name: str | None
    ) -> tuple[str, ...]:
        """Which rows see the negative prompt, found out once for each context."""
        if context not in own.roles:
            if run.host.guided and not isinstance(inputs.sample, torch.Tensor):
                raise ValueError(
                    "guided=True speaks of halves of rows, and this network takes a list of samples: leave guided out, "
                    "and use a method that does not drop the negative ones"
                )
            conditioning = self._prompted(inputs).conditioning
            own.roles[context] = run.host.roles(conditioning, inputs.rows, name, running)
        return own.roles[context]

    def _wrapped(
        self, call: Call, memory: Memory, network: RunNetwork, leading: Memory | None, *, alone: bool = False
    ) -> Any:
        """Run a call within its wrappers, or `alone`."""
        inner: RunNetwork = lambda call: self.session.run(call, memory, network, leading)  # noqa: E731
        wrappers = self.wrappers if call.forced is None and not alone else ()
        with self.session.tally.outer(call):
            return within(wrappers, memory, inner)(call)
