"""One set of hooks on a network, shared by all engines that reuse its features.

A hook passes through unless the current thread is inside an engine's own call (`using`), and then does what that engine
says. So several engines, and ordinary calls of the pipeline, live on one network without seeing each other.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import torch

from diffaccel._diffusers import Hook, hooks_of, registry_of
from diffaccel.hooks import HOOK

STREAM_HOOK = "diffaccel-stream"
Replays = Mapping[str, Hook]


def is_compiled(model: object) -> bool:
    """Whether a network was compiled as a module, so that a hook within would break its graph."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


class _Current(threading.local):
    replays: Replays | None = None


class _StreamHook(Hook):
    """Sits on one module and hands its calls to the engine whose call is running, if any."""

    def __init__(self, current: _Current, name: str) -> None:
        super().__init__()
        self.current, self.name = current, name

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The module's output, computed or recalled."""
        replays = self.current.replays
        if replays is None or self.name not in replays:
            return self.original(*args, **kwargs)
        replay = replays[self.name]
        replay.fn_ref = self.fn_ref
        return replay.new_forward(module, *args, **kwargs)


class FeatureHub:
    """The hooks on one network; get it with `FeatureHub.of`."""

    _hubs: ClassVar[WeakKeyDictionary[torch.nn.Module, FeatureHub]] = WeakKeyDictionary()

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = ref(model)
        self._hooked: dict[str, ref[torch.nn.Module]] = {}
        self._users: Counter[str] = Counter()
        self._current = _Current()

    @classmethod
    def of(cls, model: torch.nn.Module) -> FeatureHub:
        """The hub of ``model``, made on first use."""
        if model not in cls._hubs:
            cls._hubs[model] = cls(model)
        return cls._hubs[model]

    def acquire(self, names: Iterable[str]) -> None:
        """Hook the modules called ``names``, for one more user.

        Raises:
            RuntimeError: where `accelerate` has hooked one of them.
        """
        model = self._model()
        modules = {} if model is None else {name: model.get_submodule(name) for name in names}
        if any(HOOK in hooks_of(module) for module in modules.values()):
            raise RuntimeError(
                "this pipeline is accelerated already: detach that handle first, and give the method as cache="
            )
        for name, module in modules.items():
            if STREAM_HOOK not in hooks_of(module):
                registry_of(module).register_hook(_StreamHook(self._current, name), STREAM_HOOK)
                self._hooked[name] = ref(module)
            self._users[name] += 1

    def release(self, names: Iterable[str]) -> None:
        """Take the hooks off that nobody uses any more.

        A hook below another one that was put on later stays and passes through: diffusers can remove only the last.
        """
        for name in names:
            self._users[name] -= 1
            module = self._hooked[name]()
            if module is not None and not self._users[name] and hooks_of(module)[-1:] == [STREAM_HOOK]:
                registry_of(module).remove_hook(STREAM_HOOK, recurse=False)

    @contextmanager
    def using(self, replays: Replays) -> Iterator[None]:
        """Within, this thread's calls of the network obey ``replays``, and those of a block around this one."""
        before = self._current.replays
        self._current.replays = {**(before or {}), **replays}
        try:
            yield
        finally:
            self._current.replays = before
