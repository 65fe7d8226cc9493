"""What every method must do on every kind of network it works on (the table is in `method_cases.py`).

(a) reusing nothing is the plain network, bit for bit; (b) reuse equals a reference without our hooks; (c) contexts and
rows do not leak into each other; (d) every row may have its own timestep; (e) two runs in a row are equal; (f) attached
and detached again and again, nothing stays.
"""

from functools import cache
from typing import Any

import pytest
import torch
from cells import cells
from method_cases import CALLS, CASES, Case, reference
from tiny_networks import UNETS, network_inputs

from diffaccel.attach.handle import accelerate
from diffaccel.networks import UnsupportedModelError

# Every time each method runs on the network for pictures, and on one other: all of them have their turn.
PICTURES = {(case.name, "UNet2DConditionModel") for case in CASES}
OTHERS = {(case.name, case.on[1 + i % (len(case.on) - 1)]) for i, case in enumerate(CASES, 1)}
assert {name for _, name in OTHERS} == UNETS.keys() - {"UNet2DConditionModel"}


def table(quick: set[tuple[str, str]]) -> list[Any]:
    """Every method on every network that it works on."""
    values = [(case, name) for case in CASES for name in case.on]
    called = lambda value: f"{value[0].name}-{value[1]}"  # noqa: E731
    return cells(values, lambda value: (value[0].name, value[1]) in quick, called)


REFUSED = [(case, name) for case in CASES for name in UNETS if name not in case.on]


@cache
def network(name: str) -> Any:
    return UNETS[name]()


def samples(model: Any, rows: int = 2) -> list[torch.Tensor]:
    first = network_inputs(model, rows)["sample"]
    return [first * (1 - 0.15 * i) + 0.1 * i for i in range(CALLS)]


def run(model: Any, rows: slice = slice(None), timesteps: Any = None, seed: int = 0) -> list[torch.Tensor]:
    """Outputs of one run of network calls."""
    inputs = network_inputs(model, seed=seed)
    per_frame = inputs.get("encoder_hidden_states", torch.empty(2)).shape[0] // 2
    chosen = {}
    for key, value in inputs.items():
        k = per_frame if key == "encoder_hidden_states" else 1
        chosen[key] = value.unflatten(0, (2, k))[rows].flatten(0, 1)
    timesteps = torch.linspace(900, 100, CALLS) if timesteps is None else timesteps
    with torch.no_grad():
        calls = zip(timesteps, samples(model), strict=True)
        return [model(timestep=t, **{**chosen, "sample": sample[rows]}).sample for t, sample in calls]


@cache
def plain(name: str) -> list[torch.Tensor]:
    return run(network(name))


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("case", "name"), table(PICTURES))
def test_a_reusing_nothing_is_the_plain_network(case: Case, name: str) -> None:
    model = network(name)
    expected = plain(name)
    with accelerate(model, case.never):
        assert equal(run(model), expected)
    assert equal(run(model), expected)


@pytest.mark.parametrize(("case", "name"), table(OTHERS))
def test_b_reuse_equals_the_reference_and_e_two_runs_are_equal(case: Case, name: str) -> None:
    model = network(name)
    with accelerate(model, case.reuse) as handle:
        ours, again = run(model), run(model)
        assert handle.report().computed + handle.report().replayed == 2 * CALLS
    assert equal(ours, again)
    inputs = network_inputs(model)
    with reference(model, case) as tell, torch.no_grad():
        for i, (t, sample) in enumerate(zip(torch.linspace(900, 100, CALLS), samples(model), strict=True)):
            tell(i)
            expected = model(timestep=t, **{**inputs, "sample": sample}).sample
            torch.testing.assert_close(ours[i], expected, rtol=0, atol=1e-5)
    assert equal(ours, plain(name)) == (not case.replaced(model))


@pytest.mark.parametrize(("case", "name"), table(PICTURES))
def test_c_contexts_and_rows_do_not_leak(case: Case, name: str) -> None:
    model = network(name)
    with accelerate(model, case.reuse) as handle:
        alone = {name: run(model, seed=seed) for seed, name in enumerate(("cond", "uncond"))}
        for whole, row in zip(alone["cond"], run(model, slice(1, 2)), strict=True):
            torch.testing.assert_close(whole[1:], row, rtol=0, atol=1e-4)
        both = interleaved(model, handle)
        assert all(equal(alone[context], both[context]) for context in alone)


def interleaved(model: Any, handle: Any) -> dict[str, list[torch.Tensor]]:
    """Outputs of two contexts whose calls alternate."""
    inputs = {name: network_inputs(model, seed=seed) for seed, name in enumerate(("cond", "uncond"))}
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in inputs}
    handle.reset()
    with torch.no_grad():
        for t, sample in zip(torch.linspace(900, 100, CALLS), samples(model), strict=True):
            for name in outputs:
                with handle.forced(None, context=name):
                    outputs[name].append(model(timestep=t, **{**inputs[name], "sample": sample}).sample)
    return outputs


@pytest.mark.parametrize(("case", "name"), table(PICTURES))
def test_d_every_row_may_have_its_own_timestep(case: Case, name: str) -> None:
    model = network(name)
    timesteps = torch.stack([torch.linspace(900, 100, CALLS), torch.linspace(700, 200, CALLS)], dim=1)
    with accelerate(model, case.reuse):
        whole = run(model, timesteps=timesteps)
        second = run(model, slice(1, 2), timesteps=timesteps[:, 1])
    for output, row in zip(whole, second, strict=True):
        torch.testing.assert_close(output[1:], row, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("case", "name"), table(PICTURES))
def test_f_attaching_and_detaching_leaves_nothing(case: Case, name: str) -> None:
    model = network(name)
    before = [list(module.__dict__) for module in model.modules()]
    for _ in range(3):
        accelerate(model, case.reuse).detach()
    assert [list(module.__dict__) for module in model.modules()] == before


@pytest.mark.parametrize(("case", "name"), REFUSED, ids=lambda value: value if isinstance(value, str) else value.name)
def test_networks_without_the_part_are_refused(case: Case, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=name):
        accelerate(network(name), case.reuse)
