"""Whether caching fits is told from configuration files as the loaded model tells it."""

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest

from diffaccel import models
from diffaccel.attach.handle import accelerate
from diffaccel.batch.call_defaults import _imported, _read, call_defaults
from diffaccel.batch.fit import misfits
from diffaccel.batch.jobs import Job
from diffaccel.batch.settings import parse_cache
from diffaccel.networks import UnsupportedModelError

JOB = Job(id="a", prompt="p", seed=0, model="m", dtype="float32", steps=20, scheduler="dpm++")
SPECS = (
    "deepcache:interval=2",
    "deepcache:branch=40",
    "deepcache + encoderpropagation",
    "tgate",
    "textkvcache + deepcache",
    "intervalcache:interval=2",
    "blockcache:threshold=0.1",
    "deltacache",
    "featureinheritance",
    "residualguidance",
    "networkswitch:small='emoji-sd'",
    "networkswitch:small='emoji-xl'",
)


@pytest.mark.slow
@pytest.mark.parametrize("cache", SPECS)
def test_says_what_the_loaded_network_says(tiny_sd: Path, tiny_pipe: Any, cache: str) -> None:
    found = misfits([replace(JOB, cache=cache)], models.resolve(tiny_sd)).get("a", "")
    words = ""
    try:
        accelerate(tiny_pipe, *parse_cache(cache)).detach()
    except (ValueError, UnsupportedModelError) as error:
        words = str(error)
    assert found.startswith(words) or words.startswith(found)  # what is loaded may tell more
    assert bool(found) == bool(words)


def test_transformers_and_their_remedy() -> None:
    source = models.resolve("emoji-dit")
    jobs = [replace(JOB, id=cache, cache=cache) for cache in ("deepcache", "blockcache:threshold=0.1", "none")]
    found = misfits(jobs, source)
    assert list(found) == ["deepcache"]
    assert "; methods that fit it: " in found["deepcache"]
    assert "intervalcache" in found["deepcache"].rpartition(":")[2]
    assert "encoderpropagation" not in found["deepcache"]


def test_calls_are_the_samplers(tiny_sd: Path) -> None:
    """Heun calls the network twice a step, and a run from a picture takes a part of the steps, known in the run."""
    cache = "deepcache:schedule=steps((0, 25))"
    source = models.resolve(tiny_sd)
    assert "20 network calls" in misfits([replace(JOB, cache=cache)], source)["a"]
    for fits in ({"scheduler": "heun"}, {"steps": 26}, {"steps": None}, {"init_image": "a.png"}):
        assert misfits([replace(JOB, cache=cache, **fits)], source) == {}


def test_a_damaged_configuration_is_said(tiny_sd: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_sd / "scheduler", tmp_path / "scheduler")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{")
    source = replace(models.resolve(tiny_sd), folder=tmp_path)
    with pytest.raises(models.ModelError, match="cannot read the unet of"):
        misfits([replace(JOB, cache="deepcache")], source)


def test_a_model_without_a_denoiser_has_nothing_to_reuse(tiny_sd: Path) -> None:
    source = models.resolve(tiny_sd)
    bare = replace(source, index={name: value for name, value in source.index.items() if name != "unet"})
    assert "has no denoiser" in misfits([replace(JOB, cache="deepcache")], bare)["a"]


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_defaults_are_read_in_the_source_as_python_has_them(name: str) -> None:
    assert _read(name) == _imported(name)
    assert _read(name)["guidance_scale"] > 0


@pytest.mark.exhaustive
def test_defaults_of_every_pipeline_are_read_as_python_has_them() -> None:
    kinds = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Pipeline")}
    names = [name for name, kind in kinds.items() if issubclass(kind, diffusers.DiffusionPipeline)]
    read = 0
    for name in names:
        with suppress(LookupError, ValueError):
            assert _read(name) == _imported(name), name
            read += 1
    assert read > 0.9 * len(names)


def test_defaults_of_what_is_no_pipeline_of_diffusers() -> None:
    assert call_defaults("NoSuchPipeline") == {}
