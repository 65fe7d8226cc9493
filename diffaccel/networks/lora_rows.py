"""LoRAs that each row of a call follows as strongly as its stream says: what peft's layers make is scaled by rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from diffaccel.config.checks import check, number
from diffaccel.config.words import did_you_mean

LORA_SCALES = "lora_scales"
"""Name of what a prompt's conditioning holds for them: the scales of all adapters, ``(1, adapters)``."""
MOST = 10.0


def adapters_loaded(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the LoRAs in a network, sorted."""
    return tuple(sorted({name for _, layer in _layers(model) for name in layer.lora_B}))


def scaled_layers(model: torch.nn.Module, adapters: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Modules whose outputs a scale multiplies, and the place of its adapter."""
    return tuple(
        (f"{name}.lora_B.{adapter}", adapters.index(adapter))
        for name, layer in _layers(model)
        for adapter in layer.lora_B
    )


def scales_of(model: torch.nn.Module, adapters: tuple[str, ...], wanted: Mapping[str, float] | None) -> list[float]:
    """The scale of each adapter: 1, which is what the pipeline says, where none is wanted.

    Raises:
        TypeError: for what is no mapping of names to numbers.
        ValueError: for adapters that are not there or not at work, and scales that are not from 0 to 10.
    """
    if wanted is None:
        return [1.0] * len(adapters)
    if not isinstance(wanted, Mapping) or not all(isinstance(name, str) for name in wanted):
        raise TypeError(f"lora must map names of adapters to scales, not {wanted!r}")
    for name, scale in wanted.items():
        number(f"the scale of LoRA {name!r}", scale, 0.0, MOST)
        check(
            name in adapters,
            f"this network has no LoRA {name!r}{did_you_mean(name, adapters)}: it has {', '.join(adapters) or 'none'}; "
            "load_lora_weights(..., adapter_name=...) before the stream is opened",
        )
        require_at_work([layer for _, layer in _layers(model) if name in layer.lora_B], name)
    return [float(wanted.get(name, 1.0)) for name in adapters]


def require_scales(model: torch.nn.Module, loaded: Sequence[str], scales: Mapping[str, float]) -> None:
    """Raise where the LoRAs of a pipeline cannot be scaled for all rows.

    Raises:
        TypeError: for what is no mapping of names to numbers.
        ValueError: for LoRAs that are not loaded, scales that are not numbers, and where one is left out that is at
            work, which ``set_adapters`` would put to rest.
    """
    if not isinstance(scales, Mapping):
        raise TypeError(f"lora_scale must map names of adapters to scales, not {scales!r}")
    for name, scale in scales.items():
        number(f"lora_scale of {name!r}", scale, -MOST, MOST)
        check(
            name in loaded,
            f"lora_scale names {name!r}{did_you_mean(name, loaded)}, and the pipeline's LoRAs are "
            f"{', '.join(loaded) or 'none'}",
        )
    working = {
        name
        for _, layer in _layers(model)
        for name in layer.active_adapters
        if name in layer.lora_B and name not in layer.merged_adapters and not layer.disable_adapters
    }
    left_out = sorted(working - set(scales)) if scales else []
    check(
        not left_out,
        f"lora_scale={dict(scales)} leaves out {', '.join(left_out)}, at work now, which would be put to rest in all "
        "streams of this pipeline: give its scale, too, or 0 for none of it",
    )


def one_layer_of_each(model: torch.nn.Module) -> dict[str, Any]:
    """For each LoRA a layer that has it: what is done to one of them, such as to fuse it, is done to all."""
    return {name: layer for _, layer in _layers(model) for name in layer.lora_B}


def at_work(model: torch.nn.Module) -> tuple[Any, ...]:
    """How the LoRAs of a network are at work, to compare."""
    return tuple(
        (*layer.active_adapters, *layer.scaling.items(), layer.disable_adapters, layer.merged)
        for _, layer in _layers(model)
    )


def require_loaded(model: torch.nn.Module, name: str) -> None:
    """Raise ValueError where a LoRA was unloaded."""
    check(
        name in getattr(model, "peft_config", ()),
        f"LoRA {name!r} was unloaded since this stream was opened: load it again and open another stream, or "
        "update(lora=None)",
    )


def require_at_work(layers: Sequence[Any], name: str) -> None:
    """Raise ValueError where the layers of a LoRA do not make what a scale multiplies."""
    check(
        not any(layer.merged for layer in layers),
        f"LoRA {name!r} is fused into the weights of all rows: pipe.unfuse_lora() first",
    )
    check(
        all(name in layer.active_adapters and not layer.disable_adapters for layer in layers),
        f"LoRA {name!r} is not at work: pipe.set_adapters([...]) with it first",
    )
    check(
        not any(getattr(layer, "use_dora", {}).get(name, False) for layer in layers),
        f"LoRA {name!r} is a DoRA, which changes the norms of weights and cannot be scaled by rows: leave it out",
    )


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Peft's layers."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_B"))
