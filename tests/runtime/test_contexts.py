"""Calls share features if their prompts, options and shapes do, and where they stand in their step."""

import pytest
import torch

from diffaccel.networks.inputs import Inputs
from diffaccel.runtime.contexts import KNOWN, Contexts, Numbers, Seen, fingerprint, options_of


def call(prompt: object, sample: torch.Tensor | None = None, **more: object) -> Inputs:
    values = {"sample": torch.zeros(2, 4) if sample is None else sample, "t": 1, "prompt": prompt, **more}
    return Inputs(values, ("sample", "t", "prompt"))


ONE, OTHER = torch.ones(2, 3), torch.zeros(2, 3)


def test_prompts_are_compared_by_value_and_kept_apart() -> None:
    contexts = Contexts()
    first = [contexts.of(call(p), None, 0) for p in (ONE, OTHER)]
    second = [contexts.of(call(p), None, 1) for p in (OTHER.clone(), ONE.clone())]
    assert first == second[::-1]
    assert first[0] != first[1]


def test_several_calls_with_one_prompt_in_a_step_are_views() -> None:
    contexts = Contexts()
    views = [[contexts.of(call(ONE), None, step) for _ in range(3)] for step in (0, 1)]
    assert views[0] == views[1]
    assert len(set(views[0])) == 3
    assert contexts.most == 3
    peeked = contexts.of(call(ONE), None, 2, peek=True)
    assert contexts.of(call(ONE), None, 2) == peeked == views[0][0]
    assert contexts.most == 1


def test_name_shape_and_skipped_blocks_tell_calls_apart() -> None:
    contexts = Contexts()
    calls = [
        (call(ONE), None),
        (call(ONE), "cond"),
        (call(ONE, torch.zeros(3, 4)), None),
        (call(ONE, torch.zeros(2, 4, dtype=torch.float16)), None),
        (call(ONE, skip_layers=[7, 8]), None),
        (call(ONE, kv_cache_mode="extract"), None),
        (call(ONE, kv_cache_mode="cached"), None),
    ]
    # each is the first of its step, so that not even where it stands tells it apart
    assert len({contexts.of(inputs, name, step) for step, (inputs, name) in enumerate(calls)}) == 7
    assert options_of(call(ONE, skip_layers=[7, 8], scale=[0.5], none=[])) == (("skip_layers", (7, 8)),)
    assert options_of(call(ONE, mode="cached", guidance=3.5)) == (("mode", "cached"),)


def test_constants_change_their_number_when_they_are_written_to() -> None:
    contexts, mask = Contexts(), torch.ones(2)
    first = contexts.constants(call(ONE, mask=mask))
    assert contexts.constants(call(ONE, mask=mask)) == first
    mask.add_(1)
    assert contexts.constants(call(ONE, mask=mask)) != first
    assert contexts.constants(call(ONE, mask=mask.clone())) != first


def test_rows_of_one_tensor_are_prompts_of_their_own() -> None:
    """Equal in shape, stride and storage: they begin elsewhere."""
    both = torch.stack([ONE, OTHER])
    assert Seen.of(both[0]).is_same(both[0])
    assert not Seen.of(both[0]).is_same(both[1])
    contexts = Contexts()
    assert contexts.prompt(call(both[0])) != contexts.prompt(call(both[1]))


def test_a_value_written_to_is_not_the_same() -> None:
    value = torch.ones(4)
    seen = Seen.of(value)
    assert seen.is_same(value)
    assert seen.is_same(value[:])  # another view of the same memory
    assert not seen.is_same(value[1:])
    assert not seen.is_same(value.clone())
    value.mul_(1)
    assert not seen.is_same(value)
    assert Seen.of(3).is_same(3)
    assert not Seen.of(3).is_same(3.0)
    with torch.inference_mode():
        held = torch.ones(2)
        seen = Seen.of(held)
        assert seen.is_same(held)
        held.add_(1)
        assert not seen.is_same(held)


@pytest.mark.parametrize("by_value", [True, False])
def test_old_values_are_forgotten(by_value: bool) -> None:
    numbers = Numbers(by_value=by_value)
    values = [torch.full((2,), float(i)) for i in range(KNOWN + 1)]
    assert [numbers.of([value]) for value in values] == list(range(KNOWN + 1))
    assert numbers.of([values[-1]]) == KNOWN
    assert numbers.of([values[0]]) == KNOWN + 1


def test_many_prompts_of_a_step_are_known_in_the_next_though_each_is_copied() -> None:
    """A dozen regions, each with a prompt of its own, whose embeddings are made anew in every call."""
    contexts = Contexts()
    prompts = [torch.full((2, 3), float(i)) for i in range(12)]
    steps = [[contexts.of(call(prompt.clone()), None, step) for prompt in prompts] for step in range(8)]
    assert len(set(steps[0])) == 12
    assert all(step == steps[0] for step in steps)


def test_fingerprints() -> None:
    x = torch.zeros(2, 3)
    assert fingerprint([x, (x,)]) == (fingerprint(x), (fingerprint(x),))
    assert fingerprint(None) == "NoneType"
