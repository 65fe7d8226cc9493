"""What must hold of an accelerated pipeline: before a handle takes its networks, and as long as it has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffaccel._diffusers import STOCK_CACHES, hook_on, hooks_of
from diffaccel.attach.seat import Seat
from diffaccel.methods import Method
from diffaccel.networks import COMPANIONS, UnsupportedModelError
from diffaccel.networks.compiled import IN_PLACE, compiled_around, is_compiled
from diffaccel.runtime.attachment import HOOK
from diffaccel.runtime.host import Host


def parts_of(component: Any) -> Sequence[Any]:
    """The networks of a MultiControlNetModel, or the component itself."""
    return tuple(getattr(component, "nets", (component,)))


def require_attached(seats: Sequence[Seat], pipe: Any) -> None:
    """Refuse to go on in silence where a network, or a part of one, was exchanged, or lost its hooks.

    Args:
        seats: of the handle.
        pipe: the pipeline that was accelerated, None for a bare network.

    Raises:
        RuntimeError: saying what happened.
    """
    again = "detach() the handle, then accelerate() the pipeline again"
    for seat in seats:
        kind = type(seat.model).__name__
        _require_no_stock_cache(seat.model)
        _require_compiled_before(seat.model)
        _require_decided_together(seat)
        if (name := seat.lost()) is not None:
            raise RuntimeError(
                f"{name} of {kind} was replaced after accelerate(), as FreeNoise and LoRAs do where they come or go, "
                f"so it would not reuse what the rest does: {again}"
            )
        if seat.is_bypassed:
            raise RuntimeError(
                f"hooks on {kind} went with others that lay beneath them, such as those of offload, so that nothing "
                f"would be reused: {again}"
            )
    for seat in seats if pipe is not None else ():
        name = "controlnet" if seat.leader is not None else seat.name
        if name is not None and not any(part is seat.model for part in parts_of(getattr(pipe, name, seat.model))):
            raise RuntimeError(
                f"{type(pipe).__name__}.{name} was replaced after accelerate(), so nothing would be reused: {again}"
            )


def require_companions(methods: Sequence[Method], companions: Sequence[torch.nn.Module], host: Host) -> None:
    """Refuse methods of ControlNets where there is none that is known, or not the one that they name."""
    needing = [method for method in methods if method.needs_controlnet]
    if needing and not companions:
        where = "a bare network" if host.pipe is None else type(host.pipe).__name__
        known = ", ".join(name for family in COMPANIONS for name in family.classes)
        raise UnsupportedModelError(
            f"{type(needing[0]).__name__} needs a ControlNet of a known kind, and {where} has none: give a pipeline "
            f"with one of {known}"
        )
    for method in needing:
        method.require_nets(len(companions))


def require_free(model: torch.nn.Module) -> None:
    """Refuse a denoiser that is accelerated already, that another cache works on, or whose hooks would be compiled."""
    if HOOK in hooks_of(model):
        raise RuntimeError(f"this {type(model).__name__} is accelerated already: call detach() on its handle first")
    if getattr(model, "is_cache_enabled", False):
        raise RuntimeError(
            f"a cache of diffusers is enabled on this {type(model).__name__}: call disable_cache() on it first"
        )
    if is_compiled(model):
        raise RuntimeError(
            "the denoiser was compiled as a whole, so hooks cannot decide outside of the compiled code; compile its "
            "forward instead, before accelerate(): unet.forward = torch.compile(unet.forward, fullgraph=True), "
            "or use unet.compile_repeated_blocks(fullgraph=True)"
        )


def _require_no_stock_cache(model: torch.nn.Module) -> None:
    """Refuse a cache that a function of diffusers has put on the network itself."""
    if (name := hook_on(model, STOCK_CACHES)) is not None:
        raise RuntimeError(
            f"a cache of diffusers, whose hooks have names like {name!r}, works on this {type(model).__name__}: take "
            "them out of its HookRegistry, or load the network anew"
        )


def _require_compiled_before(model: torch.nn.Module) -> None:
    """Refuse code that was compiled with hooks of ours in it, whose every decision would be a graph of its own."""
    for name, module in model.named_modules():
        if HOOK in hooks_of(module):
            own = name if vars(module).get(IN_PLACE) is not None else None
            if (inside := compiled_around(model, name) or own) is not None:
                raise RuntimeError(
                    f"{inside or type(model).__name__} was compiled after accelerate(), with our hooks in it: detach() "
                    "the handle, compile, and then accelerate() the pipeline again"
                )


def _require_decided_together(seat: Seat) -> None:
    """Refuse decisions in the middle of a call on tokens that lie on several devices."""
    parallel = getattr(getattr(seat.model, "_parallel_config", None), "context_parallel_config", None)
    if parallel is not None and any(part.act.measured for part in seat.session.parts):
        raise RuntimeError(
            f"the tokens of this {type(seat.model).__name__} lie on several devices (enable_parallelism), each of "
            "which would decide for itself in the middle of a call, and then wait for the others: use a method whose "
            "calls are known beforehand, such as IntervalCache or DeltaCache"
        )
