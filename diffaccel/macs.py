"""Multiply-accumulates of a network call, counted by torch's FlopCounterMode on tensors without storage."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_macs(function: Callable[[], Any]) -> int:
    """Multiply-accumulates of one call of `function`: half of the floating-point operations of its matrix products,
    convolutions and attentions. Element-wise work is not counted.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={flash: _cpu_attention_flops}) as counter:
        function()
    return int(counter.get_total_flops()) // 2


def skeleton(model: torch.nn.Module) -> torch.nn.Module:
    """A network of the same class and configuration, whose weights take no memory; adapters such as LoRA are absent."""
    with torch.device("meta"):
        clone = type(model).from_config(dict(model.config))  # type: ignore[attr-defined, arg-type]
    assert isinstance(clone, torch.nn.Module)
    return clone.to("meta").eval()


def _cpu_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of the CPU's fused attention, given the shapes of its operands; torch counts the others by itself."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
