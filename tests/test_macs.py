"""Multiply-accumulates counted by shapes are those that torch's own counter finds."""

from typing import Any

import pytest
import torch
from cells import cells
from tiny_networks import UNETS, network_inputs
from tiny_transformers import TRANSFORMERS
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from diffaccel.attach.macs import count_macs, skeleton

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


def torch_counts(function: Any) -> int:
    flash = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    }
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=flash) as counter:
        function()
    return int(counter.get_total_flops()) // 2


def network(name: str) -> tuple[Any, dict[str, Any]]:
    if name in UNETS:
        model = UNETS[name]()
        return model, {**network_inputs(model), "timestep": torch.tensor(500)}
    tiny = TRANSFORMERS[name]
    inputs = tiny.inputs(2, torch.Generator().manual_seed(0))
    return tiny.build(name), {**inputs, tiny.timestep: torch.full((2,), 500.0)}


QUICK = ("UNet2DConditionModel", "SD3Transformer2DModel", "SanaTransformer2DModel", "WanTransformer3DModel")


@pytest.mark.slow
@pytest.mark.parametrize("name", cells([*UNETS, *TRANSFORMERS], quick=lambda name: name in QUICK))
def test_equals_torchs_counter_on_tensors_without_storage(name: str) -> None:
    model, inputs = network(name)
    bare = skeleton(model)
    moved = tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, inputs)
    try:
        expected = torch_counts(lambda: bare(**moved))
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch cannot run it without storage: {error}")
    assert count_macs(lambda: bare(**moved)) == expected > 0


def test_equals_torchs_counter_on_real_tensors() -> None:
    model, inputs = network("UNet2DConditionModel")
    assert count_macs(lambda: model(**inputs)) == torch_counts(lambda: model(**inputs)) > 0


def test_what_is_worked_out_by_shape_has_torchs_shapes_and_kinds() -> None:
    a, b = torch.rand(2, 4, 6, 6, dtype=torch.bfloat16), torch.rand(4, 1, 1)
    seen = []

    def run(device: str) -> None:
        x, y = a.to(device), b.to(device)
        weight = torch.ones(4, device=device, dtype=torch.bfloat16)
        seen.append(
            [
                x + y, x * 2, x / y, torch.nn.functional.silu(x), x.softmax(-1), y.softmax(0, dtype=torch.float64),
                torch.nn.functional.group_norm(x, 2, weight, weight), torch.nn.functional.layer_norm(y, (1, 1)),
                x.flatten(2) @ x.flatten(2).mT, y.flatten() @ torch.ones(4, 3, device=device),
                x > 0, x + torch.tensor(1.0, dtype=torch.float64, device=device), y.add(y, alpha=2), x.clamp(0, 1),
            ]
        )  # fmt: skip

    count_macs(lambda: run("cpu"))
    count_macs(lambda: run("meta"))
    assert [(x.shape, x.dtype) for x in seen[0]] == [(x.shape, x.dtype) for x in seen[1]]
