"""Keys and values of a prompt, projected once for as long as the prompt lasts.

They depend on the prompt and on the weights, not on the frame or its noise level: between two changes of the prompt
every tick of a stream would project the same tensors again. Lossless.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffaccel._diffusers import Hook, hooks_of
from diffaccel.networks import UnsupportedModelError, layout_of
from diffaccel.runtime.attachment import HOOK
from diffaccel.runtime.shared_hooks import Replays, is_compiled
from diffaccel.stream.batch import Call, Memo

Stamp = tuple[object, ...]
Projected = dict[str, tuple[Stamp, torch.Tensor]]


class _Projection(Hook):
    """One projection: gives what is stored for the prompts of this call and these weights, or computes it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.stored: Projected = {}

    def new_forward(self, module: torch.nn.Module, prompt: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Keys or values ``(rows, tokens, features)``."""
        stamp = (*_stamp(module), prompt.shape)
        known = self.stored.get(self.name)
        if known is None or known[0] != stamp:
            if prompt.stride(0) == 0:  # all rows see one prompt
                result = self.original(prompt[:1], *args, **kwargs).expand(len(prompt), -1, -1)
            else:
                result = self.original(prompt, *args, **kwargs)
            known = self.stored[self.name] = stamp, result
        return known[1]


def _stamp(module: torch.nn.Module) -> Stamp:
    """Changes when a weight is replaced, cast, moved or written to (a fused LoRA)."""
    return tuple(
        part for p in module.parameters() for part in (p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version)
    )


class TextKeysValues:
    """The projections of one engine.

    Nothing is stored in a network that is compiled (a hook would break its graph), that `accelerate` has hooked, or
    that projects no prompt.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._projections = {model.get_submodule(name): _Projection(name) for name in _names(model)}
        self._known: Memo[Projected] = Memo(4)
        self._replays = Replays(self._projections)
        self.close = self._replays.close

    @contextmanager
    def using(self, call: Call) -> Iterator[None]:
        """Within, the network's projections are those of the call's prompts."""
        if not self._projections:
            yield
            return
        prompts = [s.settings.negative_prompt if negative else s.settings.positive for s, negative in call.rows]
        stored = self._known.get(prompts, dict)
        for projection in self._projections.values():
            projection.stored = stored
        with self._replays.using():
            yield


def _names(model: torch.nn.Module) -> list[str]:
    if is_compiled(model):
        return []
    try:
        names = layout_of(model).conditioning_only
    except UnsupportedModelError:
        return []
    adapted = [f"{n}.base_layer" if hasattr(model.get_submodule(n), "base_layer") else n for n in names]
    return [] if any(HOOK in hooks_of(model.get_submodule(n)) for n in adapted) else adapted
