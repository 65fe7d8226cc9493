"""Networks that predict several things at once, such as a video and its sound: all of them, or a refusal."""

from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput
from runtime_calls import AnyTimestep, dit, dit_inputs

from diffaccel.attach.handle import accelerate
from diffaccel.methods import BlockCache, EasyCache, TGate
from diffaccel.networks import UnsupportedModelError
from diffaccel.runtime.wrapper import require_one


class Both(BaseOutput):
    sample: torch.Tensor
    sound: torch.Tensor
    words: Any = None


class Sounding(AnyTimestep):
    """The second prediction, ``(rows, h, w)``, follows from the first."""

    def forward(
        self, hidden_states: Any, encoder_hidden_states: Any, timestep: Any, return_dict: bool = True, **more: Any
    ) -> Any:
        sample = super().forward(hidden_states, encoder_hidden_states, timestep, **more).sample
        both = Both(sample=sample, sound=2 * sample[:, 0], words="no tensor")
        return both if return_dict else tuple(both.values())


def sounding() -> Any:
    model = dit()
    model.__class__ = Sounding
    return model


def together(output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(output.values())[:2] if isinstance(output, Both) else output[:2]


@torch.no_grad()
@pytest.mark.parametrize("return_dict", [True, False])
def test_rows_that_decide_apart(return_dict: bool) -> None:
    model, inputs = sounding(), dit_inputs(0, rows=3)
    with accelerate(model, BlockCache(threshold=0.02)) as handle:
        for step in range(4):
            noise = torch.randn(inputs["hidden_states"].shape, generator=torch.Generator().manual_seed(step))
            noise[0] *= 0.0  # the first row stays, and reuses
            moved = {**inputs, "hidden_states": inputs["hidden_states"] + noise}
            sample, sound = together(model(**moved, timestep=900 - step, return_dict=return_dict))
            assert torch.equal(sound, 2 * sample[:, 0])
        assert handle.report().replayed > 0


@torch.no_grad()
def test_the_halves_of_guidance() -> None:
    model, inputs = sounding(), dit_inputs(0)
    with accelerate(model, TGate(gate=2, self_interval=1), guided=True):
        for step in range(4):
            sample, sound = together(model(**inputs, timestep=900 - step, return_dict=False))
            assert torch.equal(sound, 2 * sample[:, 0])
    assert torch.equal(sample[0], sample[1])


@torch.no_grad()
def test_what_would_answer_with_one_of_them_is_refused() -> None:
    model = sounding()
    told = pytest.raises(UnsupportedModelError, match=r"EasyCache answers .* this network makes several, of shapes")
    with accelerate(model, EasyCache(threshold=0.1)), told:
        model(**dit_inputs(0), timestep=900)
    require_one((torch.zeros(2, 4, 8, 8), torch.ones(2, 5)), "ResidualGuidance")  # beside a mask of tokens
    require_one(torch.zeros(2, 4, 8, 8), "Profile")
