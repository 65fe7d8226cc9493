"""Checkpoints in one file give the pipeline that they were written from, or one sentence that says what is missing."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import original_checkpoints
import pytest
import stream_pipelines
import torch
import transformers
from accelerate import init_empty_weights
from cells import cells
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from diffaccel import models
from diffaccel.models import ModelError
from diffaccel.models.single_file import _PLACE, _clip_tokenizer, configuration, configurations

PARAMETERS = {  # as they are published
    "sd-1.5": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sd-2.1": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "sd-2.1-base": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "sd3-medium": {"transformer": 2_028_328_000, "text_encoder": 123_650_304, "text_encoder_2": 694_659_840},
    "sd3.5-medium": {"transformer": 2_243_171_520},
    "sd3.5-large": {"transformer": 8_056_627_520},
}


def sd() -> StableDiffusionPipeline:
    parts = {**stream_pipelines.sd().components, "vae": stream_pipelines._kl(4)}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def clip(width: int) -> Any:
    config = CLIPTextConfig.from_pretrained(stream_pipelines.DATA / "tiny-sd", subfolder="text_encoder")
    config.hidden_size = config.projection_dim = width
    return stream_pipelines._seeded(lambda: CLIPTextModelWithProjection(config))


def sdxl() -> Any:
    pipe = stream_pipelines.sdxl()
    pipe.text_encoder_2 = clip(48)  # encoders are told apart by their width
    sizes = {"projection_class_embeddings_input_dim": 48 + 6 * 8, "cross_attention_dim": 32 + 48}
    pipe.unet = stream_pipelines._seeded(lambda: UNet2DConditionModel.from_config(pipe.unet.config, **sizes))
    return pipe


def sd3() -> Any:
    pipe = stream_pipelines.sd3()
    pipe.register_modules(text_encoder=clip(64), text_encoder_2=clip(48), text_encoder_3=None, tokenizer_3=None)
    pipe.text_encoder.text_projection.weight.data = torch.eye(64)  # which is what the files of SD3 leave out
    pipe.transformer = stream_pipelines._seeded(
        lambda: diffusers.SD3Transformer2DModel.from_config(pipe.transformer.config, pooled_projection_dim=112)
    )
    return pipe


def configurations_of(pipe: Any, folder: Path) -> Path:
    """The folder of a pipeline without its weights."""
    pipe.save_pretrained(folder)
    for file in folder.glob("*/*.safetensors"):
        file.unlink()
    return folder


def answer(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **call).images


@pytest.mark.slow
@pytest.mark.parametrize("build", [sd, sdxl, sd3])
def test_a_file_is_the_pipeline_that_it_was_written_from(build: Callable[[], Any], tmp_path: Path) -> None:
    pipe = build()
    config = configurations_of(pipe, tmp_path / "config")
    path = original_checkpoints.write(pipe, tmp_path / "x.safetensors")
    source = models.resolve(path, config)
    loaded = models.load(source)
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert {"vae", "text_encoder"} < networks.keys()
    for name, part in networks.items():
        expected, found = part.state_dict(), getattr(loaded, name).state_dict()
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert torch.allclose(answer(loaded), answer(pipe), atol=1e-4)  # 0.03 of 255: weights lie elsewhere in memory
    assert models.load(source, dtype="bfloat16").dtype == torch.bfloat16


def test_parts_that_a_file_lacks_come_from_beside_its_configurations(tmp_path: Path) -> None:
    pipe = sd()
    pipe.save_pretrained(tmp_path / "whole")
    other = UNet2DConditionModel.from_config(pipe.unet.config)
    state = original_checkpoints.unet(other)
    save_file(
        {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}, tmp_path / "unet.safetensors"
    )
    loaded = models.load(models.resolve(tmp_path / "unet.safetensors", tmp_path / "whole"))
    pipe.unet = other.eval()
    assert torch.equal(answer(loaded), answer(pipe))
    for file in (tmp_path / "whole" / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelError, match=r"has no weights for vae, and .*whole has none: give --config"):
        models.resolve(tmp_path / "unet.safetensors", tmp_path / "whole")


def test_tensors_that_are_missing_are_told(tmp_path: Path) -> None:
    pipe = sd()
    config = configurations_of(pipe, tmp_path / "config")
    del pipe.unet.conv_out.bias
    path = original_checkpoints.write(pipe, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"lacks tensors that .*config asks for"):
        models.load(models.resolve(path, config))


@pytest.mark.parametrize("spelling", ["original", "bare", "diffusers"])
def test_an_autoencoder_in_a_file(spelling: str, tmp_path: Path) -> None:
    pipe = sd()
    pipe.save_pretrained(tmp_path / "model")
    other = stream_pipelines._kl(4)
    for parameter in other.parameters():
        parameter.data *= 1.1
    state = dict(other.state_dict()) if spelling == "diffusers" else original_checkpoints.vae(other)
    prefix = "first_stage_model." if spelling == "original" else ""
    save_file({prefix + name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "vae.safetensors")
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    loaded = models.load_vae(tmp_path / "vae.safetensors", like=tmp_path / "model" / "vae", **options)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.decode(latents).sample, other.decode(latents).sample)
    with pytest.raises(ModelError, match="needs a model beside it"):
        models.load_vae(tmp_path / "vae.safetensors", **options)
    save_file({"x": torch.zeros(1)}, tmp_path / "no.safetensors")
    with pytest.raises(ModelError, match="holds no autoencoder"):
        models.find_vae(str(tmp_path / "no.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["original", "diffusers"])
def test_a_controlnet_in_a_file(spelling: str, tmp_path: Path) -> None:
    pipe = sd()
    pipe.unet.save_pretrained(tmp_path / "unet")
    net = ControlNetModel.from_unet(pipe.unet)
    for parameter in net.parameters():
        parameter.data += 0.01
    state = dict(net.state_dict()) if spelling == "diffusers" else original_checkpoints.controlnet(net)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "net.safetensors")
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    loaded = models.load_controlnet(tmp_path / "net.safetensors", like=tmp_path / "unet", **options)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.state_dict().items()} == {
        name: tuple(tensor.shape) for name, tensor in net.state_dict().items()
    }
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    again = models.load_controlnet(tmp_path / "net.safetensors", like=pipe.unet, **options)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", cells(PARAMETERS, ("sd-1.5", "sdxl", "sd3-medium").__contains__))
def test_supplied_configurations_build_networks_of_the_published_size(name: str) -> None:
    index = json.loads((_PLACE / name / "model_index.json").read_text())
    for part, number in PARAMETERS[name].items():
        library, kind = index[part][0], index[part][1]
        with init_empty_weights():
            if library == "transformers":
                made = getattr(transformers, kind)(CLIPTextConfig.from_pretrained(_PLACE / name / part))
            else:
                made = getattr(diffusers, kind).from_config(getattr(diffusers, kind).load_config(_PLACE / name / part))
        assert sum(parameter.numel() for parameter in made.parameters()) == number
    assert set(PARAMETERS) == set(configurations())


def test_clips_tokens_are_the_published_ones() -> None:
    tokenizer = _clip_tokenizer("<|endoftext|>")
    tokens = tokenizer(["a photo of a cat", "Émile's  déjà-vu 😀 123!"], padding="max_length", max_length=77).input_ids
    assert tokens[0][:9] == [49406, 320, 1125, 539, 320, 2368, 49407, 49407, 49407]
    assert tokenizer.decode(tokens[1], skip_special_tokens=True) == "émile 's déjà - vu 😀 1 2 3 !"
    assert len(tokenizer) == 49408
    assert _clip_tokenizer("!").pad_token_id == 0


def shapes(folder: Path, **tensors: tuple[int, ...]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, folder / "x.safetensors")
    return folder / "x.safetensors"


UNET = "model.diffusion_model."
TO_K = UNET + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
BIG_G = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
SD3 = UNET + "joint_blocks.0.context_block.adaLN_modulation.1.bias"


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({TO_K: (2, 768)}, "sd-1.5"),
        ({BIG_G: (2,), TO_K: (2, 2048)}, "sdxl"),
        ({SD3: (2,), UNET + "pos_embed": (1, 36864, 1)}, "sd3-medium"),
        ({SD3: (2,), UNET + "pos_embed": (1, 147456, 1)}, "sd3.5-medium"),
        ({SD3: (2,), UNET + "joint_blocks.37.x_block.mlp.fc1.weight": (1,)}, "sd3.5-large"),
    ],
)
def test_kinds_are_known_by_what_they_hold(tensors: Any, expected: str, tmp_path: Path) -> None:
    assert configuration(shapes(tmp_path, **tensors), None).name == expected


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({TO_K: (2, 1024)}, "give --config sd-2.1-base .* or --config sd-2.1 "),
        ({TO_K: (2, 768), UNET + "input_blocks.0.0.weight": (2, 9, 1, 1)}, "9 channels, as for inpainting .*--config"),
        (
            {BIG_G: (2,), "v_pred": (1,)},
            "marked as trained for v-prediction, and the scheduler of sdxl .*: give --config",
        ),
        ({BIG_G: (2,), "edm_mean": (1,)}, "marked as trained for noise levels of EDM, and .*: give --config"),
        ({BIG_G: (2,), "ztsnr": (1,)}, "trained for noise without any signal at its end, and the scheduler of sdxl"),
        (
            {TO_K: (2, 768), "v_pred": (1,)},
            "trained for v-prediction, and the scheduler of sd-1.5 is for predicting noise",
        ),
        ({UNET + "x.weight": (2,), UNET + "x.scale_weight": ()}, "quantized weights .*: take its fp16 or bf16 version"),
        ({"decoder.conv_in.weight": (2,)}, "is no whole model: it is an autoencoder: give it as --vae"),
        ({"lora_unet_x.lora_down.weight": (2,)}, "is no model: it is a LoRA: give it as --lora"),
        ({"unet.x.lora_A.weight": (2,)}, "is no model: it is a LoRA: give it as --lora"),
        ({"down_blocks.0.x.weight": (2,)}, "is no whole model: it is one network of a pipeline in diffusers' format"),
        ({SD3: (2,), "text_encoders.t5xxl.transformer.shared.weight": (1,)}, "holds a T5, .*--config"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (1,)}, "of the shape of FLUX, .*--config"),
        ({"something": (1,)}, r"of no kind whose configuration is known \(it has something\): give --config"),
    ],
)
def test_what_must_be_given_is_said(tensors: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        models.resolve(shapes(tmp_path, **tensors))


def test_what_a_file_says_that_it_predicts_counts(tmp_path: Path) -> None:
    def kind(said: str, **tensors: tuple[int, ...]) -> str:
        path, made = tmp_path / "x.safetensors", {name: torch.zeros(shape) for name, shape in tensors.items()}
        save_file(made, path, {"modelspec.prediction_type": said})
        return configuration(path, None).name

    assert kind("epsilon", **{BIG_G: (2,)}) == "sdxl"
    assert (kind("v", **{TO_K: (2, 1024)}), kind("epsilon", **{TO_K: (2, 1024)})) == ("sd-2.1", "sd-2.1-base")
    with pytest.raises(
        ModelError, match=r"trained for predicting noise, and the scheduler of sd-2\.1 is for v-prediction"
    ):
        models.resolve(tmp_path / "x.safetensors", "sd-2.1")
    assert kind("v", **{BIG_G: (2,)}) == "sdxl"
    with pytest.raises(ModelError, match="trained for v-prediction, and the scheduler of sdxl is for predicting noise"):
        models.resolve(tmp_path / "x.safetensors", "sdxl")


def test_a_file_of_another_model_than_its_configurations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = sd()
    config = configurations_of(pipe, tmp_path / "config")

    def loaded(**more: torch.Tensor) -> Any:
        return models.load(models.resolve(original_checkpoints.write(pipe, tmp_path / "x.safetensors", **more), config))

    spare = {UNET + "input_blocks.1.0.emb_layers.1.what": torch.zeros(1)}
    caplog.set_level(logging.ERROR, "diffusers")
    words = r"another model than .*config: down_blocks.0.resnets.0.time_emb_proj.what has no place in it"
    with pytest.raises(ModelError, match=words):
        loaded(**spare)
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, in_channels=9)
    with pytest.raises(
        ModelError, match=r"its conv_in.weight has the shape \[\d+, 9, 3, 3\] instead of \[\d+, 4, 3, 3\]$"
    ):
        loaded()


def test_a_network_in_diffusers_names_is_the_one_that_draws(tmp_path: Path) -> None:
    pipe = sd()
    pipe.save_pretrained(tmp_path / "whole")
    for parameter in pipe.unet.parameters():
        parameter.data *= 0.9
    pipe.unet.save_pretrained(tmp_path / "tuned")
    file = next((tmp_path / "tuned").glob("*.safetensors"))
    assert torch.equal(answer(models.load(models.resolve(file, tmp_path / "whole"))), answer(pipe))
    pipe.vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ModelError, match="holds no unet under names that are read: it is an autoencoder"):
        models.resolve(next((tmp_path / "vae").glob("*.safetensors")), tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "tokenizer")
    with pytest.raises(ModelError, match=r"has no tokenizer, which its model_index\.json names"):
        models.resolve(file, tmp_path / "whole")


def test_a_file_of_a_pipeline_that_diffusers_reads_from_folders_alone(tmp_path: Path) -> None:
    pipe = sd()
    config = configurations_of(pipe, tmp_path / "config")
    index = config / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "WanPipeline"))
    source = models.resolve(original_checkpoints.write(pipe, tmp_path / "x.safetensors"), config)
    with pytest.raises(
        ModelError, match="is one file, and diffusers reads no WanPipeline from one: give its folder as"
    ):
        models.load(source)


def test_files_that_are_no_models(tiny_sd: Path, tmp_path: Path) -> None:
    for name, words in (
        ("x.ckpt", "is pickled, which can run code"),
        ("x.txt", "is no file that ends in .safetensors"),
        ("X.CKPT", "is pickled"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ModelError, match=words):
            models.resolve(tmp_path / name)
    with pytest.raises(ModelError, match="--config is for models in a single file"):
        models.resolve(tiny_sd, "sdxl")
    with pytest.raises(ModelError, match=r"no folder of configurations at 'nowhere'; supplied are sd-1.5, "):
        models.resolve(shapes(tmp_path, a=(1,)), "nowhere")


def test_a_folder_of_sd3_without_its_third_encoder(tmp_path: Path) -> None:
    sd3().save_pretrained(tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    assert loaded.text_encoder_3 is None
    assert loaded.text_encoder is not None


def test_a_folder_of_one_variant_and_one_that_lacks_weights(tiny_sd: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd, tmp_path / "model")
    for file in (tmp_path / "model").glob("*/*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    assert torch.equal(answer(models.load(tmp_path / "model")), answer(models.load(tiny_sd)))
    next((tmp_path / "model" / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match="has no weights for its unet"):
        models.resolve(tmp_path / "model")
