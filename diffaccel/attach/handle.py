"""accelerate(pipe, *methods): put methods on the denoisers of a pipeline, and take them off again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

from diffaccel._diffusers import hooks_of
from diffaccel.attach.cost import CostModel
from diffaccel.attach.plan import Plan, companion_plan, plan
from diffaccel.attach.report import Report, summarize
from diffaccel.methods import Method
from diffaccel.networks import UnsupportedModelError, is_companion, supported, supports
from diffaccel.runtime.attachment import HOOK, Attachment
from diffaccel.runtime.host import Host
from diffaccel.runtime.session import Forced, Session

OFFLOADS = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")


def accelerate(pipe_or_model: Any, *methods: Method, guided: bool | None = None) -> "Handle":
    """Reuse features between the network calls of a diffusers pipeline.

        with accelerate(pipe, DeepCache(interval=3, branch=0)) as handle:
            image = pipe("a red heart").images[0]
        print(handle.report())

    Every denoiser of the pipeline is accelerated, and each run of the pipeline starts afresh. A bare network notices a
    new run when its timesteps are the elements of one tensor, as in `for t in scheduler.timesteps`, or numbers that
    turn direction; otherwise call `Handle.reset` before a run. A ControlNet of the pipeline computes only what the
    denoiser will read.

    Args:
        pipe_or_model: a pipeline, or a denoiser such as `pipe.unet`.
        methods: what to reuse, and when; see `diffaccel.methods`.
        guided: whether the rows of a network call are halves, negative prompts first; None asks the pipeline, and
            takes a bare network to be unguided. Only methods that drop the negative half care.

    Raises:
        UnsupportedModelError: if there is no denoiser of a known kind, or a method does not work on it.
        ValueError: if a setting does not fit the network, or two methods cannot work together.
        RuntimeError: if a denoiser is accelerated already, or compiled in a way that hooks cannot enter.
    """
    if not methods:
        raise ValueError("accelerate needs at least one method, such as DeepCache(interval=3)")
    for method in methods:
        if not isinstance(method, Method):
            hint = f": text is read by diffaccel.methods.parse({method!r})" if isinstance(method, str) else ""
            raise TypeError(f"{method!r} is not a method{hint}; methods are {', '.join(Method.names())}")
    bare = isinstance(pipe_or_model, torch.nn.Module)
    models = [pipe_or_model] if bare else _denoisers(pipe_or_model)
    companions = [] if bare else _controlnets(pipe_or_model)
    for model in [*models, *companions]:
        _require_free(model)
    return Handle(models, companions, methods, Host(None if bare else pipe_or_model, guided))


class Handle:
    """An accelerated pipeline, from `accelerate`. Usable with `with`, which detaches at the end."""

    def __init__(
        self,
        denoisers: Sequence[torch.nn.Module],
        companions: Sequence[torch.nn.Module],
        methods: Sequence[Method],
        host: Host,
    ) -> None:
        self._costs: list[CostModel] = []
        self._attachments: list[Attachment] = []
        self._detached = False
        self._host = host
        plans = [(model, plan(model, methods)) for model in denoisers]
        followers = [(model, companion_plan(model, denoisers[0], methods)) for model in companions]
        try:
            for model, planned in plans:
                self._attach(model, planned, planned.session(model, host))
            for model, planned in followers:
                if planned.parts:
                    self._attach(model, planned, planned.session(model, host, self._attachments[0].session))
        except BaseException:
            self.detach()
            raise
        self._follow_offload()

    def _attach(self, model: torch.nn.Module, planned: Plan, session: Session) -> None:
        """Put a session on a network."""
        self._attachments.append(Attachment(model, session))
        self._costs.append(CostModel(model, planned))

    def detach(self) -> None:
        """Take all hooks off: the pipeline is as it was before `accelerate`. Doing so twice is harmless.

        Raises:
            RuntimeError: if something was put on top of our hooks since; the message says what to remove first.
        """
        for attachment in reversed(self._attachments):
            attachment.remove()
        for name in OFFLOADS if self._host.pipe is not None else ():
            vars(self._host.pipe).pop(name, None)
        self._detached = True

    def _follow_offload(self) -> None:
        """Stay above CPU offload's hooks, which a pipeline puts on anew at the end of each call."""
        for name in OFFLOADS:
            if hasattr(self._host.pipe, name):
                vars(self._host.pipe)[name] = partial(self._offload, name)

    def _offload(self, name: str, *args: Any, **kwargs: Any) -> None:
        pipe = self._host.pipe
        with self.suspended():
            getattr(type(pipe), name)(pipe, *args, **kwargs)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """All hooks are off within, and on again after, so that others, such as CPU offload's, are put on below them.

        Features are forgotten; the report's totals stay. Nothing happens to a handle that is detached.

        Raises:
            RuntimeError: as `detach` does.
        """
        if self._detached:
            yield
            return
        self.detach()
        try:
            yield
        finally:
            self._attachments = [Attachment(a.model, a.session) for a in self._attachments]
            self._detached = False
            self._follow_offload()

    def reset(self) -> None:
        """Forget all features, so that the next network call starts a run. The report's totals stay."""
        for attachment in self._attachments:
            attachment.session.reset()

    @contextmanager
    def forced(self, compute: Forced, context: str | None = None) -> Iterator[None]:
        """Network calls within compute (True) or reuse (False), whatever the schedules say.

        For callers that drive the network themselves, such as a stream whose rows are slots with a timestep each.
        Runs are not looked for meanwhile: `reset` says that one starts. The first call of a context computes.

        Args:
            compute: True or False for all, one of them per reusable part, or None to let the schedules decide.
            context: keeps the features of these calls apart from those of other contexts.
        """
        with ExitStack() as stack:
            for attachment in self._attachments:
                stack.enter_context(attachment.session.forced(compute, context))
            yield

    def report(self) -> Report:
        """What was computed, replayed and saved since `accelerate`."""
        return summarize(self._costs, [attachment.session for attachment in self._attachments])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def _denoisers(pipe: Any) -> list[torch.nn.Module]:
    """The denoisers among a pipeline's components."""
    components = getattr(pipe, "components", None)
    if not isinstance(components, dict):
        raise TypeError(f"accelerate takes a diffusers pipeline or a denoiser; got {type(pipe).__name__}")
    found = [component for component in components.values() if supports(getattr(component, "_orig_mod", component))]
    if not found:
        modules = sorted(type(c).__name__ for c in components.values() if isinstance(c, torch.nn.Module))
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no supported denoiser among {', '.join(modules)}; "
            f"supported are {', '.join(supported())}"
        )
    return found


def _controlnets(pipe: Any) -> list[torch.nn.Module]:
    """The ControlNets that run before the denoiser in each step; several in a MultiControlNetModel."""
    controlnet = pipe.components.get("controlnet")
    nets = getattr(controlnet, "nets", [controlnet])
    return [net for net in nets if is_companion(net)]


def _require_free(model: torch.nn.Module) -> None:
    """Refuse a denoiser that is accelerated already, or whose hooks would be compiled."""
    if HOOK in hooks_of(model):
        raise RuntimeError(f"this {type(model).__name__} is accelerated already: call detach() on its handle first")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise RuntimeError(
            "the denoiser was compiled as a whole, so hooks cannot decide outside of the compiled code; compile its "
            "forward instead, before accelerate(): unet.forward = torch.compile(unet.forward, fullgraph=True), "
            "or use unet.compile_repeated_blocks(fullgraph=True)"
        )
