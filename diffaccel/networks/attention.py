"""Attentions of a network, found by diffusers' `Attention` class."""

from collections.abc import Iterable

import torch


def attentions(model: torch.nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the self-attentions and of the cross-attentions that lie within transformer blocks."""
    kinds: dict[bool, list[str]] = {False: [], True: []}
    for name, module in model.named_modules():
        if type(module).__name__ == "Attention" and name.rpartition(".")[2] in ("attn1", "attn2"):
            kinds[_is_cross(module)].append(name)
    return tuple(kinds[False]), tuple(kinds[True])


def key_values(model: torch.nn.Module, cross_attention: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the projections of the conditioning to keys and values."""
    names: list[str] = []
    for name in cross_attention:
        attention = model.get_submodule(name)
        projections = ("to_kv",) if getattr(attention, "fused_projections", False) else ("to_k", "to_v")
        names += [f"{name}.{projection}" for projection in projections if hasattr(attention, projection)]
    return tuple(names)


def _is_cross(module: torch.nn.Module) -> bool:
    """Whether an attention reads the conditioning."""
    return bool(getattr(module, "is_cross_attention", False))


def with_processor(model: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    """The modules that leave their work to a processor, which pipelines may replace."""
    return tuple(module for module in model.modules() if "processor" in module.__dict__)


def of_pipeline(modules: Iterable[torch.nn.Module]) -> set[str]:
    """Names of the processors that a pipeline gives to some layers, and that its guidance or its frames need there."""
    kinds = {type(module.processor) for module in modules}
    return {
        k.__name__ for k in kinds if k.__module__.startswith("diffusers.pipelines.") or k.__name__.startswith("PAG")
    }


def is_read(modules: Iterable[torch.nn.Module]) -> bool:
    """Whether a pipeline reads what attentions computed, by processors of its own, as self-attention guidance does."""
    kinds = {type(module.processor) for module in modules}
    kinds = {kind for kind in kinds if kind.__module__.startswith("diffusers.pipelines.")}
    return any(not kind.__name__.startswith("CrossFrame") for kind in kinds)  # these only compute something else
