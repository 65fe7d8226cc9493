"""Static schedules never make the host wait for the device: they work on tensors that have no values to read."""

from typing import Any

import pytest
import torch
from test_cost import transformer
from tiny_networks import generate, pipeline, sd_unet, unet_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from diffaccel.attach.handle import accelerate
from diffaccel.attach.macs import skeleton
from diffaccel.methods import (
    BlockCache,
    DeepCache,
    DeltaCache,
    EncoderPropagation,
    FeatureInheritance,
    IntervalCache,
    ResidualGuidance,
    TextKVCache,
    TGate,
)
from diffaccel.reuse.forecast import Taylor
from diffaccel.reuse.schedule import (
    BackLoaded,
    FrontLoaded,
    Quadratic,
    ScaledSteps,
    Steps,
    Threshold,
    Uniform,
)

pytestmark = pytest.mark.exhaustive

CALLS = 6
SCHEDULES = [
    Uniform(3),
    Steps((0, 2, 3)),
    ScaledSteps((0, 1, 5), of=10),
    Quadratic(2, center=2),
    FrontLoaded(2),
    BackLoaded(2),
]
ON_UNETS = [
    *(DeepCache(schedule=schedule) for schedule in SCHEDULES),
    DeepCache(interval=3, forecast=Taylor(2)),
    FeatureInheritance(interval=2),
    EncoderPropagation(),
    TGate(gate=3),
    TextKVCache(),
]
ON_TRANSFORMERS = [
    IntervalCache(interval=2),
    DeltaCache(),
    IntervalCache(interval=3, forecast=Taylor(1)),
    TextKVCache(),
]


def run_without_values(model: Any, method: Any, inputs: dict[str, Any]) -> int:
    """Calls that reused something, in a run of a network whose tensors have shapes only."""
    moved = {key: x.to("meta") if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}
    bare = skeleton(model)
    with accelerate(bare, method) as handle, torch.no_grad():
        for t in torch.linspace(900, 100, CALLS, device="meta"):
            bare(**moved, timestep=t.expand(2))
        return handle.report().replayed


@pytest.mark.parametrize("method", ON_UNETS)
def test_unets(method: Any) -> None:
    unet = sd_unet()
    assert run_without_values(unet, method, unet_inputs(unet)) > 0


@pytest.mark.parametrize("method", ON_TRANSFORMERS)
def test_transformers(method: Any) -> None:
    model, calls = transformer("PixArtTransformer2DModel")
    inputs = {key: value for key, value in calls[0].items() if key != "timestep"}
    assert run_without_values(model, method, inputs) > 0


def test_schedules_that_measure_do_wait() -> None:
    unet = sd_unet()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run_without_values(unet, DeepCache(schedule=Threshold(0.1)), unet_inputs(unet))
    model, calls = transformer("PixArtTransformer2DModel")
    inputs = {key: value for key, value in calls[0].items() if key != "timestep"}
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run_without_values(model, BlockCache(threshold=0.1), inputs)


class Reads(TorchDispatchMode):
    """Counts values that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_pipeline_reads_no_more_values_than_without_methods() -> None:
    pipe = pipeline(sd_unet())
    with Reads() as plain:
        generate(pipe, guidance_scale=1.5)
    methods = (DeepCache(interval=3), TGate(gate=4), TextKVCache(), ResidualGuidance())
    with accelerate(pipe, *methods), Reads() as ours:
        generate(pipe, guidance_scale=1.5)
    with accelerate(pipe, DeepCache(schedule=Threshold(0.1))), Reads() as measuring:
        generate(pipe, guidance_scale=1.5)
    assert ours.count <= plain.count < measuring.count
