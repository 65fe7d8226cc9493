"""What is wrong with a job is found without loading a model, each file looked at once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diffaccel import models
from diffaccel.batch import check
from diffaccel.batch.jobs import Job

JOB = Job(id="a", prompt="p", seed=0, model="m", dtype="float32")


@pytest.fixture
def source(tmp_path: Path) -> models.ModelSource:
    for part, config in {
        "transformer": {"patch_size": 2, "sample_size": 16},
        "vae": {"block_out_channels": [1, 1, 1, 1]},
    }.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    return models.ModelSource("m", tmp_path, {"_class_name": "StableDiffusion3Pipeline"})


def test_good_jobs_have_no_problems(source: models.ModelSource, tmp_path: Path, tiny_sd: Path, tiny_lora: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    start = replace(JOB, id="b", init_image=str(tmp_path / "a.jpg"), strength=0.5, width=48)
    assert check.find_problems([JOB, start], source) == {}
    assert check.find_problems([replace(start, lora=str(tiny_lora))], models.resolve(tiny_sd)) == {}


def test_each_problem_is_named(
    source: models.ModelSource, tmp_path: Path, tiny_lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 20)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    source = replace(
        source, index={"_class_name": "PixArtAlphaPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    )
    cases = {
        "init_image: cannot read nowhere.png": replace(JOB, init_image="nowhere.png"),
        "lora: no LoRA at 'nowhere'": replace(JOB, lora="nowhere"),
        "lora: PixArtAlphaPipeline takes no LoRA": replace(JOB, lora=str(tiny_lora)),
        "is damaged: its header claims": replace(JOB, lora=str(tmp_path / "bad.safetensors")),
        "strength: it needs a picture to start from (init_image)": replace(JOB, strength=0.5),
        "strength: 0.2 of 4 steps is less than one step": replace(JOB, init_image="a.png", strength=0.2, steps=4),
        "guidance: one-time needs a guidance_scale above 1 (got 1)": replace(
            JOB, guidance="one-time:renew=3", guidance_scale=1.0
        ),
        "size: m paints multiples of 16 pixels (got 136)": replace(JOB, width=128, height=136),
    }
    for words, job in cases.items():
        assert words in check.find_problems([job], source)["a"]


def test_residual_guidance_where_guidance_is_built_in(source: models.ModelSource) -> None:
    spared = replace(JOB, guidance="one-time:renew=3")
    assert check.find_problems([spared], source) == {}
    flux = replace(source, index={"_class_name": "FluxPipeline"})
    words = (
        "guidance: m has its guidance built in, and computes no negative prompt that one-time could spare: leave it out"
    )
    assert check.find_problems([spared, replace(JOB, id="b")], flux) == {"a": words}


def test_files_are_looked_at_once(source: models.ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(check, "check_picture", seen.append)
    jobs = [replace(JOB, id=str(number), init_image=f"{number % 2}.png") for number in range(100)]
    assert check.find_problems(jobs, source) == {}
    assert seen == ["0.png", "1.png"]


def test_sizes_are_left_to_models_that_find_the_nearest_themselves(source: models.ModelSource) -> None:
    (source.folder / "transformer" / "config.json").write_text('{"patch_size": 2, "sample_size": 64}')
    source = replace(source, index={"_class_name": "PixArtAlphaPipeline"})
    assert check.find_problems([replace(JOB, width=136)], source) == {}
    (source.folder / "transformer" / "config.json").write_text("{")
    with pytest.raises(models.ModelError, match=r"cannot read .*config\.json"):
        check.find_problems([JOB], source)
