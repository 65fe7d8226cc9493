"""Hooks that others take off with their own, networks that are exchanged, and other caches: followed, or said aloud."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers import ControlNetModel, FirstBlockCacheConfig, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from diffusers.hooks import apply_first_block_cache
from diffusers.hooks.group_offloading import ModuleGroup
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from runtime_calls import EVERY_SECOND, dit, dit_inputs
from tiny_networks import generate, pipeline, sd_unet
from walk_unets import SMALL

from diffaccel.attach.handle import accelerate
from diffaccel.methods import BlockCache, ControlCache, DeepCache, DeltaCache, Method, Staged
from diffaccel.runtime.attachment import ActHook
from diffaccel.runtime.shared_hooks import SharedHooks

REUSE = DeepCache(interval=2, branch=0)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """With an offload that stays on the CPU."""

    def enable_model_cpu_offload(self: Any, **_: Any) -> None:
        super(StableDiffusionPipeline, self).enable_model_cpu_offload(device="cpu")

    monkeypatch.setattr(StableDiffusionPipeline, "enable_model_cpu_offload", enable_model_cpu_offload)
    return pipeline(sd_unet(**SMALL))


def reused(pipe: Any) -> torch.Tensor:
    with accelerate(pipe, REUSE):
        return generate(pipe, 4)


def lora(folder: Path) -> Path:
    torch.manual_seed(3)
    unet = sd_unet(**SMALL)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=16, init_lora_weights=False, target_modules=["to_q", "to_k"]))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder


@pytest.mark.slow
def test_a_lora_that_comes_and_goes_under_offload(pipe: Any, tmp_path: Path) -> None:
    folder, without = lora(tmp_path), reused(pipe)
    pipe.load_lora_weights(folder)
    expected = reused(pipe)
    pipe.unload_lora_weights()
    pipe.enable_model_cpu_offload()
    with accelerate(pipe, REUSE) as handle:
        assert torch.equal(generate(pipe, 4), without)
        pipe.load_lora_weights(folder)  # takes the hooks of offload off meanwhile, and all that lies on them
        assert torch.equal(generate(pipe, 4), expected)
        pipe.unload_lora_weights()
        pipe.remove_all_hooks()
        assert torch.equal(generate(pipe, 4), without)
        assert handle.report().replayed == 6
    assert not torch.equal(generate(pipe, 4), without)
    assert not {"_old_forward", "_hf_hook"} & vars(pipe.unet).keys()


ENDS = BlockCache(threshold=9.0, front=1, back=1)
GROUPS = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["offload first", "accelerate first"])
def test_a_lora_that_comes_and_goes_under_group_offload(pipe: Any, tmp_path: Path, first: bool) -> None:
    folder, plain, without = lora(tmp_path), generate(pipe, 4), reused(pipe)
    pipe.load_lora_weights(folder)
    expected = reused(pipe)
    pipe.unload_lora_weights()
    handle = None if first else accelerate(pipe, REUSE)
    pipe.unet.enable_group_offload(**GROUPS, offload_type="leaf_level")
    with handle or accelerate(pipe, REUSE) as handle:
        pipe.load_lora_weights(folder)  # takes the hooks of offload out from beneath ours, and puts them on above
        assert torch.equal(generate(pipe, 4), expected)
        pipe.unload_lora_weights()
        assert torch.equal(generate(pipe, 4), without)
        assert handle.report().replayed == 4
    assert torch.equal(generate(pipe, 4), plain)
    assert torch.equal(reused(pipe), without)


@torch.no_grad()
@pytest.mark.parametrize("method", [ENDS, DeltaCache(interval=2, blocks=3, gate=1), Staged((ENDS, ENDS), at=2)])
def test_blocks_that_run_find_the_weights_of_their_group(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = dit(), dit_inputs(0)
    calls = [{**inputs, "timestep": t} for t in (900, 800, 700, 600)]
    with accelerate(model, method):
        expected = [model(**call).sample for call in calls]
    present: set[torch.nn.Module] = set()
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: present.update(group.modules))
    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: present.difference_update(group.modules))
    model.enable_group_offload(**GROUPS, offload_type="block_level", num_blocks_per_group=2)
    ran = []
    for block in model.transformer_blocks:
        block.norm1.register_forward_pre_hook(lambda *_, block=block: ran.append(block in present))
    with accelerate(model, method) as handle:
        assert all(torch.equal(model(**call).sample, one) for call, one in zip(calls, expected, strict=True))
        assert handle.report().replayed > 0
    assert all(ran)
    assert not present


@pytest.mark.parametrize("bare", [False, True])
def test_offload_of_another_pipeline_on_the_same_network(pipe: Any, bare: bool) -> None:
    plain, expected = generate(pipe, 4), reused(pipe)
    other = pipeline(pipe.unet)
    other.enable_model_cpu_offload()
    with accelerate(pipe.unet if bare else pipe, REUSE) as handle:
        for one in (other, pipe, other):  # which puts its hooks on anew at the end
            assert torch.equal(generate(one, 4), expected)
        other.remove_all_hooks()
        assert torch.equal(generate(pipe, 4), expected)
        assert handle.report().replayed == 8
    assert torch.equal(generate(pipe, 4), plain)


def test_hooks_that_go_with_others_beneath_them(pipe: Any) -> None:
    plain, expected = generate(pipe, 4), reused(pipe)
    other = pipeline(pipe.unet)
    other.enable_model_cpu_offload()
    handle = accelerate(pipe, REUSE)
    assert torch.equal(generate(other, 4), expected)
    remove_hook_from_module(pipe.unet, recurse=True)
    for one in (pipe, other):
        with pytest.raises(RuntimeError, match="UNet2DConditionModel went with others that lay beneath them"):
            generate(one, 4)
    with pytest.raises(RuntimeError, match=r"nothing would be reused: detach\(\) the handle"):
        handle.report()
    handle.detach()
    assert torch.equal(generate(pipe, 4), plain)
    assert torch.equal(generate(other, 4), plain)
    assert torch.equal(reused(other), expected)


def test_a_copy_of_an_accelerated_pipeline_offloads_itself(pipe: Any) -> None:
    with accelerate(pipe, REUSE):
        copied = copy.copy(pipe)
        copied.enable_model_cpu_offload()
    assert copied._all_hooks
    assert not getattr(pipe, "_all_hooks", [])
    copied.remove_all_hooks()
    assert not hasattr(pipe.unet, "_hf_hook")


def test_two_handles_on_one_pipeline_follow_its_offload(pipe: Any) -> None:
    before, second = vars(StableDiffusionPipeline).copy(), sd_unet(**SMALL)
    pipe.register_modules(image_encoder=second)  # any other network of the pipeline will do
    handles = [accelerate(pipe.unet, REUSE), accelerate(second, REUSE)]
    pipe.enable_model_cpu_offload()
    for handle in handles:
        handle.report()
        handle.detach()
    pipe.remove_all_hooks()
    assert vars(StableDiffusionPipeline) == before


def test_a_replaced_controlnet(pipe: Any) -> None:
    nets = [ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8)) for _ in range(2)]
    parts = {**pipe.components, "requires_safety_checker": False}
    controlled = StableDiffusionControlNetPipeline(**parts, controlnet=nets[0])
    controlled.set_progress_bar_config(disable=True)
    with accelerate(controlled, ControlCache(interval=2)):
        controlled.controlnet = nets[1]
        with pytest.raises(RuntimeError, match=r"StableDiffusionControlNetPipeline\.controlnet was replaced"):
            generate(controlled, 2, image=torch.zeros(1, 3, 32, 32))


def test_a_cache_of_diffusers_that_a_function_put_on() -> None:
    model = dit()
    with accelerate(model, EVERY_SECOND) as handle:
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.5))
        with pytest.raises(RuntimeError, match="a cache of diffusers, whose hooks have names like 'fbc_"):
            handle.report()
        for module in model.modules():
            if hasattr(module, "_diffusers_hook"):
                module._diffusers_hook.remove_hook("fbc_leader_block_hook", recurse=False)
                module._diffusers_hook.remove_hook("fbc_block_hook", recurse=False)
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(RuntimeError, match="take them out of its HookRegistry, or load the network anew"):
        accelerate(model, EVERY_SECOND)


def test_tokens_on_several_devices_do_not_decide() -> None:
    model, several = dit(), SimpleNamespace(context_parallel_config=object())
    with accelerate(model, BlockCache()) as handle:
        model._parallel_config = several
        with pytest.raises(RuntimeError, match=r"lie on several devices \(enable_parallelism\), each of which would"):
            handle.report()
        model._parallel_config = None
    model._parallel_config = several
    with pytest.raises(RuntimeError, match="such as IntervalCache"):
        accelerate(model, BlockCache())
    accelerate(model, EVERY_SECOND).detach()


def test_streams_that_end_after_the_hooks_beneath_theirs() -> None:
    module, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    plain = module(x)
    add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    shared = SharedHooks({module: ActHook(())})
    remove_hook_from_module(module)
    shared.close()
    assert torch.equal(module(x), plain)
