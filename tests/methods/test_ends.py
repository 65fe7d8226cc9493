"""`warmup` and `cooldown`, which every method has: within them a run is the plain one, whatever the method reuses."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from support_matrix import CALLS, METHODS, moving, outputs
from tiny_networks import UNETS, generate, network_inputs, picture_unet, pipeline
from tiny_transformers import TRANSFORMERS

from diffaccel import DeepCache, EasyCache, ResidualGuidance, SlotCache, TGate, accelerate
from diffaccel.methods import Method
from diffaccel.networks import UnsupportedModelError

NETWORKS = ("UNet2DConditionModel", "PixArtTransformer2DModel")


@cache
def network(name: str) -> tuple[Any, list[dict[str, Any]]]:
    if name in UNETS:
        model = UNETS[name]()
        return model, moving(network_inputs(model), "timestep")
    tiny = TRANSFORMERS[name]
    return tiny.build(name), moving(tiny.inputs(2, torch.Generator().manual_seed(0)), tiny.timestep)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_warmup_as_long_as_the_run_is_the_plain_run(method: str, name: str) -> None:
    model, calls = network(name)
    try:
        made = METHODS[method](model)
        with accelerate(model, replace(made, warmup=CALLS)) as handle:
            ours = outputs(model, calls)
    except (UnsupportedModelError, ValueError):
        pytest.skip("not for this network")
    assert all(same(ours, outputs(model, calls)))
    assert handle.report().replayed == 0


@pytest.fixture(scope="module")
def painted() -> tuple[Any, torch.Tensor]:
    """A pipeline, and what it paints in full."""
    pipe = pipeline(picture_unet())
    return pipe, generate(pipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [DeepCache(99), EasyCache(threshold=99.0), TGate(gate=1), ResidualGuidance(), ResidualGuidance("self")],
    ids=str,
)
def test_the_ends_of_a_guided_run_compute(method: Method, painted: tuple[Any, torch.Tensor]) -> None:
    pipe, plain = painted
    total = 6
    for ends in ({"warmup": total}, {"cooldown": total}, {"warmup": 4, "cooldown": 2}):
        with accelerate(pipe, replace(method, **ends)) as handle:
            assert torch.equal(generate(pipe), plain), ends
        assert handle.report().computed == total
    rows: list[int] = []
    hook = pipe.unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(output.shape[0]))
    with accelerate(pipe, replace(method, warmup=2, cooldown=1)) as handle:
        assert not torch.equal(generate(pipe), plain)
    hook.remove()
    assert rows[:2] == [2, 2]
    assert rows[-1] == 2
    assert handle.report().computed == 3


def test_a_warmup_delays_what_a_schedule_says() -> None:
    """Equal to the same computed calls given as a list."""
    model, calls = network("UNet2DConditionModel")
    with accelerate(model, DeepCache(interval=99, warmup=2)):
        ours = outputs(model, calls)
    with accelerate(model, METHODS["DeepCache"](model)):
        other = outputs(model, calls)
    plain = outputs(model, calls)
    assert same(ours, plain) == [True, True, False]
    assert same(other, plain) == [True, False, True]


@pytest.mark.parametrize("ends", [{"warmup": -1}, {"cooldown": -1}, {"warmup": 1.5}])
def test_other_values_are_refused_by_every_method(ends: dict[str, Any]) -> None:
    (name,) = ends
    for name_of_method, make in METHODS.items():
        model, _ = network(NETWORKS[name_of_method in ("BlockCache", "CalibratedCache", "DeltaCache", "IntervalCache")])
        with pytest.raises(ValueError, match=f"{name} must be an integer >= "):
            replace(make(model), **ends)


def test_the_end_of_a_run_must_be_known() -> None:
    model, calls = network("UNet2DConditionModel")
    for method in (DeepCache(2, cooldown=1), EasyCache(cooldown=1)):
        with (
            accelerate(model, method),
            pytest.raises(ValueError, match=r"cooldown=1 needs the number of network calls"),
        ):
            outputs(model, calls)
    assert SlotCache(DeepCache(2, cooldown=1), "frame").parts(model, 4)
    with pytest.raises(ValueError, match=r"DeepCache .*\(cooldown\), and a stream never ends"):
        SlotCache(DeepCache(2, cooldown=1)).parts(model, 4)
    with pytest.raises(ValueError, match="cooldown=1 needs a run of known length"):
        SlotCache(EasyCache(cooldown=1)).wrappers(model, 4)
