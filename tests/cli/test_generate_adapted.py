"""`diffaccel generate` with LoRAs, samplers and single files, as people bring them, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from diffaccel import models
from diffaccel.batch.jobs import Job
from diffaccel.batch.metadata import read_settings
from diffaccel.batch.notes import Notes
from diffaccel.batch.store import read_manifest
from diffaccel.cli import main


@pytest.fixture
def generate(tiny_sd: Path, tmp_path: Path):
    def call(*arguments: object, model: object = tiny_sd, steps: int = 2) -> Result:
        command = ["generate", "--model", model, "--output", tmp_path / "out", "--steps", steps, *arguments]
        return CliRunner().invoke(main, [str(argument) for argument in command])

    return call


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


@pytest.mark.slow
def test_several_loras_with_weights_and_none_in_a_row(generate, tiny_lora: Path, tmp_path: Path) -> None:
    rows = [
        {"custom_id": "both"},
        {"custom_id": "none", "lora": "none"},
        {"custom_id": "one", "lora": [str(tiny_lora)]},
    ]
    rows += [{"custom_id": "same", "lora": f"{tiny_lora}=0.5"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": "a", "seed": 1, **row}) + "\n" for row in rows))
    options = ["--lora", f"{tiny_lora}=0.25", "--lora", f"{tiny_lora}=0.25"]
    result = generate(tmp_path / "p.jsonl", *options)
    assert result.exit_code == 0, result.output
    both, none, one, same = (tmp_path / "out" / f"{row['custom_id']}.png" for row in rows)
    assert read_settings(both).lora == f"{tiny_lora}=0.25 + {tiny_lora}=0.25"
    assert (read_settings(none).lora, read_settings(one).lora) == (None, str(tiny_lora))
    assert pixels(both) == pixels(same)
    assert len({pixels(path) for path in (both, none, one)}) == 3
    generate("a", "--seed", 1, "-o", tmp_path / "plain")
    assert pixels(none) == pixels(next((tmp_path / "plain").glob("*.png")))


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_lora_for_another_network_ends_the_command_once(generate, tmp_path: Path, more: list[str]) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": torch.ones(4, 320), f"{name}.lora_up.weight": torch.ones(320, 4)}
    save_file(tensors, tmp_path / "wide.safetensors")
    result = generate("a", "b", "--lora", tmp_path / "wide.safetensors", *more)
    assert result.exit_code == 2
    assert result.stderr.count("made for a network of width 320, this has 16") == 1
    assert len(result.stderr) < 400
    assert not (tmp_path / "out").exists()
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "lora": "wide.safetensors"}\n{"prompt": "b"}\n')
    result = generate(tmp_path / "p.jsonl", *more)
    assert (result.exit_code, result.stderr.count("made for a network of width 320")) == (3, 1)


def test_a_sampler_for_noise_predictions_is_refused_before_a_flow_model_is_loaded(generate, tmp_path: Path) -> None:
    import stream_pipelines

    stream_pipelines.sd3().save_pretrained(tmp_path / "sd3")
    result = generate("a", "--scheduler", "Euler a", model=tmp_path / "sd3")
    assert (result.exit_code, "--scheduler: euler-a is for noise predictions" in result.stderr) == (2, True)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "scheduler": "ddim"}\n{"prompt": "b"}\n')
    result = generate(tmp_path / "p.jsonl", "--scheduler", "dpm++ 2m", "--size", 32, model=tmp_path / "sd3")
    assert result.exit_code == 3, result.output
    assert [record.status for record in read_manifest(tmp_path / "out").values()] == ["failed", "done"]
    assert "ddim is for noise predictions" in result.stderr


def test_samplers_reach_the_picture_under_the_names_of_other_tools(generate, tmp_path: Path) -> None:
    assert generate("a", "--scheduler", "DPM++ 2M Karras").exit_code == 0
    path = next((tmp_path / "out").glob("*.png"))
    assert read_settings(path).scheduler == "dpm++ 2m karras"
    with Image.open(path) as picture:
        assert "Sampler: DPM++ 2M Karras," in picture.info["parameters"]


@pytest.mark.slow
def test_a_checkpoint_in_one_file_from_another_folder(
    generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import original_checkpoints
    import stream_pipelines
    from diffusers import StableDiffusionPipeline

    parts = {**stream_pipelines.sd().components, "vae": stream_pipelines._kl(4)}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path / "config")
    original_checkpoints.write(pipe, tmp_path / "x.safetensors")
    save_file(dict(pipe.vae.state_dict()), tmp_path / "vae.safetensors")
    monkeypatch.chdir(tmp_path)
    result = generate("a", "--config", "config", "--vae", "vae.safetensors", model="x.safetensors")
    assert result.exit_code == 0, result.output
    path = next((tmp_path / "out").glob("*.png"))
    assert read_settings(path).model == str(tmp_path / "x.safetensors")
    monkeypatch.chdir("/")
    again = CliRunner().invoke(main, ["generate", "--from", str(path), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert pixels(tmp_path / "again" / path.name) == pixels(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--strength", "0.5"), "--strength: it needs a picture to start from (init_image)"),
        (("--model", ""), "--model is empty: name one, or leave it out for emoji-sd"),
        (("--controlnet", "emoji-control"), "this ControlNet was made for another kind of network"),
        (("--background", "#12345678"), "--background: '#12345678' is a transparent colour"),
    ],
)
def test_what_fits_no_picture_ends_the_command(
    options: tuple[str, ...], words: str, tiny_sd: Path, tmp_path: Path
) -> None:
    if "emoji-control" in options and "emoji-control" not in models.names("controlnet"):
        pytest.skip("not bundled")
    for mode in ((), ("--dry-run",)):
        arguments = ["generate", "a cat", "--model", str(tiny_sd), "-o", str(tmp_path / "out"), *options, *mode]
        result = CliRunner().invoke(main, arguments)
        assert (result.exit_code, words in " ".join(result.stderr.split())) == (2, True), result.stderr
        assert not (tmp_path / "out").exists()


def test_a_negative_prompt_that_flux_passes_over_is_told(tmp_path: Path) -> None:
    source = models.ModelSource("flux", tmp_path, {"_class_name": "FluxPipeline"})
    job = Job(id="a", prompt="a", seed=0, model="flux", dtype="float32", negative_prompt="b", guidance_scale=3.5)
    ((note,),) = Notes(source)([job])
    assert note == "negative_prompt: it changes nothing, for flux has its guidance built in"
