"""The run's pipeline: another autoencoder where it fits, compiled where that is asked for."""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch._dynamo.testing import CompileCounter
from torch._inductor.exc import InductorError

from diffaccel import DeepCache, Taylor, accelerate, models
from diffaccel.models.placement import Placement, _rebuilding, devices, open_pipeline


def test_another_autoencoder(tiny_sd: Path, tmp_path: Path) -> None:
    levels = {"encoder_block_out_channels": (4, 4, 4), "decoder_block_out_channels": (4, 4, 4)}
    AutoencoderTiny(**levels, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1)).save_pretrained(tmp_path)
    pipe = open_pipeline(models.resolve(tiny_sd), "float32", str(tmp_path), Placement())
    assert pipe.vae.config.decoder_block_out_channels == [4, 4, 4]


def test_a_damaged_autoencoder_is_said(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(models.ModelError, match="is damaged"):
        open_pipeline(models.resolve(tiny_sd), "float32", str(tmp_path), Placement())


def test_autoencoder_for_other_latents_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    levels = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    tiny = AutoencoderTiny(**levels, latent_channels=16, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    tiny.save_pretrained(tmp_path)
    with pytest.raises(models.ModelError, match="latents of 16 channels"):
        open_pipeline(models.resolve(tiny_sd), "float32", str(tmp_path), Placement())


def test_what_is_no_autoencoder_is_refused(tiny_sd: Path) -> None:
    with pytest.raises(models.ModelError, match="emoji-clip is not an autoencoder for"):
        open_pipeline(models.resolve(tiny_sd), "float32", "emoji-clip", Placement())


def test_compiled_denoiser_runs_through_the_compiler(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def compile_(function: object) -> object:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    pipe = open_pipeline(models.resolve(tiny_sd), "float32", None, Placement(compiled=True))
    assert compiled == [pipe.unet.forward.__wrapped__]
    assert inspect.signature(pipe.unet.forward) == inspect.signature(type(pipe.unet).forward.__get__(pipe.unet))


@pytest.mark.slow
def test_forecasts_do_not_compile_each_step_anew(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=counter))
    method = DeepCache(3, forecast=Taylor(1))
    pictures = []
    for compiled in (False, True):
        pipe = open_pipeline(models.resolve(tiny_sd), "float32", None, Placement(compiled=compiled))
        pipe.set_progress_bar_config(disable=True)
        with accelerate(pipe, method):
            noise = torch.Generator().manual_seed(0)
            pictures.append(pipe("cat", num_inference_steps=12, output_type="latent", generator=noise).images)
    assert torch.equal(*pictures)
    assert counter.frame_count <= 6
    torch._dynamo.reset()


@pytest.mark.parametrize("mended", [True, False])
def test_a_library_left_torn_is_built_anew_once(tmp_path: Path, mended: bool) -> None:
    torn, calls = tmp_path / "a.so", []
    torn.write_bytes(b"")

    def compiled(value: int) -> int:
        calls.append(value)
        if torn.exists():
            raise InductorError(ImportError(f"{torn}: file too short"), None)
        if not mended:
            torn.write_bytes(b"")
            raise InductorError(ImportError(f"{torn}: file too short"), None)
        return value + 1

    if mended:
        assert _rebuilding(compiled)(1) == 2
    else:
        with pytest.raises(InductorError, match="file too short"):
            _rebuilding(compiled)(1)
    assert calls == [1, 1]


def test_compiling_needs_a_compiler(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(models.ModelError, match=r"--compile needs a C\+\+ compiler.*apt install g\+\+"):
        open_pipeline(models.resolve(tiny_sd), "float32", None, Placement(compiled=True))


def test_device_maps_need_an_accelerator(tiny_sd: Path) -> None:
    for name in models.DEVICE_MAPS:
        with pytest.raises(models.ModelError, match="needs an accelerator"):
            open_pipeline(models.resolve(tiny_sd), "float32", None, Placement("cpu", name))
    with pytest.raises(models.ModelError, match="unknown device map 'magic'"):
        models.load(tiny_sd, device_map="magic")


def test_devices_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices(Placement("cpu"), 3) == [torch.device("cpu")]
    monkeypatch.setattr("diffaccel.models.placement.choose_device", lambda device: torch.device(device or "cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    assert devices(Placement()) == [torch.device("cuda")]
    assert devices(Placement("cuda:2"), 2) == [torch.device("cuda:2")]
    assert devices(Placement(), 2) == [torch.device("cuda", index) for index in (0, 1)]
    assert len(devices(Placement(device_map="balanced"))) == 4


def test_an_autoencoder_of_another_models_latents_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    """SDXL's has as many channels as that of Stable Diffusion, and other latents."""
    shutil.copytree(tiny_sd, tmp_path / "model")
    sizes = {"block_out_channels": (4,), "norm_num_groups": 2}
    AutoencoderKL(**sizes).save_pretrained(tmp_path / "model" / "vae")
    AutoencoderKL(**sizes, scaling_factor=0.13025).save_pretrained(tmp_path / "xl")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderKL"]
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(models.ModelError, match=r"scales them by 0.13025, and .* by 0.18215"):
        open_pipeline(models.resolve(tmp_path / "model"), "float32", str(tmp_path / "xl"), Placement())
