"""A small network among the fixed settings of a search: it is held against the others at its real cost."""

from typing import Any

import numpy as np
import pytest
from diffusers import UNet2DConditionModel

from diffaccel import NetworkSwitch, accelerate
from diffaccel.measure.workload import Workload
from diffaccel.methods.recipe import OUTPUT
from diffaccel.models import ModelError
from diffaccel.networks import layout_of
from diffaccel.tune import Tuner
from diffaccel.tune.baselines import FixedSettings
from diffaccel.tune.probing import Bench
from diffaccel.tune.space import Space

STEPS = 4


@pytest.fixture(scope="module")
def small(tiny_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a pipeline whose denoiser has half the layers."""
    folder = tmp_path_factory.mktemp("small")
    network = UNet2DConditionModel.from_config(tiny_pipe.unet.config, layers_per_block=1)
    type(tiny_pipe)(**{**tiny_pipe.components, "unet": network}, requires_safety_checker=False).save_pretrained(folder)
    return str(folder)


def fixed(pipe: Any, small: str | None) -> FixedSettings:
    workload = Workload(["a"], settings={"num_inference_steps": STEPS, "height": 16, "width": 16})
    space = Space(layout_of(pipe.unet), (), {OUTPUT: 1.0}, {OUTPUT: np.eye(STEPS)})
    return FixedSettings(pipe, Bench(pipe, workload, workload.pictures(pipe)), space, small=small)


def test_a_small_network_that_is_none_is_told_before_anything_runs(tiny_pipe: Any) -> None:
    with pytest.raises(ModelError, match="unknown model 'none-such'"):
        Tuner(tiny_pipe, ["a"], small="none-such", num_inference_steps=STEPS)
    with pytest.raises(ValueError, match="the small network does not fit"):
        Tuner(tiny_pipe, ["a"], small="emoji-sd-small", num_inference_steps=STEPS)


@pytest.mark.slow
def test_shares_of_its_calls_are_tried_and_judged_at_their_cost(tiny_pipe: Any, small: str) -> None:
    settings = fixed(tiny_pipe, small)
    switches = [method for method in settings._candidates(0.75) if isinstance(method, NetworkSwitch)]
    assert [method.until for method in switches] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert {method.small for method in switches} == {small}
    half = settings.run(switches[1])
    with accelerate(tiny_pipe, NetworkSwitch(small, until=0.4)) as handle:
        settings.bench.workload.pictures(tiny_pipe)
        assert half.score.macs == pytest.approx(1 - handle.report().macs_saved)
    assert settings.run(switches[-1]).score.macs < half.score.macs < 1
    assert settings.run(switches[-1]).score.psnr < 100


def test_without_a_small_network_none_is_tried(tiny_pipe: Any, small: str) -> None:
    assert not [m for m in fixed(tiny_pipe, None)._candidates(0.75) if isinstance(m, NetworkSwitch)]
    tuner = Tuner(tiny_pipe, ["a", "b", "c"], small=small, num_inference_steps=STEPS)
    assert tuner.small == small
