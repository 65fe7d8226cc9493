"""What the hooks themselves take: host time of a network call whose modules do nothing, and values that they read."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffaccel import (
    DeepCache,
    DeltaCache,
    EncoderPropagation,
    FeatureInheritance,
    IntervalCache,
    Quadratic,
    Steps,
    TextKVCache,
    TGate,
    Threshold,
    accelerate,
)
from diffaccel.attach.macs import skeleton
from diffaccel.measure import interleaved
from diffaccel.methods import Method
from diffaccel.models import load

CALLS = 12
ON_UNET: dict[str, Method] = {
    "DeepCache(3)": DeepCache(interval=3),
    "DeepCache(Quadratic)": DeepCache(schedule=Quadratic(3, center=4, total=CALLS)),
    "FeatureInheritance": FeatureInheritance(interval=2),
    "EncoderPropagation": EncoderPropagation(Steps((0, 1, 4, 8))),
    "TGate": TGate(gate=6),
    "TextKVCache": TextKVCache(),
}
ON_TRANSFORMER: dict[str, Method] = {
    "IntervalCache(3)": IntervalCache(interval=3, total=CALLS),
    "DeltaCache(2)": DeltaCache(interval=2, gate=6),
    "TextKVCache": TextKVCache(),
}
READS: dict[str, Method] = {"DeepCache(Threshold)": DeepCache(schedule=Threshold(0.1))}


def inputs_of(model: Any, device: str) -> dict[str, torch.Tensor]:
    """Random inputs of two rows for a bundled network, without the timestep."""
    size, unet = model.config.sample_size, hasattr(model, "up_blocks")
    channels = model.config.cross_attention_dim if unet else model.config.caption_channels
    torch.manual_seed(0)
    return {
        "sample" if unet else "hidden_states": torch.randn(2, 4, size, size, device=device),
        "encoder_hidden_states": torch.randn(2, 16, channels, device=device),
    }


def run(model: Any, inputs: dict[str, torch.Tensor], device: str) -> None:
    """One run of a bare network."""
    for t in torch.linspace(900, 1, CALLS, device=device):
        model(timestep=t.expand(2), **inputs)


def networks() -> Iterator[tuple[Any, dict[str, Method]]]:
    """The denoisers of the bundled pipelines, and static methods for each."""
    yield load("emoji-sd").unet, ON_UNET
    yield load("emoji-dit").transformer, ON_TRANSFORMER


def reads_values() -> dict[str, dict[str, bool]]:
    """Whether a method reads a value that lies on the device, which makes the host wait for it.

    Found out on tensors that have no values: reading one is an error there.
    """
    result: dict[str, dict[str, bool]] = {}
    for model, methods in networks():
        clone, inputs = skeleton(model), inputs_of(model, "meta")
        more = READS if hasattr(model, "up_blocks") else {}
        for name, method in {**methods, **more}.items():
            with accelerate(clone, method) as handle:
                works = _runs(clone, inputs)
                assert not works or handle.report().replayed > 0
            result[f"{type(model).__name__}, {name}"] = {"reads": not works}
    return result


def _runs(model: Any, inputs: dict[str, torch.Tensor]) -> bool:
    """Whether a run works without values."""
    try:
        run(model, inputs, "meta")
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error).lower():
            raise
        return False
    return True


def host_overhead(rounds: int) -> dict[str, dict[str, float]]:
    """Host time that a method adds to a network call, as a share of a call of the plain network.

    Every module that carries a hook returns at once, so that hooks and decisions are all that is timed.
    """
    result = {}
    for model, methods in networks():
        inputs = inputs_of(model, "cpu")
        plain = interleaved({"plain": lambda m=model, i=inputs: run(m, i, "cpu")}, rounds)["plain"].median / CALLS
        for name, method in methods.items():
            with idle(model, method) as call:
                bare = _seconds(call, rounds)
                with accelerate(model, method):
                    added = _seconds(call, rounds) - bare
            figures = {"ms per call": 1e3 * added, "plain ms": 1e3 * plain, "share": added / plain}
            result[f"{type(model).__name__}, {name}"] = figures
    return result


@contextmanager
def idle(model: Any, method: Method) -> Iterator[Callable[[], None]]:
    """The network without its work: it calls those of its modules that the method hooks, and these return at once.

    What they return are their true outputs in one call. Yields a run of such calls.
    """
    inputs, recorded = inputs_of(model, "cpu"), {}
    with accelerate(model, method):
        hooked = [name for name, m in model.named_modules() if name and "diffaccel" in _hooks(m)]
    modules = [model.get_submodule(name) for name in hooked]
    handles = [
        m.register_forward_hook(lambda _, args, kwargs, output, n=n: recorded.update({n: (args, kwargs, output)}),
                                with_kwargs=True)
        for n, m in zip(hooked, modules, strict=True)
    ]  # fmt: skip
    final = model(timestep=torch.tensor(500.0).expand(2), **inputs)
    for handle in handles:
        handle.remove()
    for name, module in zip(hooked, modules, strict=True):
        module.forward = lambda *_, output=recorded[name][2], **__: output

    def forward(*_: Any, **__: Any) -> Any:
        for name, module in zip(hooked, modules, strict=True):
            args, kwargs, _ = recorded[name]
            module(*args, **kwargs)
        return final

    model.forward = forward
    try:
        yield lambda: run(model, inputs, "cpu")
    finally:
        for module in (model, *modules):
            del module.forward


def _hooks(module: torch.nn.Module) -> list[str]:
    """Names of the hooks on a module."""
    registry = module.__dict__.get("_diffusers_hook")
    return [] if registry is None else list(registry.hooks)


def _seconds(call: Callable[[], None], rounds: int) -> float:
    """Least seconds of a network call, over many runs: the host's own time without interruptions."""
    times = []
    for _ in range(30 * rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) / CALLS
