"""A tiny transformer that takes any timestep, calls of it, and a reference that replays by plan."""

from collections.abc import Iterator
from typing import Any

import diffusers
import torch
from tiny_transformers import TRANSFORMERS
from torch.utils._pytree import tree_map

from diffaccel.methods import IntervalCache
from diffaccel.networks import layout_of
from diffaccel.reuse.schedule import Uniform

DIT = "PixArtTransformer2DModel"
EVERY_SECOND = IntervalCache(schedule=Uniform(2))


class AnyTimestep(diffusers.PixArtTransformer2DModel):
    """Takes numbers and scalars as timesteps, too."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, timestep: Any, **more: Any) -> Any:
        t = torch.as_tensor(timestep, dtype=torch.float32).expand(len(hidden_states))
        return super().forward(hidden_states, encoder_hidden_states, t, **more)


def dit() -> Any:
    model = TRANSFORMERS[DIT].build(DIT)
    model.__class__ = AnyTimestep
    return model


def dit_inputs(seed: int, rows: int = 2) -> dict[str, Any]:
    return TRANSFORMERS[DIT].inputs(rows, torch.Generator().manual_seed(seed))


def replayed(model: Any, plan: list[tuple[str, bool]]) -> Iterator[None]:
    """Outputs of attentions and feed-forward networks are stored or replayed, call by call: (context, reuse)."""
    kept: dict[Any, Any] = {}
    now: list[tuple[str, bool]] = []
    model.register_forward_pre_hook(lambda *_: now.__setitem__(slice(None), [plan.pop(0)]))
    for unit in layout_of(model).units:
        for name in unit.branch.replayed:

            def hook(module: Any, args: Any, output: Any, name: str = name) -> Any:
                context, reuse = now[0]
                if reuse:
                    return tree_map(lambda x: x, kept[name, context])
                kept[name, context] = output
                return None

            model.get_submodule(name).register_forward_hook(hook)


def run_calls(model: Any, calls: list[tuple[Any, dict[str, Any]]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(**inputs, timestep=t).sample for t, inputs in calls]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=lambda m, index=index: f"call {index}: {m}")
