"""Multiply-accumulates of a network call, counted by torch's FlopCounterMode on tensors without storage."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from diffaccel._diffusers import REGISTRY_ATTRIBUTE, RESET_ATTRIBUTE
from diffaccel.runtime.tally import weightless

# What hooks, offloading and torch.compile put on single modules, over the forward of their class.
PUT_ON = ("forward", "_old_forward", "_hf_hook", "_compiled_call_impl", REGISTRY_ATTRIBUTE, RESET_ATTRIBUTE)


def count_macs(function: Callable[[], Any]) -> int:
    """Multiply-accumulates of one call of `function`: half of the floating-point operations of its matrix products,
    convolutions and attentions. Element-wise work is not counted.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={flash: _cpu_attention_flops}) as counter:
        function()
    return int(counter.get_total_flops()) // 2


def skeleton(model: torch.nn.Module) -> torch.nn.Module:
    """A network of the same modules, whose weights take no memory, without hooks and in evaluation mode.

    Adapters such as LoRA, fused projections and exchanged attention processors are as they are in `model`. Weights are
    in single precision, and quantized linear layers are plain ones: they do the same multiplications.
    """
    return _copied(model, {}).eval()


def _copied(module: torch.nn.Module, known: dict[int, torch.nn.Module]) -> torch.nn.Module:
    """The skeleton of one module; `known` has those of modules that were met before."""
    if id(module) in known:
        return known[id(module)]
    if isinstance(module, torch.nn.Linear) and _is_quantized(module):
        plain = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        return known.setdefault(id(module), plain)
    clone = known[id(module)] = type(module).__new__(type(module))
    values = {name: value for name, value in vars(module).items() if name not in PUT_ON}
    clone.__dict__.update(
        {name: OrderedDict() if "_hooks" in name else _moved(value) for name, value in values.items()}
    )
    clone._parameters = {name: _parameter(value) for name, value in module._parameters.items()}
    clone._buffers = {name: _moved(value) for name, value in module._buffers.items()}
    clone._modules = {name: child and _copied(child, known) for name, child in module._modules.items()}
    return clone


def _parameter(value: torch.nn.Parameter | None) -> torch.nn.Parameter | None:
    """A parameter without storage."""
    return None if value is None else torch.nn.Parameter(weightless(value), requires_grad=False)


def _moved(value: Any) -> Any:
    """An attribute of a module with its tensors, also those in tuples, lists and dictionaries, without storage."""
    if isinstance(value, torch.Tensor):
        return weightless(value)
    if type(value) in (tuple, list, dict):
        return tree_map(lambda leaf: weightless(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)
    return value


def _is_quantized(module: torch.nn.Linear) -> bool:
    """Whether a linear layer keeps its weights in another form than (out, in) real numbers."""
    weight = module.weight
    return not weight.is_floating_point() or weight.shape != (module.out_features, module.in_features)


def _cpu_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of the CPU's fused attention, given the shapes of its operands; torch counts the others by itself."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
