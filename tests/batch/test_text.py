"""Text is encoded once for each distinct prompt, and the pipeline cannot tell."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

from diffaccel import models
from diffaccel.batch.prompt_memory import TextMemory, encode_ahead


@pytest.fixture
def pipe(tiny_sd: Path) -> Any:
    pipe = models.load(tiny_sd)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(pipe: Any, *prompts: str) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(pipe.encode_prompt(list(prompts), "cpu", 1, True, negative_prompt=["no"] * len(prompts)))


def test_embeddings_are_the_encoders_own(pipe: Any) -> None:
    expected = embeddings(pipe, "a", "b", "a")
    memory = TextMemory(pipe)
    assert torch.allclose(embeddings(pipe, "a", "b", "a"), expected, atol=1e-6)
    assert memory.encoded == 3  # a, b and the negative prompt
    assert torch.allclose(embeddings(pipe, "b", "a", "b"), expected[[1, 0, 1, 3, 4, 5]], atol=1e-6)
    assert memory.encoded == 3


def test_an_embedding_depends_on_its_prompt_alone(pipe: Any) -> None:
    TextMemory(pipe)
    together = embeddings(pipe, *"abcdefg")[3]
    pipe.text_encoder._diffusers_hook.remove_hook("diffaccel_text", recurse=False)
    TextMemory(pipe)
    assert torch.equal(embeddings(pipe, "d")[0], together)


def test_detached_pipeline_encodes_by_itself(pipe: Any) -> None:
    memory = TextMemory(pipe)
    memory.detach()
    embeddings(pipe, "a")
    assert memory.encoded == 0


def test_changed_weights_are_encoded_with(pipe: Any) -> None:
    memory = TextMemory(pipe)
    before = embeddings(pipe, "a")
    with memory.changed_weights(), torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.mul_(2)
    assert not torch.allclose(embeddings(pipe, "a"), before)


def test_the_oldest_are_forgotten_first(pipe: Any) -> None:
    size = embeddings(pipe, "a").nbytes  # of a prompt and its negative prompt
    memory = TextMemory(pipe, max_bytes=2 * size)
    for prompt in ("a", "b", "c", "d"):
        embeddings(pipe, prompt)
    encoded = memory.encoded
    embeddings(pipe, "d")
    assert memory.encoded == encoded
    embeddings(pipe, "a")
    assert memory.encoded == encoded + 1


def test_what_is_encoded_ahead_is_found(pipe: Any) -> None:
    memory = TextMemory(pipe)
    encode_ahead(pipe, ["a", "b"], {})
    assert memory.encoded == 2
    pipe(["a", "b"], num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    assert memory.encoded == 2


class Text:
    """Stands for a pipeline whose denoiser is told which tokens are padding."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
        self.text_encoder = T5EncoderModel(config).eval()
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, num_layers=1, caption_channels=16, cross_attention_dim=8
        )
        self.components = {"text_encoder": self.text_encoder, "transformer": self.transformer}


def test_padding_is_left_out_where_it_is_masked() -> None:
    pipe = Text()
    ids = torch.tensor([[5, 6, 7, 0, 0, 0, 0, 0], [8, 9, 0, 0, 0, 0, 0, 0]])
    mask = (ids > 0).long()
    with torch.inference_mode():
        expected = pipe.text_encoder(ids, attention_mask=mask)[0]
        lengths: list[int] = []
        pipe.text_encoder.encoder.register_forward_pre_hook(
            lambda _module, _args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        TextMemory(pipe)
        output = pipe.text_encoder(ids, attention_mask=mask)[0]
    assert lengths == [3, 2]
    assert output.shape == expected.shape
    assert torch.allclose(output[mask.bool()], expected[mask.bool()], atol=1e-5)
    assert (output[~mask.bool()] == 0).all()
