"""The only file that imports names diffusers keeps private, and the only one that reads its private attributes.

Checked against diffusers 0.42; a version that moves a name fails here, at import, and nowhere else.
"""

from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import StateManager

REGISTRY_ATTRIBUTE = "_diffusers_hook"
RESET_ATTRIBUTE = "_reset_stateful_cache"


class Hook(ModelHook):  # type: ignore[misc]
    """A typed `ModelHook`. Subclasses define `new_forward(module, *args, **kwargs)` and call `original` in it."""

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward that this hook wraps."""
        return self.fn_ref.original_forward(*args, **kwargs)


class ContextName(StateManager):  # type: ignore[misc]
    """Learns the name that a pipeline gives its current call through `model.cache_context(name)`; None outside one."""

    def __init__(self) -> None:
        super().__init__(state_cls=None)

    @property
    def name(self) -> str | None:
        """The current context's name."""
        return None if self._context is None else str(self._context.name)

    def reset(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Forget the context."""
        self._context = None


def registry_of(module: torch.nn.Module) -> Any:
    """The module's hook registry, made on first use."""
    return HookRegistry.check_if_exists_or_initialize(module)


def hooks_of(module: torch.nn.Module) -> list[str]:
    """Names of the hooks in the module's registry, innermost first."""
    registry = module.__dict__.get(REGISTRY_ATTRIBUTE)
    return [] if registry is None else list(registry._hook_order)


def num_timesteps(pipe: Any) -> int | None:
    """Length of the timesteps that the running pipeline announced, where it does."""
    announced = getattr(pipe, "_num_timesteps", None)
    return announced if isinstance(announced, int) else None
