"""Learned words reach the text encoders that they were made for."""

from pathlib import Path
from typing import Any

import pytest
import stream_pipelines
import torch
from diffusers import AutoPipelineForImage2Image
from safetensors.torch import save_file
from test_single_file import sdxl

from diffaccel import models
from diffaccel.models import ModelError, parse_embeddings, write_embeddings
from diffaccel.models.embedding import share_words


def answer(pipe: Any, prompt: str) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **call).images


def test_a_word_of_several_vectors_is_known_to_the_prompt(tmp_path: Path) -> None:
    pipe = stream_pipelines.sd()
    ids = pipe.tokenizer("cat", add_special_tokens=False).input_ids
    vectors = pipe.text_encoder.get_input_embeddings().weight[ids].detach().clone()
    save_file({"emb_params": vectors}, tmp_path / "kitten.safetensors")
    expected = answer(pipe, "a cat")
    models.load_embeddings(pipe, f"{tmp_path}/kitten.safetensors")
    assert torch.equal(answer(pipe, "a kitten"), expected)
    with pytest.raises(ModelError, match="as kitten: Token kitten already in tokenizer"):
        models.load_embeddings(pipe, f"{tmp_path}/kitten.safetensors")


def test_sdxl_has_vectors_for_both_encoders(tmp_path: Path) -> None:
    pipe = sdxl()
    sizes = [pipe.text_encoder.config.hidden_size, pipe.text_encoder_2.config.hidden_size]
    tensors = {"clip_l": torch.ones(1, sizes[0]), "clip_g": torch.ones(1, sizes[1])}
    save_file(tensors, tmp_path / "x.safetensors")
    plain = answer(pipe, "<one>")
    models.load_embeddings(pipe, f"{tmp_path}/x.safetensors=<one>")
    assert not torch.equal(answer(pipe, "<one>"), plain)
    save_file({"clip_l": tensors["clip_l"]}, tmp_path / "half.safetensors")
    with pytest.raises(ModelError, match="has nothing for the text_encoder_2"):
        models.load_embeddings(pipe, f"{tmp_path}/half.safetensors=<half>")


def test_what_does_not_fit_is_told_before_the_model_is_loaded(tiny_sd: Path, tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "x.safetensors")
    source = models.resolve(tiny_sd)
    with pytest.raises(ModelError, match=r"for an encoder of width 768, and .* has 16"):
        models.check_embeddings(f"{tmp_path}/x.safetensors", source)
    save_file({"emb_params": torch.ones(2, 16)}, tmp_path / "w.safetensors")
    save_file({"emb_params": torch.ones(2, 16), "more": torch.ones(2, 16)}, tmp_path / "two.safetensors")
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2, 2)}, tmp_path / "lora.safetensors")
    for text, words in {
        f"{tmp_path}/w.safetensors=a": "knows the word a already: name another",
        f"{tmp_path}/two.safetensors=t": "is not an embedding: it has emb_params",
        f"{tmp_path}/lora.safetensors=t": "is not an embedding: it is a LoRA: give it as --lora",
        "nowhere.safetensors=a": "no embedding at 'nowhere.safetensors'",
        "x.pt=a": "x.pt is pickled",
        "a=t + b=t": "a and b have the same token t",
        "x": "write FILE=TOKEN",
    }.items():
        with pytest.raises(ModelError, match=words):
            models.check_embeddings(text, source)


def test_text() -> None:
    files = parse_embeddings("dir/bad.safetensors + a=b.safetensors=<x>")
    assert files == {"bad": "dir/bad.safetensors", "<x>": "a=b.safetensors"}
    assert parse_embeddings(write_embeddings(files)) == files
    assert write_embeddings(parse_embeddings(None)) is None


def test_words_count_in_any_case(tmp_path: Path) -> None:
    pipe = stream_pipelines.sd()
    vectors = torch.randn(3, pipe.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    for name in ("EasyNeg", "Glow"):
        save_file({"emb_params": vectors[: 3 if name == "EasyNeg" else 1]}, tmp_path / f"{name}.safetensors")
        models.load_embeddings(pipe, f"{tmp_path}/{name}.safetensors")
    for text in ("a EasyNeg GLOW cat", "A EASYNEG Glow CAT"):
        ids = pipe.tokenizer(pipe.maybe_convert_prompt(text, pipe.tokenizer)).input_ids
        expected = pipe.tokenizer.convert_tokens_to_ids(["easyneg", "easyneg_1", "easyneg_2", "glow"])
        assert [each for each in ids if each in expected] == expected
    other = AutoPipelineForImage2Image.from_pipe(pipe)
    share_words(pipe, other)
    assert other.maybe_convert_prompt(["EasyNeg"], pipe.tokenizer) == ["easyneg easyneg_1 easyneg_2"]
    with pytest.raises(ModelError, match="a and b have the same token x"):
        parse_embeddings("a=X + b=x")
