"""How acts are put on the modules of a network, and taken off without a trace.

Each module carries at most one hook of ours. Others may come and go beneath it, and above it where they only look on or
move weights; diffusers' registry cannot take a hook out from beneath one that runs something in place of the forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel._diffusers import REGISTRY_ATTRIBUTE, Hook, hooks_of, is_bypassed, registry_of, wraps_forward
from diffaccel.networks.compiled import IN_PLACE, compiled_around, has_compiled_forward
from diffaccel.runtime.act import Place
from diffaccel.runtime.session import Session

HOOK = "diffaccel"


class ActHook(Hook):
    """Sits on one module and asks the places of all acts there, in their order.

    Parts of one method may lie within each other, as the branches of a UNet do: a module runs unless one of its places
    reuses, and what ran is shown to all of them.

    Args:
        places: what happens at the module.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__()
        self.places = tuple(places)
        self.asked = tuple(place for place in places if type(place).ask is not Place.ask)

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The module's output, computed or recalled."""
        for place in self.asked:
            place.ask(args, kwargs, self.original)
        for place in self.places:
            if place.reuses():
                return place.recall(args, kwargs) if self.group is None else self._recall(module, place, args, kwargs)
        args, kwargs = self.enter(args, kwargs)
        return self.leave(args, kwargs, self.around(self.original)(*args, **kwargs))

    def _recall(self, module: torch.nn.Module, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a place recalls where the module brings the weights of others along, which may run."""
        self.group.pre_forward(module)
        return self.group.post_forward(module, place.recall(args, kwargs))

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The module's inputs, as it shall see them."""
        for place in self.places:
            args, kwargs = place.enter(args, kwargs)
        return args, kwargs

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What runs in the place of the module's forward."""
        for place in self.places:
            forward = place.around(forward)
        return forward

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The module's output, as those after it shall see it."""
        for place in reversed(self.places):  # as functions that wrap each other would
            output = place.leave(args, kwargs, output)
        return output


@dataclass(frozen=True)
class _Attached:
    """One module that carries our hook, and what it had before.

    A module that was compiled in place runs its compiled code beneath the hook, which stays outside of it.

    Attributes:
        hook: of ours.
        beneath: what it wraps.
        forward: what the module had for one of its own before.
    """

    name: str
    module: torch.nn.Module
    hook: Hook
    beneath: Callable[..., Any]
    had_registry: bool
    forward: Callable[..., Any] | None
    compiled: Callable[..., Any] | None

    @classmethod
    def put(cls, name: str, module: torch.nn.Module, hook: Hook) -> _Attached:
        """Put a hook on a module."""
        own = module.__dict__
        had, forward, compiled = REGISTRY_ATTRIBUTE in own, own.get("forward"), own.get(IN_PLACE)
        hook.put_on(module, HOOK)
        if compiled is not None:
            hook.wrap(_beneath(module, compiled, forward))
            own[IN_PLACE] = None
        return cls(name, module, hook, hook.beneath, had, forward, compiled)

    @property
    def is_bypassed(self) -> bool:
        """Whether the hook was taken off together with what lay beneath it, as where offload ends."""
        return is_bypassed(self.module, self.hook)

    @property
    def above(self) -> list[str]:
        """Names of hooks that lie on it."""
        names = hooks_of(self.module)
        return names[names.index(HOOK) + 1 :]

    def remove(self) -> None:
        """Take the hook off and leave the module's attributes as they were, or as others have left them since."""
        own, forward = self.module.__dict__, self.forward
        if self.hook.beneath is not self.beneath:
            forward = None if self.hook.beneath == _plain(self.module) else self.hook.beneath
        if self.above or self.is_bypassed:
            forward = own.get("forward")
        registry_of(self.module).remove_hook(HOOK, recurse=False)
        for attribute, value in (("forward", forward), (IN_PLACE, self.compiled)):
            if value is not None:
                own[attribute] = value
        if forward is None:
            own.pop("forward", None)
        if not self.had_registry and not hooks_of(self.module):
            own.pop(REGISTRY_ATTRIBUTE, None)


def _plain(module: torch.nn.Module) -> Callable[..., Any]:
    """The forward of a module's class."""
    return type(module).forward.__get__(module)  # type: ignore[no-any-return]


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
    """All hooks of one session on one network.

    Args:
        model: the network.
        session: whose acts are put on its modules.
        root: a hook for the network itself, put on last; None for none.
    """

    def __init__(self, model: torch.nn.Module, session: Session, root: Hook | None = None) -> None:
        self.model = model
        self.session = session
        self._attached: list[_Attached] = []
        try:
            self._attach_all(session.places(model), root)
        except BaseException:
            self.remove()
            raise

    def _attach_all(self, places: Mapping[str, Sequence[Place]], root: Hook | None) -> None:
        _require_outside(self.model, list(places))
        _require_whole(self.model, self.session)
        for name, found in places.items():
            self._attach(name, ActHook(found))
        if root is not None:
            self._attach("", root)
        self._refresh()

    def lost(self) -> str | None:
        """Name of a module that carries a hook and is no part of the network any more, if there is one."""
        return lost_from(self.model, {item.name: item.module for item in self._attached})

    @property
    def is_bypassed(self) -> bool:
        """Whether a hook was taken off together with what lay beneath it."""
        return any(item.is_bypassed for item in self._attached)

    def remove(self) -> None:
        """Take everything off. Safe to call twice.

        Raises:
            RuntimeError: if something was put on top of our hooks since; nothing is changed then.
        """
        for item in self._attached:
            self._require_top(item)
        while self._attached:
            self._attached.pop().remove()
        self._refresh()

    def _attach(self, name: str, hook: Hook) -> None:
        """Put `hook` on the module called `name`."""
        self._attached.append(_Attached.put(name, self.model.get_submodule(name), hook))

    def _require_top(self, item: _Attached) -> None:
        """Check that our hook is the outermost thing on the module's forward, or gone from it."""
        if item.is_bypassed:
            return
        where = f"module {item.name!r}" if item.name else "the denoiser"
        for name in item.above:
            if wraps_forward(item.module, name):
                raise RuntimeError(f"cannot detach: hook {name!r} was put on {where} afterwards; remove it first")
        if not item.above and item.module.forward is not item.hook.hooked:
            raise RuntimeError(
                f"cannot detach: the forward of {where} was replaced after accelerate(), for instance by torch.compile "
                "or CPU offload; undo that first, or apply it before accelerate()"
            )

    def _refresh(self) -> None:
        """Let diffusers find the changed set of hooks."""
        if REGISTRY_ATTRIBUTE in self.model.__dict__:
            registry_of(self.model).invalidate_child_registries_cache()


def lost_from(model: torch.nn.Module, hooked: Mapping[str, torch.nn.Module]) -> str | None:
    """The first name of hooked modules that are no part of a network any more; None where all are."""
    own = set(model.modules())
    return next((name for name, module in hooked.items() if module not in own), None)


def _require_outside(model: torch.nn.Module, names: Sequence[str]) -> None:
    """Refuse to decide within blocks that are compiled, where each block and each decision would be compiled anew."""
    for name in names:
        if (inside := compiled_around(model, name)) is not None:
            raise RuntimeError(
                f"{inside!r} was compiled as a block, and {name!r} within it is to be replayed: compile the network's "
                "forward instead, before accelerate(): model.forward = torch.compile(model.forward), or use a "
                "method that replays whole blocks or layers, such as DeepCache or DeltaCache"
            )


def _require_whole(model: torch.nn.Module, session: Session) -> None:
    """Refuse to read a value in the middle of a forward that is compiled in one piece."""
    measured = any(part.act.measured for part in session.parts)
    if measured and has_compiled_forward(model):
        raise RuntimeError(
            "the network's forward was compiled as a whole, and a cache decides in the middle of it from a value on "
            "the device: compile the blocks instead, with model.compile_repeated_blocks(fullgraph=True)"
        )
