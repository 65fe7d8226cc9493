"""A second device where there is none: tensors that say they are on it, compute on the CPU, and refuse to be mixed.

Code that only ever ran on a CPU may make tensors there that belong on an accelerator, and nothing tells. Here
`to(DEVICE)` makes a `There`, factories with `device=DEVICE` do, too, and a function of tensors of both devices fails as
it does on CUDA: all but copies, numbers (tensors without dimensions) and indices.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

DEVICE = torch.device("xpu", 0)
CPU = torch.device("cpu")
MIXING = {"copy_", "__deepcopy__", "__getitem__", "__setitem__", "index_put_"}
"""Functions that take tensors of several devices."""


class MixedDevicesError(RuntimeError):
    """A function got tensors of both devices."""


class There(torch.Tensor):
    """A tensor that is on `DEVICE`, with its values on the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert a tensor of another device to numpy: copy it to the CPU first")
        if (asked := _asked(name, args, kwargs)) is not None:
            return _moved(asked, func, args, kwargs)
        if name not in MIXING:
            _check(name, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)


class SecondDevice(TorchFunctionMode):
    """While active, tensors can be made on `DEVICE`, and moved there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        asked = None if func in (torch.device, torch.Generator) else _asked(name, args, kwargs)
        return func(*args, **kwargs) if asked is None else _moved(asked, func, args, kwargs)


def _asked(name: str, args: Any, kwargs: Any) -> str | None:
    """The kind of device that a result shall be on, where a function says so."""
    if name == "cpu":
        return "cpu"
    if name in ("to", "type_as") and len(args) > 1 and isinstance(args[1], torch.Tensor):
        return str(args[1].device.type)
    return next((kind for x in (*args, *kwargs.values()) if (kind := _kind(x))), None)


def _kind(x: Any) -> str | None:
    """The kind of device that an argument names."""
    if isinstance(x, torch.device):
        return x.type
    word = x.split(":")[0] if isinstance(x, str) else None
    return word if word in ("cpu", "meta", DEVICE.type) else None


def _moved(asked: str, func: Any, args: Any, kwargs: Any) -> Any:
    """The result of a function that makes or moves tensors."""
    args = tuple(CPU if _kind(x) == DEVICE.type else x for x in args)
    kwargs = {key: CPU if _kind(x) == DEVICE.type else x for key, x in kwargs.items()}
    with torch._C.DisableTorchFunctionSubclass():
        out = func(*args, **kwargs)
    kind = There if asked == DEVICE.type else torch.Tensor
    return tree_map_only(torch.Tensor, lambda x: x.as_subclass(kind), out)


def _check(name: str, args: Any, kwargs: Any) -> None:
    """Raise `MixedDevicesError` for tensors of both devices; numbers may come from the CPU."""
    given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    if any(isinstance(x, There) for x in given) and any(not isinstance(x, There) and x.dim() for x in given):
        raise MixedDevicesError(f"{name}: {', '.join(f'{tuple(x.shape)} on {x.device}' for x in given)}")


def move(module: torch.nn.Module) -> None:
    """Move a module's weights and buffers to `DEVICE`."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(weight.data.as_subclass(There), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.as_subclass(There)


@contextmanager
def second_device(*pipes: Any) -> Iterator[None]:
    """`DEVICE` exists, in threads that begin now, too, and the networks of some pipelines are on it from now on."""
    run = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with SecondDevice():
            run(thread)

    with SecondDevice(), patch.object(threading.Thread, "run", run_there), torch.no_grad():
        for part in (part for pipe in pipes for part in pipe.components.values()):
            if isinstance(part, torch.nn.Module):
                move(part)
        yield
