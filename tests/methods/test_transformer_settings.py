"""Settings of the caches for transformers: what is refused, what travels, what is measured, and what composes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, apply_first_block_cache
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from test_transformers import build, outputs, run_inputs
from tiny_networks import sd_unet
from tiny_transformers import TRANSFORMERS

from diffaccel.attach.calibrate import calibrate, relative_error
from diffaccel.attach.handle import accelerate
from diffaccel.methods import (
    BlockCache,
    CalibratedCache,
    Calibration,
    DeepCache,
    DeltaCache,
    EncoderPropagation,
    FeatureInheritance,
    IntervalCache,
    KindSteps,
    Method,
    TextKVCache,
)
from diffaccel.networks import UnsupportedModelError
from diffaccel.reuse.forecast import Taylor

PROFILE = Calibration("DiTTransformer2DModel", "0" * 16, 6, 0.1, (KindSteps("feed_forward", (0, 3)),))
METHODS = [
    BlockCache(front=2, back=1, threshold=0.1, warmup=3, max_consecutive=4, forecast=Taylor(2)),
    IntervalCache(interval=2, total=9, forecast=Taylor(1)),
    DeltaCache(interval=3, blocks=2, gate=4),
    CalibratedCache(PROFILE),
    CalibratedCache("calibration.json", Taylor(1)),
]


@pytest.fixture(scope="module")
def dit() -> Any:
    return build("DiTTransformer2DModel")


@pytest.fixture(scope="module")
def pipe() -> Any:
    tiny = TRANSFORMERS["DiTTransformer2DModel"]
    dit = replace(tiny, config={**tiny.config, "num_embeds_ada_norm": 1000}).build("DiTTransformer2DModel")
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    pipe = DiTPipeline(dit, vae, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe: Any, steps: int = 6) -> Any:
    generator = torch.Generator().manual_seed(0)
    return pipe(class_labels=[3], num_inference_steps=steps, generator=generator, output_type="np").images


@pytest.mark.parametrize("method", METHODS)
def test_methods_travel_as_dictionaries(method: Method) -> None:
    assert Method.from_dict(method.to_dict()) == method


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockCache(front=0), r"front must be an integer >= 1; got 0"),
        (lambda: BlockCache(back=-1), r"back must be an integer >= 0; got -1"),
        (lambda: BlockCache(threshold=math.nan), r"threshold must be a number in \[0.0, inf\); got nan"),
        (lambda: BlockCache(warmup=-1), r"warmup must be an integer >= 0; got -1"),
        (lambda: BlockCache(max_consecutive=-1), r"max_consecutive must be an integer >= 0; got -1"),
        (lambda: BlockCache(forecast=3), r"forecast must be a forecast \(aligned, newton, taylor\); got 3"),
        (lambda: IntervalCache(interval=0), r"interval must be an integer >= 1; got 0"),
        (lambda: IntervalCache(total=0), r"total must be an integer >= 1; got 0"),
        (lambda: DeltaCache(interval=0), r"interval must be an integer >= 1; got 0"),
        (lambda: DeltaCache(blocks=0), r"blocks must be an integer >= 1; got 0"),
        (lambda: DeltaCache(gate=0), r"gate must be an integer >= 1; got 0"),
        (lambda: CalibratedCache(""), r"calibration must be a path or a Calibration; got ''"),
        (lambda: Calibration("M", "0", 3, math.nan, PROFILE.kinds), r"alpha must be a number"),
        (lambda: Calibration("M", "0", 3, 0.1, PROFILE.kinds), r"feed_forward computes call 3 of 3"),
        (lambda: Calibration("M", "0", 3, 0.1, ()), r"at least one kind"),
    ],
)
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (BlockCache(front=4), r"front of DiTTransformer2DModel must be an integer in 1\.\.3; got 4"),
        (BlockCache(back=3), r"back of DiTTransformer2DModel with front=1 must be an integer in 0\.\.2; got 3"),
        (DeltaCache(blocks=5), r"blocks of DiTTransformer2DModel must be an integer in 1\.\.4; got 5"),
        (
            CalibratedCache(PROFILE),
            r"is of DiTTransformer2DModel with configuration 0{16}, and the network is",
        ),
    ],
)
def test_settings_that_do_not_fit_the_network(dit: Any, method: Method, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accelerate(dit, method)


@pytest.mark.parametrize("method", [BlockCache(), IntervalCache(), DeltaCache(), CalibratedCache(PROFILE)])
def test_unets_are_refused(method: Method) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{type(method).__name__} needs .*UNet2DConditionModel has none"):
        accelerate(sd_unet(), method)


@pytest.mark.parametrize("method", [DeepCache(), EncoderPropagation(), FeatureInheritance()])
def test_transformers_are_refused(dit: Any, method: Method) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{type(method).__name__} needs .*DiTTransformer2DModel has none"):
        accelerate(dit, method)


def test_what_a_bare_network_does_not_tell(dit: Any) -> None:
    call = run_inputs("DiTTransformer2DModel")[0] | {"timestep": 900}
    for method, message in ((IntervalCache(), r"IntervalCache\(\.\.\., total=50\)"), (DeltaCache(), "give gate=10")):
        with accelerate(dit, method) as handle:
            with pytest.raises(ValueError, match=message):
                dit(**call)
            assert handle.report().computed == 0


def test_in_a_pipeline(pipe: Any) -> None:
    plain = pictures(pipe)
    for method, computed in (
        (IntervalCache(interval=3), 3),
        (DeltaCache(), 4),
        (BlockCache(threshold=10.0, warmup=2), 2),
    ):
        with accelerate(pipe, method) as handle:
            first, again = pictures(pipe), pictures(pipe)
            assert (first == again).all()
            assert not (first == plain).all()
            assert handle.report().computed == 2 * computed, method
    assert (pictures(pipe) == plain).all()
    with accelerate(pipe, DeltaCache(gate=7)), pytest.raises(ValueError, match=r"gate must be in 1\.\.6.*got 7"):
        pictures(pipe)


def test_calibration_writes_a_calibration_that_its_method_loads(pipe: Any, tmp_path: Any) -> None:
    prompts = [{"class_labels": [1]}, {"class_labels": [2]}]
    strict = calibrate(pipe, prompts, 0.0, num_inference_steps=6, output_type="np")
    loose = calibrate(pipe, prompts, 1e9, tmp_path / "p.json", max_reuse=2, num_inference_steps=6, output_type="np")
    assert {item.steps for item in strict.kinds} == {(0, 1, 2, 3, 4, 5)}
    assert {item.steps for item in loose.kinds} == {(0, 3)}
    assert Calibration.load(tmp_path / "p.json") == loose
    plain = pictures(pipe)
    with accelerate(pipe, CalibratedCache(strict)):
        assert (pictures(pipe) == plain).all()
    with accelerate(pipe, CalibratedCache(str(tmp_path / "p.json"))) as handle:
        pictures(pipe)
        assert (handle.report().computed, handle.report().replayed) == (2, 4)
        with pytest.raises(ValueError, match=r"is for 6 network calls, and this run has 4: calibrate again"):
            pictures(pipe, steps=4)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"bad\.json is not a calibration"):
        accelerate(pipe, CalibratedCache(str(tmp_path / "bad.json")))


def test_calibration_refuses(pipe: Any) -> None:
    for arguments, message in ((([], 0.1), "at least one prompt"), ((["a"], -1.0), r"alpha must be a number")):
        with pytest.raises(ValueError, match=message):
            calibrate(pipe, *arguments)


def test_relative_error() -> None:
    assert float(relative_error(torch.tensor([2.0, -2.0]), torch.tensor([1.0, -2.0]))) == 0.25


def test_methods_that_compose_and_that_do_not() -> None:
    model, calls = build("PixArtTransformer2DModel"), run_inputs("PixArtTransformer2DModel")
    with accelerate(model, BlockCache(threshold=0.05)):
        alone = outputs(model, calls)
    with accelerate(model, BlockCache(threshold=0.05), TextKVCache()):
        for a, b in zip(outputs(model, calls), alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"BlockCache measures how much 'transformer_blocks\.0' changed, and Interval"):
        accelerate(model, BlockCache(), IntervalCache(total=6))
    with pytest.raises(ValueError, match=r"BlockCache and DeltaCache cannot work together: both claim"):
        accelerate(model, DeltaCache(), BlockCache())


def test_decides_as_the_first_block_cache_of_diffusers() -> None:
    """One row of a Flux network, at a threshold between the changes that occur."""
    model = build("FluxTransformer2DModel")
    calls = [
        {k: v[1:2].clone() if isinstance(v, torch.Tensor) and "ids" not in k else v for k, v in call.items()}
        for call in run_inputs("FluxTransformer2DModel")
    ]
    plain = outputs(model, calls)
    for threshold in (0.05, 0.3, 1.0):
        with accelerate(model, BlockCache(threshold=threshold)):
            ours = outputs(model, calls)
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=threshold))
        registry = HookRegistry.check_if_exists_or_initialize(model)
        _set_cache_context(model, CacheContext("only"))
        theirs = outputs(model, calls)
        _set_cache_context(model, None)
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            hooks = block._diffusers_hook
            for name in list(hooks.hooks):
                hooks.remove_hook(name, recurse=False)
        del registry
        computed = [[torch.equal(a, b) for a, b in zip(results, plain, strict=True)] for results in (ours, theirs)]
        assert computed[0] == computed[1]
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["magcache", "teacache"])
def test_curves_need_calls_to_compare(pipe: Any, method: str) -> None:
    with pytest.raises(ValueError, match="these runs have 1: give num_inference_steps=2 or more"):
        calibrate(pipe, [{"class_labels": [3]}], method=method, num_inference_steps=1, output_type="np")


def test_a_total_that_is_not_the_runs_is_refused(pipe: Any) -> None:
    with (
        accelerate(pipe, IntervalCache(total=50)),
        pytest.raises(ValueError, match=r"IntervalCache\(total=50\) is for"),
    ):
        pictures(pipe, 3)


def test_without_the_block_that_ends_a_range_all_is_computed() -> None:
    """Its residual is never stored, and what the other blocks add must not be lost with it."""
    model, calls = build("PixArtTransformer2DModel"), run_inputs("PixArtTransformer2DModel")
    with accelerate(model, BlockCache(threshold=9.0)) as handle:
        model.transformer_blocks = model.transformer_blocks[:-1]
        found = outputs(model, calls)
    assert all(torch.equal(a, b) for a, b in zip(found, outputs(model, calls), strict=True))
    assert (handle.report().computed, handle.report().replayed) == (len(calls), 0)
