"""`offload`, which every method has that stores features: they rest elsewhere, and nothing else changes.

There is no second device here, so what rests is told by its number format: copies are made in double precision, which
holds single precision without loss.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from cells import cells
from support_matrix import CALLS, METHODS, moving, outputs
from tiny_networks import UNETS, network_inputs
from tiny_transformers import TRANSFORMERS

from diffaccel import (
    Aligned,
    BlockCache,
    ControlCache,
    DeepCache,
    EasyCache,
    IntervalCache,
    NetworkSwitch,
    Newton,
    Profile,
    ResidualGuidance,
    SpeCa,
    Taylor,
    TextKVCache,
    TokenReduction,
    Uniform,
    UnsupportedModelError,
    accelerate,
)
from diffaccel.methods import Method, parse
from diffaccel.runtime import resting

NETWORKS = ("UNet2DConditionModel", "PixArtTransformer2DModel")
FOR_UNETS = {"DeepCache", "EncoderPropagation", "FeatureInheritance", "TGate"}
STORING_NOTHING = EasyCache | NetworkSwitch | Profile | TextKVCache | TokenReduction
FORECASTS = [
    IntervalCache(schedule=Uniform(2), forecast=Taylor(2)),
    IntervalCache(schedule=Uniform(2), forecast=Newton(2)),
    BlockCache(threshold=0.2, forecast=Aligned()),
    SpeCa(threshold=0.2),
]


@cache
def network(name: str) -> tuple[Any, list[dict[str, Any]]]:
    if name in UNETS:
        model = UNETS[name]()
        return model, moving(network_inputs(model), "timestep")
    tiny = TRANSFORMERS[name]
    return tiny.build(name), moving(tiny.inputs(2, torch.Generator().manual_seed(0)), tiny.timestep)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """What was brought to rest, in double precision."""
    made: list[torch.Tensor] = []

    def rest(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "meta":  # where cost is counted
            return tensor
        assert tensor.dtype == torch.float32
        made.append(tensor.double())
        return made[-1]

    monkeypatch.setattr(resting, "rest", rest)
    monkeypatch.setattr(resting, "wake", lambda tensor, device: tensor.to(device, torch.float32))
    return made  # type: ignore[return-value]


def stored(handle: Any) -> list[torch.Tensor]:
    """All tensors that take storage and are kept for later calls."""
    (run,) = handle._runs.open
    found = []
    for seen in run.networks.values():
        for part in seen.memory.parts:
            blocks = {id(block): block for block, _ in part.lanes._places.values()}.values()
            leaves = torch.utils._pytree.tree_leaves([block.entries for block in blocks])
            found += [x for x in leaves if isinstance(x, torch.Tensor) and any(x.stride())]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "name"),
    cells(
        [(method, name) for method in METHODS for name in NETWORKS],
        lambda cell: (cell[1] == "UNet2DConditionModel") == (cell[0] in FOR_UNETS),
        "{0[0]}-{0[1]}".format,
    ),
)
def test_every_method_gives_the_same(method: str, name: str, copies: list[torch.Tensor]) -> None:
    model, calls = network(name)
    try:
        made = METHODS[method](model)
        with accelerate(model, made):
            expected = outputs(model, calls)
    except (UnsupportedModelError, ValueError):
        pytest.skip("not for this network")
    if isinstance(made, STORING_NOTHING):
        with pytest.raises(ValueError, match="offload=True"):
            accelerate(model, replace(made, offload=True))
        return
    with accelerate(model, replace(made, offload=True)) as handle:
        ours, kept = outputs(model, calls), stored(handle)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert copies
    resting_now = {x.untyped_storage().data_ptr() for x in kept if x.dtype == torch.float64}
    assert resting_now
    assert resting_now == {x.untyped_storage().data_ptr() for x in kept} or isinstance(made, BlockCache)


@pytest.mark.parametrize("method", cells(METHODS, ("DeepCache", "BlockCache").__contains__))
def test_cost_is_counted_while_features_rest(method: str, copies: list[torch.Tensor]) -> None:
    model, calls = network(NETWORKS[method not in FOR_UNETS])
    made = METHODS[method](model)
    if isinstance(made, STORING_NOTHING):
        pytest.skip("has no features that could rest")
    with accelerate(model, replace(made, offload=True)) as handle:
        outputs(model, calls)
        assert handle.report().macs > 0


@pytest.mark.parametrize("method", FORECASTS, ids=str)
def test_forecasts_go_on_from_what_rests(method: Method, copies: list[torch.Tensor]) -> None:
    model, calls = network("PixArtTransformer2DModel")
    longer = [{**call, "hidden_states": call["hidden_states"] * (1 + 0.01 * i)} for i in range(3) for call in calls]
    for i, call in enumerate(longer):
        longer[i] = {**call, "timestep": torch.full((2,), 900.0 - 50 * i)}
    with accelerate(model, method):
        expected = outputs(model, longer)
    with accelerate(model, replace(method, offload=True)):
        ours = outputs(model, longer)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert copies


def test_what_is_kept_of_a_history_is_copied_once(copies: list[torch.Tensor]) -> None:
    features = [torch.full((1, 2), float(i)) for i in range(4)]
    history = None
    for step, feature in enumerate(features):
        history = resting.renewed(
            history,
            lambda known, feature=feature, step=step: Newton(2).update(known, feature, step),
            torch.device("cpu"),
        )
    assert len(copies) == len(features)
    assert [float(x[0, 0]) for _, x in history] == [3.0, 2.0, 1.0]


def test_in_the_machine_s_memory_nothing_is_copied() -> None:
    tensor = torch.ones(3)
    assert resting.rest(tensor) is tensor
    assert resting.wake(tensor, torch.device("cpu")) is tensor
    model, calls = network("UNet2DConditionModel")
    with accelerate(model, DeepCache(2, offload=True)):
        assert len(outputs(model, calls)) == CALLS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_features_lie_in_pinned_memory() -> None:
    model, calls = network("UNet2DConditionModel")
    moved = [{k: v.cuda() for k, v in call.items()} for call in calls]
    model = model.cuda()
    try:
        with accelerate(model, DeepCache(2)):
            expected = outputs(model, moved)
        with accelerate(model, DeepCache(2, offload=True)) as handle:
            ours = outputs(model, moved)
            assert all(x.device.type == "cpu" and x.is_pinned() for x in stored(handle))
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    finally:
        model.cpu()


@pytest.mark.parametrize("method", [EasyCache(offload=True), ResidualGuidance(offload=True), TextKVCache(offload=True)])
def test_where_nothing_could_move_it_is_refused(method: Method) -> None:
    model, _ = network("UNet2DConditionModel")
    with pytest.raises(ValueError, match="offload=True"):
        accelerate(model, method)


def test_it_has_text_and_must_be_a_truth_value() -> None:
    assert parse("deepcache:interval=2,offload=True") == DeepCache(2, offload=True)
    assert parse(DeepCache(2, offload=True).to_text()) == DeepCache(2, offload=True)
    assert ControlCache(2, offload=True).offload
    with pytest.raises(ValueError, match="offload must be True or False, not 'cpu'"):
        DeepCache(2, offload="cpu")  # type: ignore[arg-type]
