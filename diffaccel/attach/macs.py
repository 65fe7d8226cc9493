"""Multiply-accumulates of a network call, counted by torch's formulas on tensors without storage."""

from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from diffaccel._diffusers import REGISTRY_ATTRIBUTE, RESET_ATTRIBUTE
from diffaccel.control.attach import ControlBlocks, attach, attached_to
from diffaccel.networks.compiled import IN_PLACE
from diffaccel.runtime.tally import weightless
from diffaccel.runtime.trees import map_tensors

# What hooks, offloading and torch.compile put on single modules, over the forward of their class.
PUT_ON = ("forward", "_old_forward", "_hf_hook", IN_PLACE, REGISTRY_ATTRIBUTE, RESET_ATTRIBUTE)

BACKEND = "_attention_backend"  # what diffusers notes at an attention processor

aten = torch.ops.aten
ELEMENTWISE = {
    *(aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.pow, aten.exp, aten.sin, aten.cos, aten.sqrt, aten.rsqrt),
    *(aten.relu, aten.silu, aten.gelu, aten.sigmoid, aten.tanh, aten.clamp, aten._softmax, aten._safe_softmax),
}
PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}  # where their matrices stand


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of the CPU's fused attention, given its operands; torch has the formulas of the others."""
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


FORMULAS = {**flop_registry, aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up FLOPs by torch's formulas, which need shapes alone.

    torch's own FlopCounterMode counts the same, by module, too, and works out element-wise work on tensors without
    storage in Python, which takes most of its time; here their shapes are known at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "overloadpacket", func)
        out = _by_shape(packet, args) if "out" not in kwargs and "dtype" not in kwargs else None
        if packet not in FORMULAS:
            if out is None:
                with self:
                    out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs) if out is None else out
        self.flops += FORMULAS[packet](*args, **kwargs, out_val=out)
        return out


def _by_shape(packet: Any, args: tuple[Any, ...]) -> Any:
    """What one of the commonest operations makes of real numbers without storage; None where it is another."""
    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    if not tensors or not all(x.is_meta and x.is_floating_point() for x in tensors):
        return None
    make = partial(torch.empty, dtype=torch.result_type(tensors[0], tensors[-1]), device="meta")
    if packet in ELEMENTWISE:
        shape = torch.broadcast_shapes(*(x.shape for x in tensors))  # type: ignore[no-untyped-call]
        return make(shape)
    if packet in PRODUCTS:
        left, right = args[PRODUCTS[packet] :][:2]
        return make((*left.shape[:-1], right.shape[-1]))
    if packet is aten.native_group_norm:
        return make(tensors[0].shape), *(make((args[3], args[6])) for _ in range(2))
    if packet is aten.native_layer_norm:
        moments = (*tensors[0].shape[: -len(args[1])], *(1 for _ in args[1]))
        return make(tensors[0].shape), *(make(moments) for _ in range(2))
    return None


def count_macs(function: Callable[[], Any]) -> int:
    """Multiply-accumulates of one call of `function`: half of the floating-point operations of its matrix products,
    convolutions and attentions. Element-wise work is not counted.
    """
    with torch.no_grad(), _Counter() as counter:
        function()
    return int(counter.flops) // 2


def skeleton(model: torch.nn.Module) -> torch.nn.Module:
    """A network of the same modules, whose weights take no memory, without hooks and in evaluation mode.

    Adapters such as LoRA, fused projections and exchanged attention processors are as they are in `model`, and so are
    control blocks on it. Weights are in single precision, quantized layers are plain ones, and attention is
    torch's own whichever backend was set, as others need an accelerator: they do the same multiplications.
    """
    clone = _copied(model, {}).eval()
    if (control := attached_to(model)) is not None:
        attach(clone, cast(ControlBlocks, _copied(cast(torch.nn.Module, control.blocks), {})))
    return clone


def _copied(module: torch.nn.Module, known: dict[int, torch.nn.Module]) -> torch.nn.Module:
    """The skeleton of one module; `known` has those of modules that were met before."""
    if id(module) in known:
        return known[id(module)]
    if (plain := _plain(module)) is not None:
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
    if isinstance(value, torch.Tensor) or type(value) in (tuple, list, dict):
        return map_tensors(weightless, value)
    if hasattr(value, BACKEND) and not isinstance(value, type):
        value = copy(value)
        setattr(value, BACKEND, "native")
    return value


def _plain(module: torch.nn.Module) -> torch.nn.Module | None:
    """The plain layer in the place of one whose weight is no tensor of real numbers in its usual shape."""
    more: dict[str, Any] = {"bias": getattr(module, "bias", None) is not None, "device": "meta"}
    if isinstance(module, torch.nn.Linear):
        ins, outs = module.in_features, module.out_features
        return torch.nn.Linear(ins, outs, **more) if _is_quantized(module.weight, (outs, ins)) else None
    if isinstance(module, torch.nn.Conv2d):
        ins, outs, kernel = module.in_channels, module.out_channels, cast(tuple[int, int], module.kernel_size)
        more |= {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
        quantized = _is_quantized(module.weight, (outs, ins // module.groups, *kernel))
        return torch.nn.Conv2d(ins, outs, kernel, **more) if quantized else None
    return None


def _is_quantized(weight: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a layer keeps its weight in another form than real numbers of a shape."""
    known = type(weight) in (torch.Tensor, torch.nn.Parameter)
    return not known or not weight.is_floating_point() or weight.shape != shape
