"""What people do to a pipeline - adapters, offloading, slices and tiles - works on the custom ones, reusing or not."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook
from cells import cells
from diffusers import StableDiffusionPipeline
from diffusers.models.embeddings import ImageProjection
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from stock_cases import CASES, Case

from diffaccel import DeepCache, accelerate
from diffaccel.methods import Method
from diffaccel.methods.spelled import as_methods

NAMES = {case.name: case for case in CASES}
WITH_UNETS = [NAMES[name] for name in ("sd", "sdxl", "sd-image", "sd-inpaint", "sd-control", "animatediff")]
OFFLOADED = [
    NAMES[name] for name in ("sd", "sdxl", "sd-control", "sd-image", "sd-inpaint", "pixart", "animatediff", "svd")
]
OFFLOADING = [
    *(("enable_model_cpu_offload", case) for case in OFFLOADED),
    *(("enable_sequential_cpu_offload", case) for case in OFFLOADED if case.name.startswith("sd")),
]
EMBEDDED = 8  # features of an image embedding


def test_a_misspelt_argument_is_refused() -> None:
    pipe = NAMES["sd"].custom.from_pipe(NAMES["sd"].build())
    for name, meant in (("cahe", "cache"), ("guidance_sclae", "guidance_scale")):
        words = rf"StableDiffusionPipeline has no argument '{name}' \(did you mean {meant}\?\): it has cache, "
        with pytest.raises(TypeError, match=words):
            pipe("a cat", **{name: 2})
    with pytest.raises(TypeError, match="has no argument 'xyzzy': it has cache, "):
        pipe("a cat", xyzzy=2)


def some(cases: Iterable[Case]) -> list[Any]:
    """Parameters, of which only the plain pipeline's belong to the quick tests."""
    return cells(cases, quick=lambda case: case is NAMES["sd"], name=lambda case: case.name)


def seeds() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(2)]


def reused(case: Case, stock: Any, **options: Any) -> torch.Tensor:
    """What `accelerate` makes of the stock pipeline."""
    with accelerate(stock, Method.from_dict(case.cache)):
        return case.run(stock, **options)


def same(case: Case, stock: Any, custom: Any, **options: Any) -> torch.Tensor:
    """The stock pipeline's output, which the custom one gives too, plainly and with reuse by argument and by switch."""
    plain, expected = case.run(stock, **options), reused(case, stock, **options)
    assert torch.equal(case.run(custom, **options), plain)
    assert torch.equal(case.run(custom, cache=case.cache, **options), expected)
    custom.enable_feature_cache(case.cache)
    for _ in range(2):
        assert torch.equal(case.run(custom, **options), expected)
    custom.disable_feature_cache()
    assert torch.equal(case.run(custom, **options), plain)
    return plain


def lora(unet: Any, folder: Path) -> Path:
    """LoRA weights for a UNet, in the layout of Stable Diffusion, as safetensors."""
    torch.manual_seed(1)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=16, init_lora_weights=False, target_modules=["to_q", "to_v"]), "made")
    layers = get_peft_model_state_dict(unet, adapter_name="made")
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    unet.delete_adapters("made")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", some(NAMES[name] for name in ("sd", "sdxl", "sd-image", "sd-inpaint")))
def test_lora(case: Case, tmp_path: Path) -> None:
    stock = case.build()
    plain = case.run(stock)
    folder = lora(stock.unet, tmp_path)
    custom = case.custom.from_pipe(stock)
    custom.load_lora_weights(folder)
    loaded = same(case, stock, custom)
    assert not torch.equal(loaded, plain)
    custom.fuse_lora()
    torch.testing.assert_close(same(case, stock, custom), loaded, atol=1e-2, rtol=0)
    custom.unfuse_lora()
    custom.unload_lora_weights()
    torch.testing.assert_close(case.run(custom), plain, atol=1e-3, rtol=0)


def test_lora_comes_and_goes_while_a_cache_is_enabled(tmp_path: Path) -> None:
    case = NAMES["sd"]
    stock = case.build()
    custom = case.custom.from_pipe(stock)
    folder = lora(stock.unet, tmp_path)
    plain = reused(case, stock)
    custom.enable_feature_cache(case.cache)
    custom.load_lora_weights(folder)
    changed = case.run(custom)
    assert not torch.equal(changed, plain)
    custom.unload_lora_weights()
    assert torch.equal(case.run(custom), plain)
    custom.disable_feature_cache()


def ip_adapter(unet: Any, folder: Path) -> Path:
    """Weights of an IP-Adapter for a UNet, as safetensors."""
    torch.manual_seed(2)
    width = unet.config.cross_attention_dim
    projection = ImageProjection(cross_attention_dim=width, image_embed_dim=EMBEDDED, num_image_text_embeds=4)
    weights = {
        "image_proj.proj.weight": projection.image_embeds.weight,
        "image_proj.proj.bias": projection.image_embeds.bias,
        "image_proj.norm.weight": projection.norm.weight,
        "image_proj.norm.bias": projection.norm.bias,
    }
    attentions = [name for name in unet.attn_processors if name.endswith("attn2.processor") and "motion" not in name]
    for i, name in enumerate(attentions):
        inner = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        weights |= {f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight": torch.randn(inner, width) for part in "kv"}
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, folder / "ip.safetensors")
    return folder


@pytest.mark.parametrize("case", some(WITH_UNETS))
def test_ip_adapter(case: Case, tmp_path: Path) -> None:
    stock = case.build()
    plain = case.run(stock)
    custom = case.custom.from_pipe(stock)
    folder = ip_adapter(stock.unet, tmp_path)
    custom.load_ip_adapter(str(folder), subfolder="", weight_name="ip.safetensors", image_encoder_folder=None)
    custom.set_ip_adapter_scale(0.8)
    chance = torch.Generator().manual_seed(4)
    embeddings = torch.stack([torch.zeros(1, EMBEDDED), torch.randn(1, EMBEDDED, generator=chance)])
    shown = same(case, stock, custom, ip_adapter_image_embeds=[embeddings])
    assert not torch.equal(shown, plain)
    custom.unload_ip_adapter()
    assert torch.equal(case.run(custom), plain)


def test_an_ip_adapter_that_comes_between_calls_is_counted(tmp_path: Path) -> None:
    case = NAMES["sd"]
    pipe = case.build()
    embeddings = torch.ones(2, 1, EMBEDDED)
    with accelerate(pipe, DeepCache(2)) as handle:
        case.run(pipe)
        plain = handle.report().macs_plain
    with accelerate(pipe, DeepCache(2)) as handle:
        case.run(pipe)
        folder = ip_adapter(pipe.unet, tmp_path)
        pipe.load_ip_adapter(str(folder), subfolder="", weight_name="ip.safetensors", image_encoder_folder=None)
        assert "was changed since these calls" in str(handle.report())
        case.run(pipe, ip_adapter_image_embeds=[embeddings])
        assert handle.report().macs_plain > 2 * plain


def without_moving(model: torch.nn.Module, device: torch.device, **_: Any) -> None:
    """The hooks of accelerate's `cpu_offload`, which fails at moving weights from the CPU to the CPU."""
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True), append=True)
    attach_align_device_hook(model, execution_device=device, offload=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "case"),
    cells(OFFLOADING, quick=lambda cell: cell[1] is NAMES["sd"], name=lambda cell: f"{cell[0]}-{cell[1].name}"),
)
def test_offload(kind: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = case.build()
    custom = case.custom.from_pipe(stock)
    plain, expected = case.run(stock), reused(case, stock)
    monkeypatch.setattr("accelerate.cpu_offload", without_moving)
    getattr(custom, kind)(device="cpu")
    assert torch.equal(case.run(custom), plain)
    assert torch.equal(case.run(custom, cache=case.cache), expected)
    assert torch.equal(case.run(custom), plain)
    if "sequential" in kind:
        return
    custom.enable_feature_cache(case.cache)
    getattr(custom, kind)(device="cpu")
    for _ in range(3):
        assert torch.equal(case.run(custom), expected)
    assert custom.report().replayed > 0
    custom.disable_feature_cache()
    assert torch.equal(case.run(custom), plain)


@pytest.mark.slow
@pytest.mark.parametrize("case", some(NAMES[name] for name in ("sd", "sdxl", "sd-image")))
@pytest.mark.parametrize("change", ["enable_slicing", "enable_tiling"])
def test_slices_and_tiles(case: Case, change: str) -> None:
    stock = case.build()
    custom = case.custom.from_pipe(stock)
    whole = case.run(stock, num_images_per_prompt=2, generator=seeds())
    stock.vae.tile_sample_min_size, stock.vae.tile_latent_min_size = 16, 4
    getattr(custom.vae, change)()
    changed = case.run(custom, num_images_per_prompt=2, generator=seeds())
    assert torch.equal(changed, case.run(stock, num_images_per_prompt=2, generator=seeds()))
    if change == "enable_slicing":
        torch.testing.assert_close(changed, whole, atol=1e-4, rtol=0)
    with accelerate(stock, Method.from_dict(case.cache)):
        expected = case.run(stock, num_images_per_prompt=2, generator=seeds())
    assert torch.equal(case.run(custom, cache=case.cache, num_images_per_prompt=2, generator=seeds()), expected)


@pytest.mark.slow
def test_guidance_and_gate_in_every_notation() -> None:
    case = NAMES["sd"]
    custom = case.custom.from_pipe(case.build())
    results = [
        case.run(custom, guidance=value)
        for value in ("one-time", "residualguidance", {"type": "residualguidance", "negative": "one-time"})
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], case.run(custom, guidance="self"))
    assert torch.equal(case.run(custom, guidance="full"), case.run(custom))
    gated = [case.run(custom, gate=value) for value in (2, "tgate:gate=2", {"type": "tgate", "gate": 2})]
    assert torch.equal(gated[0], gated[1])
    assert torch.equal(gated[0], gated[2])
    assert not torch.equal(gated[0], case.run(custom))


def test_text_joins_methods_with_plus_signs() -> None:
    assert as_methods("deepcache:interval=2 + textkvcache") == as_methods(["deepcache:interval=2", "textkvcache"])
    assert as_methods("none") == as_methods() == ()


def test_guidance_that_is_not_known_is_named_with_those_that_are() -> None:
    with pytest.raises(
        ValueError, match=r"unknown guidance 'sef' \(did you mean self\?\): choose from 'full', 'one-time', 'self', or"
    ):
        as_methods(guidance="sef")


@pytest.mark.parametrize("gate", ["x", "10", 2.5, "deepcache"])
def test_a_gate_that_is_no_call_is_told_what_one_is(gate: Any) -> None:
    with pytest.raises(ValueError, match=rf"gate must be an integer >= 1; got {gate!r}"):
        as_methods(gate=gate)
