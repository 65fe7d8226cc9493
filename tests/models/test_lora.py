"""LoRAs in every spelling change a network alike, and what does not fit is refused in a line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffaccel import models
from diffaccel.models import Lora, ModelError, parse_loras, write_loras
from diffaccel.models.lora import merge_loras, without_misfits
from diffaccel.models.lora_file import read_parts

ALPHA, RANK = 6.0, 4
MODULES = {
    "unet": [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k",
    ],
    "text_encoder": ["text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1"],
}


def network(pipe: StableDiffusionPipeline, component: str, module: str) -> Any:
    part = getattr(pipe, component)
    return part.get_submodule(module if hasattr(part, "text_model") else module.removeprefix("text_model."))


@pytest.fixture(scope="module")
def factors(tiny_sd: Path) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    pipe, random = models.load(tiny_sd), torch.Generator().manual_seed(0)
    return {
        (component, module): (
            torch.randn(RANK, network(pipe, component, module).in_features, generator=random) / 8,
            torch.randn(network(pipe, component, module).out_features, RANK, generator=random) / 8,
        )
        for component, names in MODULES.items()
        for module in names
    }


def kohya(component: str, module: str) -> str:
    return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component] + module.replace(".", "_")


def write(factors: Any, spelling: str, folder: Path) -> Path:
    """A file of these factors in one of the spellings, its scale `ALPHA / RANK`."""
    tensors, metadata = {}, None
    for (component, module), (down, up) in factors.items():
        if spelling == "kohya":
            name = kohya(component, module)
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
        elif spelling == "diffusers":
            tensors |= {f"{component}.{module}.lora_A.weight": down, f"{component}.{module}.lora_B.weight": up}
            values = {f"{part}.{key}": value for part in MODULES for key, value in (("r", RANK), ("lora_alpha", ALPHA))}
            metadata = {"lora_adapter_metadata": json.dumps(values)}
        elif component == "unet":
            name = f"base_model.model.{module}"
            tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    path = folder / f"{spelling}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def test_a_file_that_is_cut_short_is_told(tiny_sd: Path, tiny_lora: Path, tmp_path: Path) -> None:
    whole = next(tiny_lora.glob("*.safetensors")) if tiny_lora.is_dir() else tiny_lora
    files = {
        "cut.safetensors": (whole.read_bytes()[:-40], "is cut short: it has"),
        "page.safetensors": (b"<html>not found</html>", "is damaged: its header claims"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "git lfs pull"),
        "old.ckpt": (b"x", "is pickled"),
    }
    pipe = models.load(tiny_sd, device="cpu")
    for name, (data, words) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(models.ModelError, match=words):
            models.load_lora(pipe, tmp_path / name)


def test_loha_of_a_convolution_and_torn_factors(tiny_sd: Path, tmp_path: Path) -> None:
    pipe = models.load(tiny_sd, device="cpu")
    name, target = "lora_unet_mid_block_resnets_0_conv1", pipe.unet.mid_block.resnets[0].conv1
    out, kernel = target.weight.shape[0], target.weight[0].numel()
    torch.manual_seed(0)
    a, b, c, d = (torch.randn(shape) for shape in ((out, 2), (2, kernel), (out, 2), (2, kernel)))
    parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(2.0)}
    save_file({f"{name}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "loha.safetensors")
    expected = target.weight + ((a @ b) * (c @ d)).reshape(target.weight.shape)
    models.load_lora(pipe, tmp_path / "loha.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.allclose(pipe.unet.mid_block.resnets[0].conv1.weight, expected, atol=1e-4)
    query = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    torn = {f"{query}.lora_down.weight": torch.ones(2, 64), f"{query}.lora_up.weight": torch.ones(64, 3)}
    save_file(torn, tmp_path / "torn.safetensors")
    with pytest.raises(models.ModelError, match="have different ranks"):
        models.load_lora(pipe, tmp_path / "torn.safetensors")


def test_parts_for_the_text_encoder_alone_are_no_fit(tiny_sd: Path, tmp_path: Path) -> None:
    pipe = models.load(tiny_sd, device="cpu")
    width = pipe.text_encoder.config.hidden_size
    query = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {}
    for name, size in ((query, 320), (text, width)):
        tensors |= {f"{name}.lora_down.weight": torch.ones(2, size), f"{name}.lora_up.weight": torch.ones(size, 2)}
    save_file(tensors, tmp_path / "other.safetensors")
    for partial in (False, True):
        with pytest.raises(models.ModelError, match="does not fit: made for a network of width 320"):
            models.load_lora(pipe, tmp_path / "other.safetensors", partial=partial)


def answer(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return pipe("a cat", num_inference_steps=2, generator=generator, output_type="latent").images


def changed(tiny_sd: Path, deltas: dict[tuple[str, str], torch.Tensor]) -> torch.Tensor:
    """The answer of the model with these changes in its weights."""
    pipe = models.load(tiny_sd)
    for place, delta in deltas.items():
        network(pipe, *place).weight.data += delta
    return answer(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["kohya", "diffusers", "peft"])
def test_every_spelling_is_the_same_change_of_weights(
    tiny_sd: Path, factors: Any, spelling: str, tmp_path: Path
) -> None:
    path = write(factors, spelling, tmp_path)
    pipe = models.load(tiny_sd)
    plain = answer(pipe)
    models.load_lora(pipe, f"{path}=0.5")
    deltas = {
        place: 0.5 * ALPHA / RANK * up @ down
        for place, (down, up) in factors.items()
        if spelling != "peft" or place[0] == "unet"
    }
    torch.testing.assert_close(answer(pipe), changed(tiny_sd, deltas), atol=2e-4, rtol=1e-3)
    pipe.unload_lora_weights()
    assert torch.equal(answer(pipe), plain)


@pytest.mark.slow
def test_a_second_load_names_the_remedy(tiny_sd: Path, tiny_lora: Path) -> None:
    pipe = models.load(tiny_sd)
    models.load_lora(pipe, tiny_lora)
    with pytest.raises(
        models.ModelError, match=r"has LoRAs already \(lora0\): load all in one call.*unload_lora_weights"
    ):
        models.load_lora(pipe, tiny_lora)
    pipe.unload_lora_weights()
    models.load_lora(pipe, tiny_lora)
    assert models.adapters(pipe) == ["lora0"]


def test_several_add_up_each_with_its_weight(tiny_sd: Path, factors: Any, tmp_path: Path) -> None:
    unet = {place: pair for place, pair in factors.items() if place[0] == "unet"}
    text = {place: (-down, up) for place, (down, up) in factors.items() if place[0] == "text_encoder"}
    pipe = models.load(tiny_sd)
    (tmp_path / "two").mkdir()
    loras = f"{write(unet, 'kohya', tmp_path)}=0.25 + {write(text, 'diffusers', tmp_path / 'two')}=-1"
    models.load_lora(pipe, loras)
    deltas = {place: 0.25 * ALPHA / RANK * up @ down for place, (down, up) in unet.items()}
    deltas |= {place: -ALPHA / RANK * up @ down for place, (down, up) in text.items()}
    torch.testing.assert_close(answer(pipe), changed(tiny_sd, deltas), atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr whole"])
def test_products_of_two_are_read_as_loras(tiny_sd: Path, kind: str, tmp_path: Path) -> None:
    place = ("unet", MODULES["unet"][0])  # 16 in and out
    random = torch.Generator().manual_seed(0)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) / 4

    if kind == "loha":
        own = {"hada_w1_a": new(16, 2), "hada_w1_b": new(2, 16), "hada_w2_a": new(16, 2), "hada_w2_b": new(2, 16)}
        delta = 3.0 / 2 * (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
    elif kind == "lokr":
        own = {"lokr_w1": new(4, 2), "lokr_w2_a": new(4, 2), "lokr_w2_b": new(2, 8)}
        delta = 3.0 / 2 * torch.kron(own["lokr_w1"], own["lokr_w2_a"] @ own["lokr_w2_b"])
    else:
        own = {"lokr_w1": new(4, 2), "lokr_w2": new(4, 8)}
        delta = torch.kron(own["lokr_w1"], own["lokr_w2"])
    own["alpha"] = torch.tensor(3.0)
    save_file({f"{kohya(*place)}.{name}": tensor for name, tensor in own.items()}, tmp_path / "x.safetensors")
    pipe = models.load(tiny_sd)
    models.load_lora(pipe, tmp_path / "x.safetensors")
    torch.testing.assert_close(answer(pipe), changed(tiny_sd, {place: delta}), atol=2e-4, rtol=1e-3)


def test_what_does_not_fit_is_told_in_a_line(tiny_sd: Path, factors: Any, tmp_path: Path) -> None:
    wide = {place: (torch.zeros(RANK, 320), torch.zeros(320, RANK)) for place in factors}
    path = write(wide, "kohya", tmp_path)
    with pytest.raises(
        ModelError, match=r"does not fit: made for a network of width 320, this has 16 \(unet\.down"
    ) as e:
        models.load_lora(models.load(tiny_sd), path)
    assert len(str(e.value)) < 400
    some = dict(list(factors.items())[:-1]) | {list(factors)[-1]: list(wide.values())[-1]}
    path = write(some, "kohya", tmp_path)
    pipe = models.load(tiny_sd)
    with pytest.raises(ModelError, match=r"1 of its 6 parts do not fit: made for .*; --lora-partial leaves them out"):
        models.load_lora(pipe, path)
    models.load_lora(pipe, path, partial=True)
    deltas = {place: ALPHA / RANK * up @ down for place, (down, up) in list(factors.items())[:-1]}
    torch.testing.assert_close(answer(pipe), changed(tiny_sd, deltas), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_x.lora_mid.weight"], "Tucker LoCon adapter"),
        (["unet.a.lora_magnitude_vector"], "DoRA adapter"),
        (["lora_unet_joint_blocks_0_x.lora_down.weight"], "not a LoRA for StableDiffusionPipeline that diffusers can"),
        (["base_model.model.mid_block.x.lora_A.weight"], "needs adapter_config.json beside it"),
        (["transformer.x.lora_A.weight", "transformer.x.lora_B.weight"], "this model has no transformer.x"),
        (["something.else"], "not a LoRA"),
        (["emb_params"], "not a LoRA: it is an embedding: give it as --embedding"),
        (["lora_unet_x.on_input", "lora_unet_x.weight"], "an IA3 adapter"),
        (["base_model.model.x.ia3_l"], "an IA3 adapter"),
        (["lora_unet_x.a1.weight"], "a GLoRA adapter"),
        (["lora_unet_x.lora_down.weight", "lora_unet_x.diff_b"], r"more than low-rank factors \(lora_unet_x\.diff_b\)"),
        (["lora_unet_x.hada_w1_a", "lora_unet_x.scalar"], r"more than low-rank factors \(lora_unet_x\.scalar\)"),
        (["lycoris_x.lokr_w1", "lycoris_x.lokr_w2"], "not a LoRA for StableDiffusionPipeline that diffusers can read"),
    ],
)
def test_kinds_that_are_not_read(tiny_sd: Path, names: list[str], words: str, tmp_path: Path) -> None:
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=words):
        models.load_lora(models.load(tiny_sd), tmp_path / "x.safetensors")


@pytest.mark.parametrize("spelling", ["bare", "processor", "default"])
def test_names_of_the_denoiser_alone(tiny_sd: Path, spelling: str, tmp_path: Path) -> None:
    """As PEFT and the first of diffusers' LoRAs were saved, the factors of 8 bits, and a difference that is none."""
    down, up = (torch.randn(shape).to(torch.float8_e4m3fn) for shape in ((2, 16), (16, 2)))
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    first, second = {
        "bare": (f"{name}.to_q.lora_A.weight", f"{name}.to_q.lora_B.weight"),
        "processor": (f"{name}.processor.to_q_lora.down.weight", f"{name}.processor.to_q_lora.up.weight"),
        "default": (f"unet.{name}.to_q.lora_A.default.weight", f"unet.{name}.to_q.lora_B.default.weight"),
    }[spelling]
    save_file({first: down, second: up, f"unet.{name}.to_q.diff_b": torch.zeros(16)}, tmp_path / "x.safetensors")
    found = read_parts(tmp_path / "x.safetensors", StableDiffusionPipeline, None, "unet")["unet"][f"{name}.to_q"]
    assert torch.equal(found.up @ found.down, up.float() @ down.float())


def test_what_diffusers_passes_over_is_told(tmp_path: Path) -> None:
    """T5's parts in a LoRA for FLUX; and one for another width, whose conversion fails."""
    block, t5 = "lora_unet_double_blocks_0_img_attn_proj", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    both = {f"{each}.lora_{side}.weight": torch.ones(2, 2) for each in (block, t5) for side in ("down", "up")}
    save_file(both, tmp_path / "x.safetensors")
    parts = read_parts(tmp_path / "x.safetensors", FluxPipeline, None, "transformer")
    assert list(parts) == ["transformer", "text_encoder_3"]
    network = torch.nn.Module()
    network.add_module("transformer_blocks", torch.nn.ModuleList([torch.nn.Module()]))
    network.transformer_blocks[0].attn = torch.nn.ModuleDict({"to_out": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    with pytest.raises(
        ModelError, match=r"1 of its 2 parts do not fit: this model has no text_encoder_3\.encoder_block_0"
    ):
        without_misfits(parts, {"transformer": network, "text_encoder_3": None}, "x", partial=False)
    single = {f"lora_unet_single_blocks_0_linear1.lora_{side}.weight": torch.ones(2, 2) for side in ("down", "up")}
    save_file(single, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="is not a LoRA for FluxPipeline that diffusers can read"):
        read_parts(tmp_path / "x.safetensors", FluxPipeline, None, "transformer")


def test_text() -> None:
    loras = parse_loras("a.safetensors=0.7 + dir/b=c.safetensors + b=-1")
    assert loras == (Lora("a.safetensors", 0.7), Lora("dir/b=c.safetensors"), Lora("b", -1.0))
    assert parse_loras(write_loras(loras)) == loras
    assert parse_loras("none") == parse_loras(None) == ()
    with pytest.raises(ValueError, match="weight of a must be a finite number"):
        parse_loras("a=inf")


@pytest.mark.slow
def test_one_that_diffusers_wrote_is_loaded_as_it_loads_it(tiny_sd: Path, tiny_lora: Path) -> None:
    stock, ours = models.load(tiny_sd), models.load(tiny_sd)
    stock.load_lora_weights(load_file(next(tiny_lora.glob("*.safetensors"))))
    models.load_lora(ours, tiny_lora)
    assert torch.equal(answer(stock), answer(ours))


@pytest.mark.slow
def test_patterns_of_alphas_are_ends_of_names_as_for_diffusers(tiny_sd: Path, tmp_path: Path) -> None:
    unet = models.load(tiny_sd).unet
    alphas = {"lora_alpha": 2, "alpha_pattern": {r"attn2\.to_[kv]": 16, "to_q": 6}}
    torch.manual_seed(1)
    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"], **alphas))
    layers, metadata = get_peft_model_state_dict(unet), _collate_lora_metadata({"unet": unet})
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **metadata)
    stock, ours = models.load(tiny_sd), models.load(tiny_sd)
    stock.load_lora_weights(tmp_path)
    models.load_lora(ours, tmp_path)
    assert torch.allclose(answer(stock), answer(ours), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "weights", [{"both": -0.7, "text": 0.5}, {"unet": 0.5, "both": 0.3}, {"text": 0.5, "unet": 0.0}, {"both": 0.0}]
)
def test_merged_ones_change_all_networks_as_those_beside_them_do(
    tiny_sd: Path, factors: Any, tmp_path: Path, weights: dict[str, float]
) -> None:
    kinds = {"both": ("unet", "text_encoder"), "unet": ("unet",), "text": ("text_encoder",)}
    for name in weights:
        (tmp_path / name).mkdir()
        write({key: pair for key, pair in factors.items() if key[0] in kinds[name]}, "kohya", tmp_path / name)
    text = " + ".join(f"{tmp_path / name}={weight}" for name, weight in weights.items())
    beside, merged = models.load(tiny_sd), models.load(tiny_sd)
    models.load_lora(beside, text)
    merge_loras(merged, text)
    assert torch.allclose(answer(merged), answer(beside), atol=1e-4)
    deltas = {
        key: sum(weight for name, weight in weights.items() if key[0] in kinds[name]) * ALPHA / RANK * (up @ down)
        for key, (down, up) in factors.items()
    }
    assert torch.allclose(answer(merged), changed(tiny_sd, deltas), atol=1e-4)
