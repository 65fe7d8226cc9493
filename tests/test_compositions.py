"""Caching together with what else people do to a pipeline: compiling, LoRA, offloading, casting, sharing components."""

from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from peft import LoraConfig
from test_cost import transformer
from tiny_networks import generate, pipeline, sd_unet
from torch._dynamo.testing import CompileCounter

from diffaccel.attach.handle import accelerate
from diffaccel.methods import (
    BlockCache,
    DeepCache,
    DeltaCache,
    FeatureInheritance,
    IntervalCache,
    ResidualGuidance,
    TextKVCache,
    TGate,
)

pytestmark = pytest.mark.exhaustive

REUSE = DeepCache(interval=3, branch=1)
NEVER = DeepCache(interval=1, branch=1)


@pytest.fixture
def pipe() -> Any:
    return pipeline(sd_unet(layers_per_block=1))


def reused(pipe: Any, **options: Any) -> torch.Tensor:
    with accelerate(pipe, REUSE):
        return generate(pipe, **options)


@pytest.fixture
def counter() -> Any:
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


def test_compiled_forward_has_no_breaks_and_at_most_three_graphs(pipe: Any, counter: CompileCounter) -> None:
    expected = reused(pipe)
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend=counter, fullgraph=True)
    compiled = pipe.unet.forward
    with accelerate(pipe, REUSE):
        pictures = [generate(pipe) for _ in range(3)]
    assert all(torch.equal(picture, expected) for picture in pictures)
    assert counter.frame_count <= 3
    assert pipe.unet.forward is compiled


def test_compiled_blocks(pipe: Any, counter: CompileCounter) -> None:
    expected = reused(pipe)
    pipe.unet.compile_repeated_blocks(backend=counter, fullgraph=True)
    with accelerate(pipe, REUSE):
        assert torch.equal(generate(pipe), expected)
    assert counter.frame_count <= 3


FLUX = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


@FLUX
@pytest.mark.parametrize(
    ("method", "graphs"),  # FLUX has two kinds of blocks
    [
        (DeltaCache(interval=3, gate=2), 3),
        (BlockCache(threshold=0.3, per_row=False), 3),
        (BlockCache(threshold=0.3), 8),  # rows that compute alone have shapes of their own
    ],
)
def test_compiled_blocks_of_a_transformer(method: Any, graphs: int, counter: CompileCounter) -> None:
    model, calls = transformer("FluxTransformer2DModel")
    with accelerate(model, method):
        expected = outputs(model, calls)
    model.compile_repeated_blocks(backend=counter, fullgraph=True)
    before = [dict(module.__dict__) for module in model.modules()]
    with accelerate(model, method) as handle:
        for ours, theirs in zip(outputs(model, calls), expected, strict=True):
            assert torch.equal(ours, theirs)
        assert handle.report().replayed > 0
    assert counter.frame_count <= graphs
    assert [dict(module.__dict__).keys() for module in model.modules()] == [x.keys() for x in before]
    assert all(
        module._compiled_call_impl is x.get("_compiled_call_impl")
        for module, x in zip(model.modules(), before, strict=True)
    )


@FLUX
def test_compiled_forward_of_a_transformer(counter: CompileCounter) -> None:
    model, calls = transformer("PixArtTransformer2DModel")
    method = IntervalCache(interval=3, total=len(calls))
    with accelerate(model, method):
        expected = outputs(model, calls)
    model.forward = torch.compile(model.forward, backend=counter, fullgraph=True)
    with accelerate(model, method):
        assert all(torch.equal(a, b) for a, b in zip(outputs(model, calls), expected, strict=True))
    assert counter.frame_count <= 3


@FLUX
def test_what_cannot_be_compiled_together_is_refused(pipe: Any, counter: CompileCounter) -> None:
    model, _ = transformer("FluxTransformer2DModel")
    forward = model.forward
    model.forward = torch.compile(forward, backend=counter)
    with pytest.raises(RuntimeError, match="a cache decides in the middle of it from a value on the device"):
        accelerate(model, BlockCache())
    del model.forward
    model.compile_repeated_blocks(backend=counter)
    with pytest.raises(RuntimeError, match=r"transformer_blocks\.0' was compiled as a block, and '"):
        accelerate(model, IntervalCache(total=6))
    pipe.unet.compile_repeated_blocks(backend=counter)
    with pytest.raises(RuntimeError, match=r"within it is to be replayed: compile the network's forward instead"):
        accelerate(pipe, TextKVCache())


def test_compiling_comes_before_accelerating(pipe: Any, counter: CompileCounter) -> None:
    with accelerate(pipe, TextKVCache()) as handle:
        expected = generate(pipe)
        pipe.unet.compile_repeated_blocks(backend=counter)
        for use in (lambda: generate(pipe), handle.report):
            with pytest.raises(
                RuntimeError, match=r"blocks\.\d.* was compiled after accelerate\(\), with our hooks in it"
            ):
                use()
    for module in pipe.unet.modules():
        module._compiled_call_impl = None
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend=counter)
    with accelerate(pipe, TextKVCache()):
        assert torch.equal(generate(pipe), expected)


def outputs(model: Any, calls: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(**call).sample for call in calls]


def add_lora(pipe: Any) -> None:
    torch.manual_seed(3)
    names = ["to_q", "to_k", "to_v"]
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=16, init_lora_weights=False, target_modules=names))


@pytest.mark.parametrize("methods", [(REUSE,), (TextKVCache(), NEVER), (FeatureInheritance("unit", depth=0),)])
def test_lora_before_and_after(pipe: Any, methods: Any) -> None:
    without = generate(pipe)
    with accelerate(pipe, *methods) as handle:
        add_lora(pipe)
        after = generate(pipe)
        handle.reset()
        assert torch.equal(generate(pipe), after)
    with accelerate(pipe, *methods):
        before = generate(pipe)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert not torch.allclose(after, without, atol=1e-3)


def test_layerwise_casting(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    plain = generate(pipe)
    with accelerate(pipe, NEVER):
        assert torch.equal(generate(pipe), plain)
    first = reused(pipe)
    assert torch.equal(first, reused(pipe))
    assert torch.equal(generate(pipe), plain)


def test_group_offload(pipe: Any) -> None:
    expected = reused(pipe)
    cpu = torch.device("cpu")
    pipe.unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    assert torch.equal(reused(pipe), expected)


def test_hooks_of_model_offload(pipe: Any) -> None:
    expected, plain = reused(pipe), generate(pipe)
    add_hook_to_module(pipe.unet, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    assert torch.equal(reused(pipe), expected)
    remove_hook_from_module(pipe.unet)
    assert torch.equal(generate(pipe), plain)


def test_model_offload_of_a_whole_pipeline(pipe: Any) -> None:
    expected, plain = reused(pipe), generate(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with accelerate(pipe, REUSE) as handle:
        for _ in range(2):  # at the end of a call the pipeline puts its hooks on anew
            assert torch.equal(generate(pipe), expected)
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(generate(pipe), expected)
        assert handle.report().replayed == 12
    assert torch.equal(generate(pipe), plain)
    pipe.remove_all_hooks()
    assert "enable_model_cpu_offload" not in vars(pipe)
    assert torch.equal(generate(pipe), plain)


def image_pipeline(pipe: Any, scheduler: Any) -> Any:
    other = StableDiffusionImg2ImgPipeline(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.mark.parametrize("own", [True, False], ids=["its own scheduler", "the same scheduler"])
def test_a_second_pipeline_on_the_same_network(pipe: Any, own: bool) -> None:
    other = image_pipeline(pipe, DDIMScheduler(steps_offset=1, clip_sample=False) if own else pipe.scheduler)
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    text = reused(pipe)
    with accelerate(other, REUSE):
        edited = generate(other, image=image, strength=0.7)
    with accelerate(pipe, REUSE):
        for _ in range(2):
            assert torch.equal(generate(pipe), text)
            assert torch.equal(generate(other, image=image, strength=0.7), edited)


def test_inference_mode(pipe: Any) -> None:
    methods = (REUSE, TextKVCache())
    with accelerate(pipe, *methods):
        expected = generate(pipe)
    with torch.inference_mode(), accelerate(pipe, *methods):
        assert torch.equal(generate(pipe), expected)
        assert torch.equal(generate(pipe), expected)


def test_half_precision(pipe: Any) -> None:
    pipe.to(torch.bfloat16)
    plain = generate(pipe)
    with accelerate(pipe, NEVER, TextKVCache()):
        assert torch.equal(generate(pipe), plain)


def test_four_methods_on_one_network(pipe: Any) -> None:
    methods = (DeepCache(interval=3), TGate(gate=4, self_interval=2), TextKVCache(), ResidualGuidance())
    with accelerate(pipe, *methods) as handle:
        pictures = [generate(pipe, steps=8, guidance_scale=1.3) for _ in range(2)]
        report = handle.report()
    assert torch.equal(*pictures)
    assert torch.isfinite(pictures[0]).all()
    assert report.macs_saved > 0.6
    lossless = (DeepCache(interval=1), TGate(gate=8, self_interval=1), TextKVCache())
    plain = generate(pipe, steps=8, guidance_scale=1.3)
    with accelerate(pipe, *lossless):
        assert torch.equal(generate(pipe, steps=8, guidance_scale=1.3), plain)


def test_a_changed_prompt_reaches_modules_that_a_replay_skipped(pipe: Any) -> None:
    unet = pipe.unet
    sample, prompts = torch.randn(1, 4, 16, 16), [torch.randn(1, 7, 16) for _ in range(2)]
    order = (0, 0, 0, 1, 1, 1, 1)  # the prompt changes in a call that replays, where deep projections do not run
    outputs = []
    for methods in ((DeepCache(interval=4),), (DeepCache(interval=4), TextKVCache())):
        with accelerate(unet, *methods), torch.no_grad():
            outputs.append([unet(sample, 900 - 100 * i, prompts[k]).sample for i, k in enumerate((*order, 1))])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
