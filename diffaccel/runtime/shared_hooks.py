"""Hooks on modules that several engines share, and that obey only within an engine's own call.

A hook passes through unless the current thread is inside an engine's call (`SharedHooks.using`), and then does what
that engine says. So several engines, and ordinary calls of the pipeline, live on one network without seeing each other.
Modules are told apart by identity: their names change when adapters are loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch

from diffaccel._diffusers import Hook, hooks_of, is_bypassed, registry_of
from diffaccel.runtime.attachment import HOOK

STREAM_HOOK = "diffaccel-stream"


Hooks = Mapping[torch.nn.Module, Hook]


class _Current(threading.local):
    hooks: Hooks = {}  # noqa: RUF012 - never written to


_current = _Current()
_users: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()
_changing = threading.RLock()  # engines are built and forgotten on any thread


class _StreamHook(Hook):
    """Sits on one module and hands its calls to the engine whose call is running, if any."""

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The module's output, computed or recalled."""
        hook = _current.hooks.get(module)
        if hook is None:
            return self.original(*args, **kwargs)
        hook.fn_ref, hook.group = self.fn_ref, self.group
        return hook.new_forward(module, *args, **kwargs)


def hooks_in_force() -> Hooks:
    """The hooks that this thread's calls obey now."""
    return _current.hooks


@contextmanager
def obeying(hooks: Hooks) -> Iterator[None]:
    """Within, this thread's calls obey these hooks and no others."""
    before, _current.hooks = _current.hooks, hooks
    try:
        yield
    finally:
        _current.hooks = before


class SharedHooks:
    """What one engine does on some modules, within `using` alone.

    Args:
        hooks: what stands in for each module's forward.

    Raises:
        RuntimeError: where `accelerate` has hooked one of them.
    """

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        _acquire(hooks)
        self.close = finalize(self, _release, tuple(hooks))

    @contextmanager
    def using(self) -> Iterator[None]:
        """Within, this thread's calls obey these hooks, and those of a block around this one."""
        with obeying({**_current.hooks, **self.hooks}):
            yield


def require_plain(modules: Iterable[torch.nn.Module]) -> None:
    """Raise RuntimeError where `accelerate` has hooked one of the modules: it would take engines' calls for its own."""
    if any(HOOK in hooks_of(module) for module in modules):
        raise RuntimeError(
            "this pipeline is accelerated already: detach that handle first, and give the method as cache="
        )


def _acquire(modules: Iterable[torch.nn.Module]) -> None:
    """Hook modules for one more user."""
    with _changing:
        require_plain(modules)
        for module in modules:
            if STREAM_HOOK not in hooks_of(module):
                _StreamHook().put_on(module, STREAM_HOOK)
            _users[module] = _users.get(module, 0) + 1


def _release(modules: Iterable[torch.nn.Module]) -> None:
    """Take the hooks off that nobody uses any more.

    A hook below another one that was put on later stays and passes through: diffusers can remove only the last.
    """
    with _changing:
        for module in modules:
            _users[module] -= 1
            if not _users[module] and hooks_of(module)[-1:] == [STREAM_HOOK]:
                _take_off(module)


def _take_off(module: torch.nn.Module) -> None:
    """Take our hook off a module; what the module was given for its forward from beneath it stays."""
    registry = registry_of(module)
    left = module.__dict__.get("forward") if is_bypassed(module, registry.get_hook(STREAM_HOOK)) else None
    registry.remove_hook(STREAM_HOOK, recurse=False)
    if left is not None:
        module.__dict__["forward"] = left
