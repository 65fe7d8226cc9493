"""Attaching, detaching, and what is said when it cannot be done."""

import copy
import pickle
from typing import Any

import pytest
import torch
from cells import cells
from diffusers import AutoencoderTiny
from diffusers.hooks import HookRegistry, ModelHook
from tiny_networks import LIGHT, generate, picture_unet, pipeline, sd_unet, sdxl_unet, unet_inputs

from diffaccel.attach.handle import accelerate
from diffaccel.methods import DeepCache, EasyCache, FeatureInheritance
from diffaccel.networks import UnsupportedModelError


@pytest.fixture(scope="module")
def unet() -> Any:
    return sd_unet(**LIGHT)


def attributes(model: torch.nn.Module) -> list[list[str]]:
    return [list(module.__dict__) for module in model.modules()]


def output(unet: Any) -> torch.Tensor:
    with torch.no_grad():
        return unet(**unet_inputs(unet), timestep=500).sample


@pytest.mark.slow
def test_attach_and_detach_twenty_times_leaves_nothing(unet: Any) -> None:
    pipe = pipeline(unet)
    before, plain = attributes(unet), output(unet)
    for _ in range(20):
        handle = accelerate(pipe, DeepCache(interval=2, branch=1))
        output(unet)
        handle.detach()
        handle.detach()
        assert attributes(unet) == before
    assert torch.equal(output(unet), plain)
    assert "forward" not in unet.__dict__


def test_a_failure_while_attaching_leaves_nothing(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = attributes(unet)
    with monkeypatch.context() as patch:
        patch.setattr(type(unet.mid_block), "__setattr__", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            accelerate(unet, DeepCache())
    assert attributes(unet) == before


def test_hooks_of_others_stay(unet: Any) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(unet.mid_block)
    registry.register_hook(ModelHook(), "theirs")
    with accelerate(unet, DeepCache(interval=2)):
        output(unet)
    assert registry.hooks.keys() == {"theirs"}
    registry.remove_hook("theirs")
    del unet.mid_block._diffusers_hook, unet.mid_block.forward


class Standing(ModelHook):
    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn_ref.original_forward(*args, **kwargs)


def test_a_hook_put_on_top_blocks_detaching(unet: Any) -> None:
    handle = accelerate(unet, DeepCache())
    registry = HookRegistry.check_if_exists_or_initialize(unet.mid_block)
    registry.register_hook(Standing(), "theirs")
    with pytest.raises(RuntimeError, match=r"hook 'theirs' was put on module 'mid_block' afterwards; remove it first"):
        handle.detach()
    output(unet)
    registry.remove_hook("theirs")
    handle.detach()
    assert "_diffusers_hook" not in unet.mid_block.__dict__


class Counting(ModelHook):
    calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


def test_hooks_that_come_and_go_around_ours(unet: Any) -> None:
    plain = output(unet)
    below, above = Counting(), Counting()
    registry = HookRegistry.check_if_exists_or_initialize(unet.mid_block)
    registry.register_hook(below, "below")
    handle = accelerate(unet, DeepCache(interval=2))
    registry.register_hook(above, "above")
    output(unet)
    registry.remove_hook("below")  # diffusers would leave the hook above it, which is ours, without effect
    handle.reset()
    with torch.no_grad():
        [unet(**unet_inputs(unet), timestep=t) for t in (900, 600)]
    assert (below.calls, above.calls) == (1, 3)
    assert (handle.report().computed, handle.report().replayed) == (2, 1)
    handle.detach()
    assert torch.equal(output(unet), plain)
    assert (below.calls, above.calls) == (1, 4)
    registry.remove_hook("above")
    assert torch.equal(output(unet), plain)
    del unet.mid_block._diffusers_hook, unet.mid_block.forward


def test_a_replaced_forward_blocks_detaching(unet: Any) -> None:
    handle = accelerate(unet, DeepCache())
    ours, unet.forward = unet.forward, lambda *args, **kwargs: None
    with pytest.raises(RuntimeError, match="forward of the denoiser was replaced"):
        handle.detach()
    unet.forward = ours
    handle.detach()


def blocks(unet: Any) -> list[Any]:
    return [module for module in unet.modules() if hasattr(module, "set_chunk_feed_forward") and module is not unet]


def test_a_module_that_runs_several_times_in_a_call(unet: Any) -> None:
    """Forward chunking had the last chunk stand for all."""
    for block in blocks(unet):
        block.set_chunk_feed_forward(1, 1)
    with (
        accelerate(unet, FeatureInheritance(level="unit")),
        pytest.raises(RuntimeError, match="runs several times in one network call"),
    ):
        output(unet)
    for block in blocks(unet):
        block.set_chunk_feed_forward(None, 0)
    with accelerate(unet, FeatureInheritance(level="unit")):
        output(unet)


def test_a_part_that_was_replaced(unet: Any) -> None:
    pipe, block = pipeline(unet), blocks(unet)[-1]
    with accelerate(pipe, FeatureInheritance(level="unit")) as handle:
        own, block.ff = block.ff, torch.nn.Identity()
        with pytest.raises(RuntimeError, match=r"ff of UNet2DConditionModel was replaced after accelerate\(\)"):
            generate(pipe)
        with pytest.raises(RuntimeError, match="was replaced"):
            handle.report()
        block.ff = own
        assert handle.report().computed == 0


def test_accelerating_twice(unet: Any) -> None:
    with (
        accelerate(unet, DeepCache()),
        pytest.raises(RuntimeError, match=r"accelerated already: call detach\(\)"),
    ):
        accelerate(pipeline(unet), DeepCache())


def test_two_methods_on_one_module(unet: Any) -> None:
    with pytest.raises(ValueError, match="DeepCache and DeepCache cannot work together: both claim"):
        accelerate(unet, DeepCache(), DeepCache(branch=1))


def test_a_method_around_whole_calls_is_given_once(unet: Any) -> None:
    with pytest.raises(ValueError, match="EasyCache is given twice: give it once"):
        accelerate(unet, EasyCache(0.05), EasyCache(0.1))


@pytest.mark.parametrize(
    ("target", "methods", "error", "message"),
    [
        ("unet", (), ValueError, "at least one method"),
        ("unet", ("deepcache",), TypeError, r"'deepcache' is not a method: .*methods.parse.*methods are .*deepcache"),
        ("unet", (DeepCache,), TypeError, r"DeepCache'> is not a method yet: give an object, as DeepCache\(\);"),
        (
            "unet",
            ([DeepCache()],),
            TypeError,
            r"is not a method: give several one by one, as accelerate\(pipe, one, other",
        ),
        ("vae", (DeepCache(),), UnsupportedModelError, r"AutoencoderTiny is not a supported denoiser.*UNet2DCond"),
        ("none", (DeepCache(),), TypeError, "takes a diffusers pipeline or a denoiser; got int"),
    ],
)
def test_bad_input(unet: Any, target: str, methods: Any, error: type[Exception], message: str) -> None:
    targets = {"unet": unet, "vae": AutoencoderTiny(), "none": 3}
    with pytest.raises(error, match=message):
        accelerate(targets[target], *methods)


@pytest.mark.slow
def test_a_network_compiled_as_a_whole_is_refused(unet: Any) -> None:
    compiled = torch.compile(unet)
    pipe = pipeline(unet)
    pipe.unet = compiled
    for target in (pipe, compiled):
        with pytest.raises(RuntimeError, match=r"unet.forward = torch.compile\(unet.forward, fullgraph=True\)"):
            accelerate(target, DeepCache())


@pytest.mark.parametrize(
    "build", cells([picture_unet, sdxl_unet], lambda build: build is picture_unet, lambda build: build.__name__)
)
def test_report_counts_what_ran(build: Any) -> None:
    unet = build()
    pipe = pipeline(unet)
    with accelerate(pipe, DeepCache(interval=3)) as handle:
        generate(pipe)
        report = handle.report()
        generate(pipe)
    assert (report.computed, report.replayed) == (2, 4)
    assert report.methods == {"DeepCache": (2, 4)}
    assert report.cache_bytes == 0
    assert report.macs_plain == 6 * measured(unet)
    assert 0.2 < report.macs_saved < 0.7
    assert report.ceiling == pytest.approx(1 / (1 - report.macs_saved))
    assert str(report).startswith("6 network calls: 2 computed, 4 replayed\n")
    assert report.to_dict()["methods"] == {"DeepCache": {"computed": 2, "replayed": 4}}


def test_report_counts_the_executed_calls(unet: Any) -> None:
    from diffaccel.attach.macs import count_macs

    inputs = unet_inputs(unet)
    with accelerate(unet, DeepCache(interval=2, branch=3)) as handle:
        executed = [count_macs(lambda: unet(**inputs, timestep=500)) for _ in range(2)]
        assert handle.report().macs == sum(executed)
        assert handle.report().macs_plain == 2 * executed[0]


def measured(unet: Any) -> int:
    from diffaccel.attach.macs import count_macs

    return count_macs(lambda: unet(**unet_inputs(unet), timestep=500))


def test_what_carries_hooks_is_not_copied(unet: Any) -> None:
    pipe = pipeline(unet)
    with accelerate(pipe, DeepCache()):
        for copied in (copy.deepcopy, pickle.dumps):
            for what in (pipe, unet, unet.mid_block):
                with pytest.raises(RuntimeError, match=r"cannot be copied or pickled: call detach\(\) on its handle"):
                    copied(what)
    assert torch.equal(output(copy.deepcopy(unet)), output(unet))
