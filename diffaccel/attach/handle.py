"""accelerate(pipe, *methods): put methods on the denoisers of a pipeline, and take them off again."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch

from diffaccel.attach.cost import CostModel, SubstituteCost
from diffaccel.attach.offload import follow, unfollow
from diffaccel.attach.plan import Plan, companion_plan, plan, stages_of, substitute_plan
from diffaccel.attach.preconditions import parts_of, require_attached, require_companions, require_free
from diffaccel.attach.report import Report, summarize
from diffaccel.attach.seat import Seat
from diffaccel.attach.substitute import StageSeat, SubstituteSeat, no_stages
from diffaccel.config.checks import check
from diffaccel.config.words import did_you_mean
from diffaccel.methods import Method
from diffaccel.networks import UnsupportedModelError, is_companion, layout_of, supported, supports
from diffaccel.networks.compiled import unwrapped
from diffaccel.runtime.call import Forced
from diffaccel.runtime.host import Host
from diffaccel.runtime.run import Runs
from diffaccel.runtime.session import Session
from diffaccel.runtime.substitute import Stretch, Substitute
from diffaccel.runtime.tally import Tally
from diffaccel.runtime.wrapper import Wrapper

Named = dict[str, torch.nn.Module]
MethodsFor = Mapping[str, Method | Sequence[Method]]


def accelerate(
    pipe_or_model: Any, *methods: Method | MethodsFor, guided: bool | None = None, scheduler: Any = None
) -> "Handle":
    """Reuse features between the network calls of a diffusers pipeline.

        with accelerate(pipe, DeepCache(interval=3, branch=0)) as handle:
            image = pipe("a red heart").images[0]
        print(handle.report())

    Every denoiser of the pipeline is accelerated, and each run starts afresh, whichever pipeline object makes it.
    The scheduler of the pipeline that makes the calls tells where a run starts and a step ends, and their prompts
    tell which calls may share features; what they do not tell computes in full, and the report says so. A bare
    network goes by its timesteps: another one is another step, one that goes back starts a run (or call
    `Handle.reset`); timesteps on a device are read for that, unless they are elements of one tensor, or `scheduler`
    is given. A ControlNet of the pipeline computes only what the denoiser will read. Stored features do not keep
    autograd's graph: gradients reach computed modules alone.

    Args:
        pipe_or_model: a pipeline, or a denoiser such as `pipe.unet`.
        methods: what to reuse, and when; see `diffaccel.methods`. For a pipeline with several denoisers also one
            mapping from their names to methods, `{"transformer": [...], "transformer_2": [...]}`.
        guided: whether the rows of a network call are halves, negative prompts first; None finds out from the pipeline,
            and takes a bare network to be unguided. Only methods that drop the negative half care; they raise
            ValueError where the pipeline's own prompts show otherwise.
        scheduler: for a bare network the scheduler whose `step` is called after each step.

    Raises:
        UnsupportedModelError: if there is no denoiser of a known kind, or a method does not work on it.
        ValueError: if a setting does not fit the network, or two methods cannot work together.
        RuntimeError: if a denoiser is accelerated already, or compiled in a way that hooks cannot enter.
    """
    bare = isinstance(pipe_or_model, torch.nn.Module)
    models = {"": pipe_or_model} if bare else _denoisers(pipe_or_model)
    chosen = _by_name(methods, models)
    companions = [] if bare else _controlnets(pipe_or_model)
    for model in [*models.values(), *companions]:
        require_free(model)
    host = Host(None if bare else pipe_or_model, guided)
    return Handle({name: models[name] for name in chosen}, companions, chosen, host, scheduler)


def _by_name(methods: Sequence[Method | MethodsFor], models: Named) -> dict[str, tuple[Method, ...]]:
    """The methods for each denoiser."""
    if len(methods) == 1 and isinstance(methods[0], Mapping):
        chosen: dict[str, tuple[Method, ...]] = {}
        for name, given in methods[0].items():
            if name not in models:
                hint = did_you_mean(name, models)
                raise ValueError(f"there is no denoiser {name!r}{hint}: this pipeline has {', '.join(models)}")
            chosen[name] = (given,) if isinstance(given, Method) else tuple(given)
    else:
        chosen = dict.fromkeys(models, tuple(methods))  # type: ignore[arg-type]
    if not chosen or not all(chosen.values()):
        raise ValueError("accelerate needs at least one method, such as DeepCache(interval=3)")
    for method in {id(m): m for found in chosen.values() for m in found}.values():
        if not isinstance(method, Method):
            raise TypeError(f"{method!r} is not a method{_meant(method)}; methods are {', '.join(Method.names())}")
    return chosen


@contextmanager
def _by_name_instead(models: Named) -> Iterator[None]:
    """Say, where a method does not work on one of several denoisers, how each is given its own."""
    try:
        yield
    except UnsupportedModelError as error:
        if len(models) == 1:
            raise
        each = ", ".join(f"{name!r}: [...]" for name in models)
        raise UnsupportedModelError(f"{error}: give each denoiser its own methods, or none, as {{{each}}}") from error


def _meant(given: object) -> str:
    """What to write in place of something that is nearly a method."""
    if isinstance(given, str):
        return f": text is read by diffaccel.methods.parse_all({given!r})"
    if isinstance(given, type):
        return f" yet: give an object, as {given.__name__}()"
    return ": give several one by one, as accelerate(pipe, one, other)" if isinstance(given, list | tuple) else ""


class Handle:
    """An accelerated pipeline, from `accelerate`. Usable with `with`, which detaches at the end."""

    def __init__(
        self,
        denoisers: Named,
        companions: Sequence[torch.nn.Module],
        methods: Mapping[str, tuple[Method, ...]],
        host: Host,
        scheduler: Any,
    ) -> None:
        self._costs: list[CostModel] = []
        self._seats: list[Seat] = []
        self._host = host
        with _by_name_instead(denoisers):
            stages = {name: stages_of(model, methods[name]) for name, model in denoisers.items()}
            whole = {name: () if stages[name] else methods[name] for name in denoisers}
            plans = {name: plan(model, whole[name]) for name, model in denoisers.items()}
        substitutes = {name: self._substitute(denoisers[name], planned, companions) for name, planned in plans.items()}
        first = next(iter(denoisers))
        require_companions(methods[first], companions, host)
        check(
            not (companions and stages[first]), "Staged cannot work with a ControlNet: use one method, without stages"
        )
        leading, led = denoisers[first], whole[first]
        followers = [(net, companion_plan(net, leading, led, i)) for i, net in enumerate(companions)]
        self._runs = Runs(host, scheduler, self._require_attached)
        self._detached = False
        try:
            for name, planned in plans.items():
                self._attach(denoisers[name], planned, name or None)
                if (found := substitutes[name]) is not None:
                    self._attach_substitute(*found)
                self._attach_stages(denoisers[name], stages[name])
            for net, planned in followers:
                if planned.parts:
                    self._attach(net, planned, None, leader=self._seats[0])
            self._require_attached()
        except BaseException:
            self.detach()
            raise
        follow(self, host.pipe)

    def _attach(self, model: torch.nn.Module, planned: Plan, name: str | None, leader: Seat | None = None) -> None:
        """Put a plan to work on a network."""
        wrappers = self._wrappers(model, planned) if leader is None else []
        session = Session(model, planned.parts, None if leader is None else leader.session, planned.ties)
        self._seats.append(Seat(model, name, session, self._runs, wrappers, leader))
        self._costs.append(CostModel(model, planned))

    def _wrappers(self, model: torch.nn.Module, planned: Plan) -> list[Wrapper]:
        """What stands between the pipeline and a network, outermost last."""
        layout = layout_of(model)
        made = [method.wrapper(layout, self._host) for method in planned.methods]
        return sorted((wrapper for wrapper in made if wrapper is not None), key=lambda wrapper: wrapper.order)

    def _substitute(
        self, model: torch.nn.Module, planned: Plan, companions: Sequence[torch.nn.Module]
    ) -> tuple[torch.nn.Module, Plan, Substitute] | None:
        """The network that takes some calls of another one, if any, with what is reused in it."""
        found = [(m, s) for m in planned.methods if (s := m.substitute(model, self._host)) is not None]
        if not found:
            return None
        names = ", ".join(type(method).__name__ for method, _ in found)
        check(len(found) == 1, f"only one network can take calls of another one; got {names}")
        check(
            not companions, f"{names} cannot work with a ControlNet, whose residuals are made for one of the networks"
        )
        network = found[0][1].load()
        if not supports(network):
            raise UnsupportedModelError(f"{type(network).__name__} is not a supported denoiser, and cannot take calls")
        require_free(network)
        return network, substitute_plan(network, planned.methods, found[0][0]), found[0][1]

    def _attach_substitute(self, model: torch.nn.Module, planned: Plan, substitute: Substitute) -> None:
        """Put a network to work that takes calls of the one attached last."""
        place, session = self._seats[-1], Session(model, planned.parts)
        seat = SubstituteSeat(place, model, session, substitute, self._wrappers(model, planned))
        place.deputies = (seat,)
        self._seats.append(seat)
        self._costs.append(SubstituteCost(model, planned, self._costs[-1]))

    def _attach_stages(self, model: torch.nn.Module, stages: Sequence[tuple[Plan, Stretch]]) -> None:
        """Put stages to work that take all calls of the network attached last."""
        place = self._seats[-1]
        for planned, turns in stages:
            seat = StageSeat(place, model, Session(model, planned.parts), turns, self._wrappers(model, planned))
            place.deputies = (*place.deputies, seat)
            self._seats.append(seat)
            self._costs.append(CostModel(model, planned))

    def _require_attached(self) -> None:
        require_attached(self._seats, self._host.pipe)

    def detach(self) -> None:
        """Take all hooks off: the pipeline is as it was before `accelerate`. Doing so twice is harmless.

        Raises:
            RuntimeError: if something was put on top of our hooks since; the message says what to remove first.
        """
        self._take_off()
        self._runs.close()

    def _take_off(self) -> None:
        for seat in reversed(self._seats):
            seat.detach()
        unfollow(self)
        self._runs.forget()
        self._detached = True

    def works_on(self, pipe: Any) -> bool:
        """Whether a pipeline has one of the networks that this handle has hooks on."""
        networks = {id(seat.model) for seat in self._seats}
        parts = (part for value in vars(pipe).values() for part in parts_of(value))
        return any(id(unwrapped(part)) in networks for part in parts)

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
        self._take_off()
        try:
            yield
        finally:
            for seat in self._seats:
                seat.attach()
            self._detached = False
            follow(self, self._host.pipe)

    def only_here(self) -> None:
        """Reuse in this thread's calls alone: those that others make of the network compute in full."""
        self._runs.thread = threading.get_ident()

    def reset(self) -> None:
        """Forget all features, so that the next network call starts a run. The report's totals stay."""
        self._runs.forget()
        for seat in self._seats:
            seat.reset()

    @contextmanager
    def forced(self, compute: Forced, context: str | None = None) -> Iterator[None]:
        """Network calls within compute (True) or reuse (False), whatever the schedules say.

        For callers that drive the network themselves. Runs are not looked for meanwhile: `reset` says that one starts.
        The first call of a context computes. Not with stages, which are stretches of a run.

        Args:
            compute: True or False for all, one of them per reusable part, or None to let the schedules decide.
            context: keeps the features of these calls apart from those of other contexts.
        """
        no_stages(self._seats)
        with ExitStack() as stack:
            for seat in self._seats:
                stack.enter_context(seat.forced(compute, context))
            yield

    def report(self) -> Report:
        """What was computed, replayed and saved since `accelerate`."""
        if not self._detached:
            self._require_attached()
        return summarize(self._costs, self._seats)

    def tallies(self) -> list[Tally]:
        """The counts behind the report, one for each network, as they are now."""
        return [seat.session.tally.copy() for seat in self._seats]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def _denoisers(pipe: Any) -> Named:
    """The denoisers among a pipeline's components, by name."""
    components = getattr(pipe, "components", None)
    if not isinstance(components, dict):
        raise TypeError(f"accelerate takes a diffusers pipeline or a denoiser; got {type(pipe).__name__}")
    found = {name: part for name, part in components.items() if supports(unwrapped(part))}
    if not found:
        modules = sorted(type(c).__name__ for c in components.values() if isinstance(c, torch.nn.Module))
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no supported denoiser among {', '.join(modules)}; "
            f"supported are {', '.join(supported())}"
        )
    return found


def _controlnets(pipe: Any) -> list[torch.nn.Module]:
    """The ControlNets that run before the denoiser in each step; several in a MultiControlNetModel."""
    nets = [net for net in parts_of(pipe.components.get("controlnet")) if is_companion(net)]
    return list({id(net): net for net in nets}.values())  # one may be there several times, for several images
