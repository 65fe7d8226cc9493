"""A model folder is checked before anything in it is loaded."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffaccel import models
from diffaccel.models import ModelError


@pytest.fixture
def copy(tiny_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd, tmp_path / "model"))


def change_index(folder: Path, **entries: object) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | entries))


def test_local_folder_is_found(tiny_sd: Path) -> None:
    source = models.resolve(tiny_sd)
    assert source.folder == tiny_sd
    assert source.denoiser == "unet"


def test_unknown_name_lists_the_bundled_models() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'emoji-xl'; bundled: .*Hub id"):
        models.resolve("emoji-xl")


def test_hub_id_without_network_says_so() -> None:
    with pytest.raises(ModelError, match="cannot reach the Hub for 'owner/name'"):
        models.resolve("owner/name")


def test_folder_without_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        models.resolve(tmp_path)


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is damaged: its header claims 0 bytes"):
        models.resolve(tmp_path / "model.safetensors")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model_index\.json"):
        models.resolve(tmp_path)


@pytest.mark.parametrize("library", ["os", "my_package", "subprocess", "diffusers_evil", 3, "stable_diffusion.evil"])
def test_unlisted_library_is_refused(copy: Path, library: object) -> None:
    change_index(copy, unet=[library, "Popen"])
    with pytest.raises(ModelError, match=r"unet comes from .* not one of diffusers, transformers, diffaccel"):
        models.resolve(copy)


def test_pipeline_of_its_own_is_refused(copy: Path) -> None:
    (copy / "pipeline.py").write_text("raise AssertionError('ran')")
    change_index(copy, _class_name=["pipeline", "Evil"])
    with pytest.raises(ModelError, match="asks for code of its own"):
        models.resolve(copy)


def test_code_beside_a_component_is_refused(copy: Path) -> None:
    (copy / "unet" / "diffusers.py").write_text("raise AssertionError('ran')")
    with pytest.raises(ModelError, match="unet comes from"):
        models.resolve(copy)


def test_safety_checker_of_diffusers_is_allowed(copy: Path) -> None:
    change_index(copy, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    shutil.copytree(copy / "text_encoder", copy / "safety_checker")
    assert models.resolve(copy).folder == copy


def test_pickled_weights_are_refused(copy: Path) -> None:
    for weights in (copy / "unet").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"pickled weights only .*safe_serialization=True"):
        models.resolve(copy)


@pytest.mark.parametrize("length", [99 * 2**20, 2**63, 10**6])
def test_inflated_header_is_refused(copy: Path, length: int) -> None:
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match=f"header claims {length} bytes"):
        models.resolve(copy)


def test_empty_weight_file_is_refused(copy: Path) -> None:
    next((copy / "unet").glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(ModelError, match=r"cannot load|damaged"):
        models.load(copy)


def test_links_to_files_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the Hub's cache, where `style.safetensors` leads to a file that is called by its hash."""
    for folder in ("blobs", "snapshots"):
        (tmp_path / folder).mkdir()
    (tmp_path / "blobs" / "4be2").touch()
    (tmp_path / "snapshots" / "style.safetensors").symlink_to(tmp_path / "blobs" / "4be2")
    (tmp_path / "latest").symlink_to(tmp_path / "snapshots")
    monkeypatch.chdir(tmp_path)
    assert models.located("latest/style.safetensors") == str(tmp_path / "snapshots" / "style.safetensors")
    assert models.located("latest") == str(tmp_path / "snapshots")


def broken(folder: Path, part: str, *files: str) -> None:
    """Take files out of a part, or all of it."""
    for name in files:
        (folder / part / name).unlink()
    if not files:
        shutil.rmtree(folder / part)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda copy: broken(copy, "tokenizer"), "has no tokenizer, which its model_index.json names"),
        (
            lambda copy: broken(copy, "tokenizer", "tokenizer.json"),
            "has no words in its tokenizer: .* no tokenizer.json",
        ),
        (
            lambda copy: (copy / "tokenizer" / "tokenizer.json").rename(copy / "tokenizer" / "vocab.json"),
            "has no words in its tokenizer: .*tokenizer has no merges.txt",
        ),
        (lambda copy: broken(copy, "vae"), "has no vae, which its model_index.json names: there is no folder .*vae"),
        (lambda copy: broken(copy, "unet", "config.json"), "has no configuration of its unet: .* has no config.json"),
        (
            lambda copy: next((copy / "unet").glob("*.safetensors")).rename(copy / "unet" / "tuned.safetensors"),
            "a name that is not looked for: .*tuned.safetensors; it must be diffusion_pytorch_model.safetensors",
        ),
        (
            lambda copy: (copy / "text_encoder" / "model.safetensors").rename(
                copy / "text_encoder" / "model-00001-of-00002.safetensors"
            ),
            "shards need their .safetensors.index.json",
        ),
        (
            lambda copy: (copy / "tokenizer" / "tokenizer.json").write_text(
                "version https://git-lfs.github.com/spec/v1"
            ),
            "tokenizer.json is a pointer of Git LFS, .*: fetch it with git lfs pull",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(copy: Path, change: Callable[[Path], object], words: str) -> None:
    change(copy)
    with pytest.raises(ModelError, match=words):
        models.resolve(copy)


def test_what_a_folder_without_an_index_is_says_what_to_give(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--name"
    shutil.move(copy, cache / "snapshots" / "0a1b")
    whole = cache / "snapshots" / "0a1b"
    for folder, words in (
        (cache, rf"no model_index.json: give a folder that has one: {re.escape(str(whole))}$"),
        (whole / "unet", r"it holds one network \(UNet2DConditionModel\): give the folder of the whole pipeline"),
        (tmp_path / "checkpoints", r"give the file in it that is the model, as .*sd15\.safetensors"),
    ):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / "sd15.safetensors").touch()
        with pytest.raises(ModelError, match=words):
            models.resolve(folder)
    (tmp_path / "gone.safetensors").symlink_to("nowhere")
    for name, words in (
        ("gone.safetensors", "is a link to nowhere, which is not there"),
        ("models/sd15.safetensors", "unknown model '.*models/sd15.safetensors'"),
    ):
        with pytest.raises(ModelError, match=words):
            models.resolve(tmp_path / name, "sd-1.5")
    with pytest.raises(ModelError, match=r"unknown model .models/sd15\.safetensors."):
        models.resolve("models/sd15.safetensors")
