"""Pipelines that read long and weighted prompts: their own embeddings, part by part, in calls, streams and commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import stock_cases
import stream_pipelines
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from diffaccel import models
from diffaccel.batch.jobs import Job
from diffaccel.batch.text_calls import TextCalls
from diffaccel.cli import main
from diffaccel.models import ModelError
from diffaccel.models.text_parts import MOST_PARTS, read_in_parts, reading_of
from diffaccel.models.weighted_text import read_as
from diffaccel.realtime.remarks import remark
from diffaccel.sampling.guidance import FullGuidance
from diffaccel.stream.engine import StreamEngine
from diffaccel.video.engine import VideoEngine

LONG = "a red cat on a blue sofa, in a green room, with a white dog, by the window, and the sun in the sky " * 2
OTHER = LONG.replace("sky", "sea")
SHORT = "a cat"


def family(name: str) -> Any:
    pipe = getattr(stream_pipelines, name)()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reading(pipe: Any, *, weights: bool = False, texts: Sequence[str] | None = None) -> Any:
    read_in_parts(pipe, long=True, weights=weights, texts=texts)
    return pipe


def drawn(pipe: Any, prompts: Any, seeds: int = 1, **settings: Any) -> torch.Tensor:
    call = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"} | settings
    noise = [torch.Generator().manual_seed(0) for _ in range(seeds)]
    found: torch.Tensor = pipe(prompts, generator=noise[0] if seeds == 1 else noise, **call).images
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("negative", [None, "no dog"])
def test_a_pipeline_draws_as_generate_does(name: str, negative: str | None) -> None:
    pipe = family(name)
    job = Job("a", LONG, 0, "m", "float32", long_prompts=True, negative_prompt=negative or "")
    ((_, embeds),) = TextCalls(pipe)([job])
    expected, cut = drawn(pipe, None, **embeds), drawn(pipe, LONG, negative_prompt=negative)
    found = drawn(reading(pipe, texts=[LONG, negative or ""]), LONG, negative_prompt=negative)
    assert not torch.allclose(expected, cut, atol=1e-3)
    if negative is None:  # a repeated prompt is attended to as it is once; empty parts behind one are seen
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_short_prompts_are_drawn_as_ever_beside_long_ones(name: str) -> None:
    pipe = family(name)
    plain, expected = pipe.encode_prompt, drawn(pipe, SHORT, negative_prompt="no")
    read_in_parts(pipe, long=True, weights=True, texts=[SHORT, "no"])
    assert torch.equal(drawn(pipe, SHORT, negative_prompt="no"), expected)
    pipe.encode_prompt = plain
    both = drawn(reading(pipe), [SHORT, LONG], 2, negative_prompt=["no", "no"])
    assert torch.allclose(both[:1], expected, atol=1e-3)
    assert torch.allclose(both[1:], drawn(pipe, LONG, negative_prompt="no"), atol=1e-3)


def test_weights_pull_and_are_text_where_they_are_not_read() -> None:
    plain, long = drawn(family("sd"), "a (cat:1.5)"), drawn(reading(family("sd"), texts=["a (cat:1.5)"]), "a (cat:1.5)")
    weighted = reading(family("sd"), weights=True, texts=["a (cat:1.5)"])
    assert torch.equal(plain, long)
    assert not torch.allclose(drawn(weighted, "a (cat:1.5)"), plain, atol=1e-4)
    assert torch.equal(drawn(weighted, "a cat"), drawn(family("sd"), "a cat"))
    with pytest.raises(ValueError, match=r"a \( is not closed"):
        weighted("a (cat", num_inference_steps=2)


def test_a_learned_word_of_several_vectors_is_spelt_out_in_parts(tmp_path: Path) -> None:
    pipe = family("sd")
    ids = pipe.tokenizer("cat", add_special_tokens=False).input_ids
    vectors = pipe.text_encoder.get_input_embeddings().weight[ids].detach().clone()
    save_file({"emb_params": vectors}, tmp_path / "kitten.safetensors")
    models.load_embeddings(pipe, f"{tmp_path}/kitten.safetensors")
    assert len(ids) > 1
    texts = [LONG.replace("cat", word) for word in ("cat", "kitten")]
    read_in_parts(pipe, long=True, weights=False, texts=texts)
    assert torch.equal(drawn(pipe, texts[0]), drawn(pipe, texts[1]))


def test_what_is_beyond_the_most_parts_is_named() -> None:
    pipe = reading(family("sd"))
    found = reading_of(pipe)
    assert found is not None
    assert found.parts == MOST_PARTS
    endless = " ".join(["cat"] * 40 * MOST_PARTS + ["dog"])
    assert found.beyond(LONG) == ""
    assert found.beyond(endless).endswith("dog")
    assert "does not read “" in remark(pipe, {"--prompt": endless})
    assert drawn(pipe, endless).isfinite().all()
    assert remark(family("sd"), {"--prompt": LONG}, ("--lora",)).endswith("--long-prompts reads more.")


def test_a_stream_goes_from_prompts_of_one_length_to_another() -> None:
    pipe = reading(family("sd"))

    def pictures(prompt: str, *later: str, transition: int = 0) -> list[torch.Tensor]:
        engine = StreamEngine(
            pipe, prompt=prompt, timestep_indices=range(2), num_inference_steps=2, height=32, width=32,
            guidance=FullGuidance(3.0), negative_prompt="no", output_type="latent",
        )  # fmt: skip
        found = engine.push()
        for each in later:
            engine.update(prompt=each, at="new", transition=transition)
        for _ in range(3):
            found += engine.push()
        return [out.image for out in found + engine.flush()]

    short, long = pictures(SHORT), pictures(LONG)
    at_once, slowly = pictures(SHORT, LONG), pictures(SHORT, LONG, transition=2)
    assert torch.allclose(at_once[0], short[0], atol=1e-3)
    assert torch.allclose(at_once[-1], long[-1], atol=1e-3)
    assert torch.allclose(slowly[-1], long[-1], atol=1e-3)
    assert not torch.allclose(pictures(OTHER)[-1], long[-1], atol=1e-2)


def test_a_video_reads_all_of_its_prompt() -> None:
    def chunk(prompt: str) -> torch.Tensor:
        pipe = reading(stock_cases.animatediff(), texts=[LONG, OTHER])
        with VideoEngine(
            pipe, prompt=prompt, chunk=2, num_steps=2, height=32, width=32, output_type="latent"
        ) as engine:
            return torch.stack(next(iter(engine)).frames)

    assert not torch.allclose(chunk(LONG), chunk(OTHER), atol=1e-5)


def test_who_cannot_says_so(tiny_sd: Path) -> None:
    with pytest.raises(ModelError, match="PixArtAlphaPipeline does not read with CLIP alone"):
        reading(family("pixart"))
    pipe = family("sd")
    read_in_parts(pipe, long=False, weights=False)
    assert reading_of(pipe) is None
    with pytest.raises(ValueError, match="clip_skip"):
        drawn(reading(pipe), LONG, clip_skip=1)
    needed = {"tune": ("--max-macs", "0.5"), "video": ("in.mp4", "out.mp4", "--prompt", "a"), "live": ("--no-browser",)}
    for command in ("bench", "tune", "train-cache", "video", "live"):
        result = CliRunner().invoke(main, [command, "--model", "emoji-dit", "--long-prompts", *needed.get(command, ())])
        assert result.exit_code == 2, command
        assert "--long-prompts: PixArtAlphaPipeline does not read with CLIP alone" in result.output, command
    result = CliRunner().invoke(main, ["bench", "--model", str(tiny_sd), "--prompt-weights", "--prompts", "a (cat"])
    assert (result.exit_code, "--prompt: a ( is not closed" in result.output) == (2, True), result.output
    assert read_as("a (cat:2)", weights=False) == ((("a (cat:2)", 1.0),),)
