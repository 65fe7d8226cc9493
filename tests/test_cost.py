"""Multiply-accumulates in a report are those of the calls that were executed, whatever the network has on it."""

from functools import cache
from typing import Any

import pytest
import torch
from cells import cells
from peft import LoraConfig
from tiny_networks import generate, picture_unet, pipeline, sd_unet, unet_inputs
from tiny_transformers import TRANSFORMERS

from diffaccel.attach.cost import UncountableError
from diffaccel.attach.handle import accelerate
from diffaccel.attach.macs import count_macs, skeleton
from diffaccel.methods import (
    BlockCache,
    DeepCache,
    DeltaCache,
    FeatureInheritance,
    IntervalCache,
    TextKVCache,
    TGate,
    TokenReduction,
)
from diffaccel.reuse.forecast import Taylor
from diffaccel.reuse.measure import SeaFilter
from diffaccel.reuse.schedule import Threshold

CALLS = 6
ON_TRANSFORMERS = [
    BlockCache(threshold=0.3, forecast=Taylor(1)),
    IntervalCache(interval=3, total=CALLS),
    DeltaCache(interval=3, blocks=3),
    DeltaCache(interval=2, gate=4),
]

NAMES = ["DiTTransformer2DModel", "FluxTransformer2DModel", "SD3Transformer2DModel"]


def executed(model: Any, calls: list[dict[str, Any]]) -> int:
    return sum(count_macs(lambda call=call: model(**call)) for call in calls)


def transformer(name: str) -> tuple[Any, list[dict[str, Any]]]:
    """A network, and a run in which the first row hardly moves and the second does."""
    tiny, table = TRANSFORMERS[name], torch.linspace(900, 100, CALLS)
    inputs = tiny.inputs(2, torch.Generator().manual_seed(0))
    sample = next(iter(inputs))
    speed = torch.tensor([0.01, 0.6]).reshape(2, *[1] * (inputs[sample].dim() - 1))
    moving = [inputs[sample] * (1 + i * speed) + i * speed * inputs[sample].roll(1, -1) for i in range(CALLS)]
    return tiny.build(name), [
        {**inputs, sample: value, tiny.timestep: t.expand(2)} for value, t in zip(moving, table, strict=True)
    ]


@cache
def plain_cost(name: str) -> int:
    return executed(*transformer(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    cells(
        [(name, method) for name in NAMES for method in ON_TRANSFORMERS],
        lambda cell: ON_TRANSFORMERS.index(cell[1]) == NAMES.index(cell[0]),
        lambda cell: f"{cell[0]}-{cell[1].to_text()}",
    ),
)
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
def test_transformers(name: str, method: Any) -> None:
    model, calls = transformer(name)
    plain = plain_cost(name)
    with accelerate(model, method) as handle:
        done = executed(model, calls)
        report = handle.report()
    assert report.replayed > 0
    assert (report.macs, report.macs_plain) == (done, plain)
    assert 0 < report.macs_saved < 1


def adapted(unet: Any) -> None:
    names = ["to_q", "to_k", "conv1"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=names))


def fused(unet: Any) -> None:
    unet.fuse_qkv_projections()


SHALLOW, GATE = (DeepCache(interval=2, branch=1), TextKVCache()), (TGate(gate=2),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "methods"),
    cells(
        [(adapted, SHALLOW), (adapted, GATE), (fused, SHALLOW), (fused, GATE)],
        lambda cell: cell == (adapted, SHALLOW),
        lambda cell: f"{cell[0].__name__}-{cell[1][0].to_text()}",
    ),
)
def test_the_network_as_it_is(change: Any, methods: Any) -> None:
    unet = picture_unet()
    inputs = unet_inputs(unet)
    bare = count_macs(lambda: unet(**inputs, timestep=500))
    change(unet)
    calls = [{**inputs, "timestep": t} for t in (900, 700, 500, 300)]
    plain = executed(unet, calls)
    with accelerate(unet, *methods) as handle:
        assert executed(unet, calls) == handle.report().macs
        assert handle.report().macs_plain == plain
    assert (plain > 4 * bare) == (change is adapted)


@pytest.mark.parametrize(
    "methods",
    [
        (DeepCache(3), FeatureInheritance(interval=2)),  # which finds nothing stored below the branch at call 3
        (FeatureInheritance(interval=2), DeepCache(3)),
        (TokenReduction(min_tokens=16, interval=2, warmup=1),),  # whose call 1 has no matching to go by
    ],
    ids=repr,
)
def test_calls_that_find_nothing_stored_where_they_were_to_reuse(methods: Any) -> None:
    unet = picture_unet()
    inputs = unet_inputs(unet, rows=1)
    with accelerate(unet, *methods) as handle:
        done = executed(unet, [{**inputs, "timestep": torch.tensor(900 - 100 * i)} for i in range(4)])
    assert handle.report().macs == done


def test_calls_whose_schedule_goes_by_the_noise_level() -> None:
    pipe = pipeline(picture_unet())
    method = DeepCache(schedule=Threshold(9.0, max_reuse=1, measure=SeaFilter(2.0)))
    with accelerate(pipe, method) as handle:
        done = count_macs(lambda: generate(pipe, steps=4))
    assert (handle.report().replayed, handle.report().macs) == (2, done)


def test_a_copy_without_weights_leaves_the_network_alone() -> None:
    unet = sd_unet()
    inputs = unet_inputs(unet)
    with torch.no_grad():
        before = unet(**inputs, timestep=500).sample
        with accelerate(unet, DeepCache(interval=2)):
            clone = skeleton(unet)
        assert all(parameter.is_meta for parameter in clone.parameters())
        assert all(module.forward.__func__ is type(module).forward for module in clone.modules())
        assert torch.equal(unet(**inputs, timestep=500).sample, before)


class Packed(torch.nn.Linear):
    """A linear layer that keeps two weights in a byte, as quantized ones do."""

    def __init__(self) -> None:
        super().__init__(8, 6)
        self.weight = torch.nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)


class Numbers(torch.Tensor):
    """A weight in a form of its own, of which torch knows the shape alone, as some libraries' quantized ones are."""

    @staticmethod
    def __new__(cls, *shape: int) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(*args[0].shape)
        raise NotImplementedError(f"{func} of {cls.__name__}")


def test_quantized_layers_count_as_plain_ones() -> None:
    clone = skeleton(torch.nn.Sequential(Packed()))
    assert count_macs(lambda: clone(torch.empty(3, 8, device="meta"))) == 3 * 8 * 6
    linear, conv = torch.nn.Linear(8, 6), torch.nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2)
    for layer, shape, expected in ((linear, (3, 8), 3 * 8 * 6), (conv, (3, 8, 10, 10), 3 * 25 * 6 * 4 * 9)):
        layer.weight = torch.nn.Parameter(Numbers(*layer.weight.shape), requires_grad=False)
        clone = skeleton(torch.nn.Sequential(layer))
        assert count_macs(lambda clone=clone, shape=shape: clone(torch.empty(shape, device="meta"))) == expected


def test_attention_of_any_backend_is_counted_as_torchs() -> None:
    model, calls = transformer("FluxTransformer2DModel")
    plain = count_macs(lambda: model(**calls[0]))
    processors = [module.processor for module in model.modules() if hasattr(module, "processor")]
    for processor in processors:
        processor._attention_backend = "flex"  # refuses tensors without storage
    clone, inputs = skeleton(model), {name: value.to("meta") for name, value in calls[0].items()}
    assert count_macs(lambda: clone(**inputs)) == plain
    assert processors
    assert all(processor._attention_backend == "flex" for processor in processors)


def test_a_network_that_reads_values_of_its_inputs() -> None:
    model, calls = transformer("Lumina2Transformer2DModel")
    with accelerate(model, IntervalCache(interval=3, total=CALLS)) as handle, torch.no_grad():
        for call in calls:
            model(**call)
        report = handle.report()
    with pytest.raises(UncountableError, match="of Lumina2Transformer2DModel are not known: it reads values"):
        assert report.macs
    assert "3 computed, 3 replayed\nmultiply-accumulates of Lumina2Transformer2DModel are not known" in str(report)
    assert report.to_dict()["macs"] is None
    assert report.to_dict()["replayed"] == 3
