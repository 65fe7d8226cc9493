"""Networks that torch.compile has taken as a whole, in either of its two ways."""

from typing import Any

IN_PLACE = "_compiled_call_impl"  # what torch.nn.Module.compile leaves on a module; torch.compile wraps it instead


def is_compiled(module: Any) -> bool:
    """Whether a module was compiled as a whole, so that a hook within would break its graph."""
    return hasattr(module, "_orig_mod") or getattr(module, IN_PLACE, None) is not None


def unwrapped(module: Any) -> Any:
    """The module that torch.compile has wrapped; any other is itself."""
    return getattr(module, "_orig_mod", module)


def has_compiled_forward(module: Any) -> bool:
    """Whether torch.compile was put on the forward alone."""
    return hasattr(module.forward, "_torchdynamo_orig_callable")


def compiled_around(model: Any, name: str) -> str | None:
    """The outermost block within a network that was compiled in place and holds a module; None where there is none."""
    parents = (".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1))
    return next((parent for parent in parents if vars(model.get_submodule(parent)).get(IN_PLACE) is not None), None)
