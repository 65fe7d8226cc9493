"""Settings that other tools wrote into pictures are read as far as they have an equivalent, and the rest is named."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffaccel.batch.foreign import ForeignSettings, read_foreign
from diffaccel.batch.metadata import read_settings
from diffaccel.cli import main

AUTOMATIC = """a cat, masterpiece <lora:style:0.7>
in two lines
Negative prompt: blurry, (bad:1.2)
Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 42, Size: 32x40, Model hash: abc, \
Model: dream, Clip skip: 2, Lora hashes: "style: 1, b: 2", Version: v1.10"""
COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 9,
            "steps": 5,
            "cfg": 7.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dream.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 40, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["10", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "x.safetensors", "strength_model": 0.5, "model": ["4", 0]},
    },
    "11": {"class_type": "FreeU", "inputs": {}},
}


def picture(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_automatic(tmp_path: Path) -> None:
    found = read_settings(picture(tmp_path / "a.png", parameters=AUTOMATIC))
    assert isinstance(found, ForeignSettings)
    assert found.settings == {
        "prompt": "a cat, masterpiece \nin two lines",
        "negative_prompt": "blurry, (bad:1.2)",
        "steps": 4,
        "scheduler": "dpm++ 2m karras",
        "guidance_scale": 6.5,
        "seed": 42,
        "size": "32x40",
    }
    assert found.model == "dream"
    expected = ["<lora:style:0.7>: give --lora FILE=0.7", "Clip skip: 2", "Lora hashes: style: 1, b: 2"]
    assert found.without_equivalent == expected


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_automatic_in_a_jpeg(order: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat\nSteps: 4, Sampler: Restart".encode(order)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    found = read_settings(tmp_path / "a.jpg")
    assert isinstance(found, ForeignSettings)
    assert found.settings == {"prompt": "a cat", "steps": 4}
    assert found.without_equivalent == ["Sampler: Restart"]


def test_automatic_with_lines_of_extensions_behind() -> None:
    found = read_foreign({"parameters": "a cat\nNegative prompt: dog\nSteps: 4, Seed: 5\nTemplate: a {cat|dog}"})
    assert found is not None
    assert found.settings == {"prompt": "a cat", "negative_prompt": "dog", "steps": 4, "seed": 5}
    assert found.without_equivalent == ["Template: a {cat|dog}"]


def test_comfy(tmp_path: Path) -> None:
    found = read_settings(picture(tmp_path / "a.png", prompt=json.dumps(COMFY)))
    assert isinstance(found, ForeignSettings)
    settings = {"prompt": "a cat", "negative_prompt": "blurry", "seed": 9, "steps": 5, "guidance_scale": 7.0}
    assert found.settings == settings | {"scheduler": "dpm++ 2m karras", "size": "32x40"}
    assert found.model == "dream.safetensors"
    assert found.without_equivalent == ["LoRA x.safetensors: give --lora FILE=0.5", "node FreeU"]
    two = COMFY | {"12": COMFY["3"]}
    assert read_foreign({"prompt": json.dumps(two)}).without_equivalent == ["2 sampler nodes"]


def test_what_is_neither_is_nothing() -> None:
    for texts in ({}, {"prompt": "{"}, {"prompt": "[1]"}, {"parameters": "words"}, {"prompt": '{"a": {"b": 1}}'}):
        assert read_foreign(texts) is None


def test_inspect_goes_on_after_a_picture_without_settings(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "none.png")
    other = picture(tmp_path / "a.png", parameters=AUTOMATIC)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "none.png"), str(other)])
    assert result.exit_code == 3
    assert "none.png holds no settings of diffaccel, AUTOMATIC1111 or ComfyUI" in result.stderr
    assert "  tool: AUTOMATIC1111\n  prompt: a cat" in result.stdout
    assert "  without equivalent: <lora:style:0.7>" in result.stdout


def test_from_another_tools_picture(tiny_sd: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", parameters=AUTOMATIC)
    command = ["generate", "--from", str(path), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, "which calls its model dream: give --model" in result.stderr) == (2, True)
    result = CliRunner().invoke(main, [*command, "--model", str(tiny_sd)])
    assert result.exit_code == 0, result.output
    assert "not carried over: Clip skip: 2" in result.stderr
    job = read_settings(next((tmp_path / "out").glob("*.png")))
    assert (job.seed, job.steps, job.scheduler, job.width, job.height) == (42, 4, "dpm++ 2m karras", 32, 40)
    again = CliRunner().invoke(main, [*command, "--model", str(tiny_sd), "--size", "24", "--overwrite"])
    assert again.exit_code == 0, again.output
    assert {(job.width, job.height) for job in map(read_settings, (tmp_path / "out").glob("*.png"))} == {
        (24, 24),
        (32, 40),
    }


def test_a_part_of_a_run_is_told() -> None:
    inputs = {"noise_seed": 5, "steps": 20, "start_at_step": 0, "end_at_step": 10000, "add_noise": "enable"}
    for changes, told in (({}, []), ({"start_at_step": 8, "end_at_step": 16}, ["end_at_step: 16", "start_at_step: 8"])):
        graph = {"1": {"class_type": "KSamplerAdvanced", "inputs": inputs | changes}}
        found = read_foreign({"prompt": json.dumps(graph)})
        assert found is not None
        assert [name for name in found.without_equivalent if "_at_" in name] == told
