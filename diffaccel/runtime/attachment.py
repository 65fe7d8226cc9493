"""The two hooks that carry every method, and how they are put on and taken off.

`ScheduleHook` sits on the denoiser and decides, `ReplayHook` sits on a module of a branch and obeys. Each module
carries at most one of ours, registered last and removed first, because diffusers' registry cannot take a hook out of
the middle of a chain.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from diffaccel._diffusers import (
    REGISTRY_ATTRIBUTE,
    RESET_ATTRIBUTE,
    ContextName,
    Hook,
    hooks_of,
    registry_of,
)
from diffaccel.reuse.residual import Residual
from diffaccel.runtime.lanes import rows_of
from diffaccel.runtime.residual_act import residual_hooks
from diffaccel.runtime.session import Session
from diffaccel.runtime.state import ActivePart, copied, placeholder

HOOK = "diffaccel"
COMPILED = "_compiled_call_impl"  # what torch.nn.Module.compile leaves on a module


class ScheduleHook(Hook):
    """Sits on the denoiser: hands each call to the session, which decides what computes."""

    _is_stateful = True

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.context = ContextName()

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Run one network call; a call that raises ends the run."""
        try:
            return self.session.call(args, kwargs, self.original, self.context.name)
        except BaseException:
            self.session.reset()
            raise

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Forget the run: diffusers calls this at the end of a pipeline."""
        self.session.reset()
        return module


class Place(NamedTuple):
    """A module's place in one part.

    Attributes:
        active: the part.
        order: the module's place in the part's branch.
        keep: whether its output is stored (a replayed module) or only its shape (a skipped one).
    """

    active: ActivePart
    order: int
    keep: bool

    def reuses(self) -> bool:
        """Whether the module must not run in this call. What was never recorded is computed."""
        return not self.active.state.compute and self.active.state.entries[self.order] is not None

    def recall(self) -> Any:
        """What was recorded, carried to this call."""
        state, forecast = self.active.state, self.active.part.forecast if self.keep else None
        entry = state.entries[self.order]
        output = entry if forecast is None else forecast.predict(entry, state.step)
        if state.selected is not None and state.count is not None:
            return rows_of(output, state.selected, state.count)
        return copied(output) if state.writable else output

    def record(self, output: Any) -> None:
        """Store what a later call needs of `output`; a call of some rows only is not stored."""
        state, forecast = self.active.state, self.active.part.forecast
        if state.selected is not None:
            return
        if not self.keep:
            state.entries[self.order] = placeholder(output)
            return
        feature = copied(output) if state.writable else output
        if forecast is not None:
            feature = forecast.update(state.entries[self.order], feature, state.step)
        state.entries[self.order] = feature


class ReplayHook(Hook):
    """Sits on one module of a branch: runs it and records, or returns what was recorded.

    Parts of one method may lie within each other, as the branches of a UNet do: a module runs unless one of its parts
    reuses, and what ran is recorded for all of them.

    Args:
        places: the module's place in each part that it belongs to.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__()
        self.places = tuple(places)

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """The module's output, computed or recalled."""
        for place in self.places:
            if place.reuses():
                return place.recall()
        output = self.original(*args, **kwargs)
        for place in self.places:
            place.record(output)
        return output


@dataclass(frozen=True)
class _Attached:
    """One module that carries our hook, and what it had before.

    A module that was compiled in place runs its compiled code beneath the hook, which stays outside of it.
    """

    name: str
    module: torch.nn.Module
    had_registry: bool
    forward: Callable[..., Any] | None
    compiled: Callable[..., Any] | None

    @classmethod
    def put(cls, name: str, module: torch.nn.Module, hook: Hook) -> "_Attached":
        """Put a hook on a module."""
        own = module.__dict__
        item = cls(name, module, REGISTRY_ATTRIBUTE in own, own.get("forward"), own.get(COMPILED))
        registry_of(module).register_hook(hook, HOOK)
        if item.compiled is not None:
            hook.wrap(_beneath(module, item.compiled, item.forward))
            own[COMPILED] = None
        return item

    def remove(self) -> None:
        """Take the hook off and leave the module's attributes as they were."""
        registry_of(self.module).remove_hook(HOOK, recurse=False)
        for attribute, value in (("forward", self.forward), (COMPILED, self.compiled)):
            if value is not None:
                self.module.__dict__[attribute] = value
        if self.forward is None:
            self.module.__dict__.pop("forward", None)
        if not self.had_registry and not hooks_of(self.module):
            self.module.__dict__.pop(REGISTRY_ATTRIBUTE, None)


def _beneath(
    module: torch.nn.Module, compiled: Callable[..., Any], before: Callable[..., Any] | None
) -> Callable[..., Any]:
    """Runs a module's compiled code as if the module had the forward that it had before our hook."""

    def run(*args: Any, **kwargs: Any) -> Any:
        hooked = module.__dict__.pop("forward")
        if before is not None:
            module.__dict__["forward"] = before
        try:
            return compiled(*args, **kwargs)
        finally:
            module.__dict__["forward"] = hooked

    return run


class Attachment:
    """All hooks of one session on one denoiser."""

    def __init__(self, model: torch.nn.Module, session: Session) -> None:
        self.model = model
        self.session = session
        self._attached: list[_Attached] = []
        self._forwards: dict[str, Any] = {}
        try:
            self._attach_all()
        except BaseException:
            self.remove()
            raise
        if not hasattr(model, RESET_ATTRIBUTE):
            model.__dict__[RESET_ATTRIBUTE] = session.reset

    def remove(self) -> None:
        """Take everything off. Safe to call twice.

        Raises:
            RuntimeError: if something was put on top of our hooks since; nothing is changed then.
        """
        for item in self._attached:
            self._require_top(item)
        while self._attached:
            self._attached.pop().remove()
        self.model.__dict__.pop(RESET_ATTRIBUTE, None)
        self._refresh()
        self.session.reset()

    def _attach_all(self) -> None:
        """Put one hook on each module of each part, and the schedule's on the denoiser last."""
        hooks = list(_hooks(self.session.active, self.model))
        _require_outside(self.model, [name for name, _ in hooks])
        _require_whole(self.model, self.session.active)
        for name, hook in hooks:
            self._attach(name, hook)
        self._attach("", ScheduleHook(self.session))
        self._refresh()

    def _attach(self, name: str, hook: Hook) -> None:
        """Put `hook` on the module called `name`."""
        module = self.model.get_submodule(name)
        self._attached.append(_Attached.put(name, module, hook))
        self._forwards[name] = module.forward

    def _require_top(self, item: _Attached) -> None:
        """Check that our hook is the outermost thing on the module's forward."""
        where = f"module {item.name!r}" if item.name else "the denoiser"
        above = hooks_of(item.module)[hooks_of(item.module).index(HOOK) + 1 :]
        if above:
            raise RuntimeError(f"cannot detach: hook {above[-1]!r} was put on {where} afterwards; remove it first")
        if item.module.forward is not self._forwards[item.name]:
            raise RuntimeError(
                f"cannot detach: the forward of {where} was replaced after accelerate(), for instance by torch.compile "
                "or CPU offload; undo that first, or apply it before accelerate()"
            )

    def _refresh(self) -> None:
        """Let diffusers find the changed set of hooks."""
        if REGISTRY_ATTRIBUTE in self.model.__dict__:
            registry_of(self.model).invalidate_child_registries_cache()


def _require_outside(model: torch.nn.Module, names: Sequence[str]) -> None:
    """Refuse to decide within blocks that are compiled, where each block and each decision would be compiled anew."""
    compiled = {name for name, module in model.named_modules() if name and module.__dict__.get(COMPILED) is not None}
    for name in names:
        parents = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
        inside = next((parent for parent in parents if parent in compiled), None)
        if inside is not None:
            raise RuntimeError(
                f"{inside!r} was compiled as a block, and {name!r} within it is to be replayed: compile the network's "
                "forward instead, before accelerate(): model.forward = torch.compile(model.forward, fullgraph=True), "
                "or use a method that replays whole blocks or layers, such as DeepCache or DeltaCache"
            )


def _require_whole(model: torch.nn.Module, parts: Sequence[ActivePart]) -> None:
    """Refuse to read a value in the middle of a forward that is compiled in one piece."""
    measured = any(isinstance(active.part.branch, Residual) and active.part.branch.front for active in parts)
    if measured and hasattr(model.forward, "_torchdynamo_orig_callable"):
        raise RuntimeError(
            "the network's forward was compiled as a whole, and BlockCache decides in the middle of it from a value on "
            "the device: compile the blocks instead, with model.compile_repeated_blocks(fullgraph=True)"
        )


def _hooks(parts: Sequence[ActivePart], model: torch.nn.Module) -> Iterator[tuple[str, Hook]]:
    """The hooks of some parts, each with the name of its module."""
    places: dict[str, list[Place]] = {}
    for active in parts:
        branch = active.part.branch
        if isinstance(branch, Residual):
            yield from residual_hooks(active, model)
            continue
        for index, name in enumerate(branch.modules):
            places.setdefault(name, []).append(Place(active, index, keep=index >= len(branch.skipped)))
    for name, found in places.items():
        yield name, ReplayHook(found)
