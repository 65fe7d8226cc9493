"""Loading: quiet about what is harmless, loud about the rest, and exactly the stock pipeline."""

import json
import logging
import logging.handlers
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils.logging import is_progress_bar_enabled
from safetensors.torch import save_file

from diffaccel import models
from diffaccel.models import ModelError
from diffaccel.models.quiet import quiet_loading


def test_loads_the_stock_pipeline_without_a_word(tiny_sd: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = models.load(tiny_sd)
    assert type(pipe) is StableDiffusionPipeline
    assert pipe.unet.dtype == torch.float32
    assert capfd.readouterr() == ("", "")


def test_same_pictures_as_plain_from_pretrained(tiny_sd: Path) -> None:
    def draw(pipe: StableDiffusionPipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe("a cat", num_inference_steps=3, generator=generator, output_type="pt").images

    assert torch.equal(draw(models.load(tiny_sd)), draw(StableDiffusionPipeline.from_pretrained(tiny_sd)))


@pytest.mark.parametrize("damage", ["weights of another shape", "a class that is not there"])
def test_what_does_not_fit_together_is_said(tiny_sd: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_sd, folder)
    file = folder / ("unet/config.json" if damage.startswith("weights") else "model_index.json")
    values = json.loads(file.read_text())
    changes = {"block_out_channels": [64, 64]} if damage.startswith("weights") else {"unet": ["diffusers", "NoSuchNet"]}
    file.write_text(json.dumps(values | changes))
    with pytest.raises(ModelError, match=r"cannot load .*model"):
        models.load(folder)


def test_a_lora_that_is_none_is_said(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"other.safetensors is not a LoRA: it has weight"):
        models.load_lora(tiny_pipe, tmp_path / "other.safetensors")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_by_name_or_value(tiny_sd: Path, dtype: object) -> None:
    assert models.load(tiny_sd, dtype=dtype).unet.dtype == torch.bfloat16


def test_unknown_dtype_names_the_valid_ones(tiny_sd: Path) -> None:
    with pytest.raises(ModelError, match="unknown dtype 'int3'; one of float32"):
        models.load(tiny_sd, dtype="int3")


def test_components_can_be_put_in_place(tiny_sd: Path) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=7, steps_offset=1, clip_sample=False)
    assert models.load(tiny_sd, scheduler=scheduler).scheduler.config.num_train_timesteps == 7


def test_only_the_known_messages_are_held_back() -> None:
    logger, seen = logging.getLogger("diffusers.pipelines.pipeline_utils"), logging.handlers.BufferingHandler(9)
    logger.addHandler(seen)
    try:
        with quiet_loading():
            logger.warning("Expected types for vae: (AutoencoderKL,), got AutoencoderTiny.")
            logger.warning("Expected types for unet: (UNet2DConditionModel,), got Other.")
            assert not is_progress_bar_enabled()
        logger.warning("Expected types for vae: (AutoencoderKL,), got AutoencoderTiny.")
    finally:
        logger.removeHandler(seen)
    assert ["unet" in record.getMessage() for record in seen.buffer] == [True, False]
    assert is_progress_bar_enabled()


def test_lora_changes_the_network_and_unloads(tiny_sd: Path, tiny_lora: Path) -> None:
    pipe = models.load(tiny_sd)
    models.load_lora(pipe, tiny_lora)
    assert pipe.get_active_adapters()
    pipe.unload_lora_weights()
    assert not hasattr(pipe.unet, "peft_config") or not pipe.unet.peft_config


@pytest.mark.parametrize(
    ("lora", "problem"),
    [("nowhere", "no LoRA at"), ("", "no LoRA at"), ("weights.bin", r"weights\.bin is pickled, which can run code")],
)
def test_missing_lora_is_named(tiny_sd: Path, tmp_path: Path, lora: str, problem: str) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelError, match=problem):
        models.load_lora(models.load(tiny_sd), tmp_path / lora)


@pytest.mark.parametrize("part", ["", "vae"], ids=["pipeline", "folder"])
def test_an_autoencoder_of_a_pipeline_or_a_folder(tiny_sd: Path, part: str) -> None:
    vae = models.load_vae(tiny_sd / part, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert type(vae) is type(models.load(tiny_sd).vae)
    assert vae.dtype == torch.bfloat16


def test_what_is_no_autoencoder_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    with pytest.raises(
        ModelError, match=r"no autoencoder at .*config\.json, a \.safetensors file, or a bundled name: "
    ):
        models.load_vae(tmp_path, **options)
    with pytest.raises(ModelError, match=r"UNet2DConditionModel in .* is not an autoencoder"):
        models.load_vae(tiny_sd / "unet", **options)
