"""Both roads to a custom pipeline, offline; what is saved loads anywhere; pickles and unknown libraries are refused."""

import json
import logging
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import make_hub_folders
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

import diffaccel.pipelines
from diffaccel import models
from diffaccel.pipelines import FastTextToImagePipeline, StreamDiffusionPipeline

FILES = Path(__file__).parents[2] / "pipelines"
NAMES = sorted(path.stem for path in FILES.glob("*.py") if path.stem not in ("__init__", "base", "stock"))
CALL = {"prompt": "a cat", "num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}


def picture(pipe: Any, **options: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    images: torch.Tensor = pipe(**CALL | options, generator=torch.Generator().manual_seed(0)).images
    return images


@pytest.fixture(scope="module")
def plain(tiny_sd: Path) -> torch.Tensor:
    return picture(StableDiffusionPipeline.from_pretrained(tiny_sd))


@pytest.fixture
def copied(tiny_sd: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to change."""
    return Path(shutil.copytree(tiny_sd, tmp_path / "model"))


def test_every_file_is_offered_by_the_package() -> None:
    assert len(NAMES) == 8
    homes = {getattr(diffaccel.pipelines, name).__module__ for name in diffaccel.pipelines.__all__}
    assert homes == {f"diffaccel.pipelines.{name}" for name in NAMES}


@pytest.mark.parametrize("name", ["fast_text_to_image", "stream_diffusion"])
def test_a_file(name: str, tiny_sd: Path) -> None:
    file = str(FILES / f"{name}.py")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tiny_sd, custom_pipeline=file)
    pipe = DiffusionPipeline.from_pretrained(tiny_sd, custom_pipeline=file, trust_remote_code=True)
    home = import_module(f"diffaccel.pipelines.{name}")
    ours = {base.__name__ for base in type(pipe).__mro__} & set(diffaccel.pipelines.__all__)
    assert [hasattr(home, each) for each in ours] == [True]
    assert isinstance(pipe, StableDiffusionPipeline)


def test_nothing_is_said_of_parts_that_fit(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("diffusers.pipelines.pipeline_utils"), "warning", said.append)
    FastTextToImagePipeline.from_pretrained(tiny_sd)
    assert not [words for words in said if "Expected types" in words]


def test_a_file_draws_what_the_package_draws(tiny_sd: Path, plain: torch.Tensor) -> None:
    file = str(FILES / "fast_text_to_image.py")
    loaded = DiffusionPipeline.from_pretrained(tiny_sd, custom_pipeline=file, trust_remote_code=True)
    imported = FastTextToImagePipeline.from_pretrained(tiny_sd)
    assert torch.equal(picture(loaded), plain)
    assert torch.equal(picture(imported), plain)
    cached = picture(loaded, cache="deepcache:interval=2")
    assert not torch.equal(cached, plain)
    assert torch.equal(picture(imported, cache={"type": "deepcache", "interval": 2}), cached)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_alone_in_a_repository_of_its_own(name: str, tmp_path: Path) -> None:
    from diffusers.pipelines.pipeline_loading_utils import _get_custom_pipeline_class

    shutil.copy(FILES / f"{name}.py", tmp_path / "pipeline.py")
    found = _get_custom_pipeline_class(str(tmp_path), trust_remote_code=True)
    assert found.__name__ in diffaccel.pipelines.__all__


def test_a_repository_of_one_pipeline(tiny_sd: Path, tmp_path: Path, plain: torch.Tensor) -> None:
    shutil.copy(FILES / "fast_text_to_image.py", tmp_path / "pipeline.py")
    pipe = DiffusionPipeline.from_pretrained(tiny_sd, custom_pipeline=str(tmp_path), trust_remote_code=True)
    assert torch.equal(picture(pipe), plain)


def test_a_model_repository_with_the_folder_uploaded_as_it_is(copied: Path, plain: torch.Tensor) -> None:
    for file in FILES.iterdir():
        if file.is_file():
            shutil.copy(file, copied)
    pipe = DiffusionPipeline.from_pretrained(copied, custom_pipeline="fast_text_to_image", trust_remote_code=True)
    assert torch.equal(picture(pipe), plain)
    assert picture(pipe, cache="deepcache").shape == plain.shape


def test_a_model_repository_that_names_its_pipeline(copied: Path, plain: torch.Tensor) -> None:
    shutil.copy(FILES / "fast_text_to_image.py", copied)
    index = json.loads((copied / "model_index.json").read_text())
    index["_class_name"] = ["fast_text_to_image", "FastTextToImagePipeline"]
    (copied / "model_index.json").write_text(json.dumps(index))
    pipe = DiffusionPipeline.from_pretrained(copied, trust_remote_code=True)
    assert torch.equal(picture(pipe), plain)
    assert type(pipe).__mro__[1].__name__ == "FastTextToImagePipeline"


def test_a_model_in_the_local_hub_cache_at_a_revision(tiny_sd: Path, tmp_path: Path, plain: torch.Tensor) -> None:
    commit = "0" * 40
    place = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_sd, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "v1").write_text(commit)
    options = {"revision": "v1", "cache_dir": str(tmp_path), "local_files_only": True}
    assert torch.equal(picture(FastTextToImagePipeline.from_pretrained("someone/tiny", **options)), plain)
    index = place / "snapshots" / commit / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["torchvision", "UNet"]}))
    with pytest.raises(models.ModelError, match="'torchvision', which is not one of"):
        FastTextToImagePipeline.from_pretrained("someone/tiny", **options)


def test_saved_and_loaded_by_all(tiny_sd: Path, tmp_path: Path, plain: torch.Tensor) -> None:
    FastTextToImagePipeline.from_pretrained(tiny_sd).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    stock = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(stock) is StableDiffusionPipeline
    for pipe in (stock, FastTextToImagePipeline.from_pretrained(tmp_path)):
        assert torch.equal(picture(pipe), plain)


@pytest.mark.slow
def test_variant_and_dtype(tiny_sd: Path, tmp_path: Path) -> None:
    StableDiffusionPipeline.from_pretrained(tiny_sd, dtype=torch.bfloat16).save_pretrained(tmp_path, variant="bf16")
    assert list((tmp_path / "unet").glob("*.bf16.safetensors"))
    pipe = FastTextToImagePipeline.from_pretrained(tmp_path, variant="bf16", dtype=torch.bfloat16)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="fp16"):
        FastTextToImagePipeline.from_pretrained(tmp_path, variant="fp16")


@pytest.mark.slow
@pytest.mark.parametrize("road", ["file", "package", "package with consent"])
def test_pickles_are_refused(road: str, copied: Path) -> None:
    weights = next((copied / "unet").glob("*.safetensors"))
    network = StableDiffusionPipeline.from_pretrained(copied).unet
    torch.save(network.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    kind = DiffusionPipeline if road == "file" else FastTextToImagePipeline
    file = {"custom_pipeline": str(FILES / "fast_text_to_image.py")} if road == "file" else {}
    with pytest.raises(models.ModelError, match=r"pickled weights only .* safe_serialization=True"):
        kind.from_pretrained(copied, trust_remote_code=road != "package", **file)


def test_pickles_are_not_asked_for(tiny_sd: Path) -> None:
    with pytest.raises(models.ModelError, match="leave use_safetensors out"):
        FastTextToImagePipeline.from_pretrained(tiny_sd, use_safetensors=False)


def test_other_libraries_need_consent(copied: Path) -> None:
    index = json.loads((copied / "model_index.json").read_text())
    index["scheduler"] = ["wave", "Scheduler"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(models.ModelError, match="scheduler comes from 'wave', which is not one of diffusers"):
        FastTextToImagePipeline.from_pretrained(copied)
    with pytest.raises(ValueError, match="wave is not one of the libraries Diffusers can load"):
        FastTextToImagePipeline.from_pretrained(copied, trust_remote_code=True)


def test_bundled_by_name() -> None:
    pipe = StreamDiffusionPipeline.from_pretrained("emoji-sd")
    assert isinstance(pipe, StableDiffusionPipeline)
    assert pipe.unet.config.sample_size == 16


@pytest.mark.parametrize("name", ["FastVideoPipeline", "CausalVideoPipeline"])
def test_a_model_of_pictures_makes_no_video_without_a_motion_adapter(name: str, tiny_sd: Path) -> None:
    with pytest.raises(TypeError, match=f"{name} cannot be built of .*unet: UNet2DConditionModel"):
        getattr(diffaccel.pipelines, name).from_pretrained(tiny_sd)


def test_components_that_fit_nothing(tiny_sd: Path) -> None:
    parts = StableDiffusionPipeline.from_pretrained(tiny_sd).components
    with pytest.raises(TypeError, match=r"cannot be built of .*vae: AutoencoderTiny.*StableDiffusionXLPipeline"):
        FastTextToImagePipeline(**parts | {"unet": parts["vae"]})
    with pytest.raises(TypeError, match="by name, not by position"):
        FastTextToImagePipeline(parts["vae"])


def test_from_pipe_takes_a_dtype_and_no_unknown_names(tiny_sd: Path) -> None:
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipe = FastTextToImagePipeline.from_pipe(stock, dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="StableDiffusionPipeline has no 'unett': it takes vae, text_encoder"):
        FastTextToImagePipeline.from_pipe(stock, unett=1)


def test_the_script_lays_out_repositories(tiny_sd: Path, tmp_path: Path, plain: torch.Tensor) -> None:
    for file in make_hub_folders.files():
        folder = make_hub_folders.make(file, tmp_path)
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "pipeline.py"]
        assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0\nlibrary_name: diffusers\n")
    folder = tmp_path / "fast-text-to-image"
    pipe = DiffusionPipeline.from_pretrained(tiny_sd, custom_pipeline=str(folder), trust_remote_code=True)
    assert torch.equal(picture(pipe), plain)
