"""A picture depends on nothing but its own row: each setting of a row, alone and beside a row with another value."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stream_pipelines
from cells import cells
from PIL import Image
from tiny_pipeline import build_lora

from diffaccel.batch.jobs import Ingredients, Job, Planner, batches, plan_jobs
from diffaccel.batch.readers import PlacedRow
from diffaccel.batch.render import Renderer
from diffaccel.batch.settings import PictureSettings, PromptRow

BASE = Job("a", "a red heart", 3, "tiny", "float32", steps=3, guidance_scale=2.0, width=32, height=32)
SETTINGS: dict[str, tuple[Any, Any]] = {
    "prompt": ("a cat", "a blue dog a red star a cat"),
    "negative_prompt": ("", "blurry"),
    "seed": (3, 2**63 - 1),
    "steps": (3, 4),
    "guidance_scale": (2.0, 1.0),
    "width": (32, 48),
    "height": (32, 16),
    "cache": ("none", "intervalcache:schedule=uniform(2)"),
}
UNET = {
    "scheduler": ("euler-a", "lcm"),
    "guidance": ("full", "one-time"),
    "cache": ("none", "deepcache:interval=2,branch=0"),
}
FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, tuple[Any, Any]]]] = {
    "sd": (stream_pipelines.sd, UNET | {"lora": (None, "lora"), "init_image": ("one.png", "two.png")}),
    "sdxl": (stream_pipelines.sdxl, UNET | {"init_image": ("one.png", "two.png")}),
    "sd3": (stream_pipelines.sd3, {"init_image": ("one.png", "two.png")}),
    "flux": (lambda: stream_pipelines.flux(guidance_embeds=True), {"init_image": ("one.png", "two.png")}),
    "pixart": (stream_pipelines.pixart, {}),
}
CASES = [(family, name) for family, (_, more) in FAMILIES.items() for name in SETTINGS | more]
CASES.remove(("flux", "negative_prompt"))  # it has no negative prompt without guidance of the classifier-free kind


@pytest.fixture(scope="module")
def renderers() -> dict[str, Renderer]:
    return {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files")
    for name, size, colour in (
        ("one.png", (32, 32), "navy"),
        ("two.png", (32, 32), "white"),
        ("wide.png", (48, 16), "red"),
    ):
        Image.new("RGB", size, colour).save(place / name)
    build_lora(stream_pipelines.DATA / "tiny-sd", place / "lora")
    return place


def pictures(renderer: Renderer, *jobs: Job) -> dict[str, np.ndarray]:
    rendered = [renderer.render(batch) for batch in batches(jobs, 4)]
    return {job.id: np.asarray(image) for each in rendered for job, image in zip(each.jobs, each.images, strict=True)}


QUICK = (
    *(("sd", name) for name in ("seed", "steps", "cache", "lora")),
    ("sdxl", "negative_prompt"),
    ("sd3", "init_image"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    cells(CASES, quick=QUICK.__contains__, name="-".join),
)
def test_a_setting_touches_no_other_row(renderers: dict[str, Renderer], folder: Path, family: str, name: str) -> None:
    build, more = FAMILIES[family]
    if family not in renderers:
        pipe = build()
        pipe.vae.register_to_config(
            scaling_factor=20.0
        )  # random weights encode every picture to nearly the same latents
        renderers[family] = Renderer(pipe)
    renderer = renderers[family]
    values = (SETTINGS | more)[name]
    if name in ("init_image", "lora"):
        values = tuple(value and str(folder / value) for value in values)
    base = replace(BASE, strength=0.4) if name == "init_image" else BASE
    one, other = (replace(base, **{name: value}) for value in values)
    alone: list[np.ndarray] = []
    for job, beside in ((one, other), (other, one)):
        neighbour = replace(beside, id="b")
        same_shape = job.group == neighbour.group
        company = [replace(job, id="b", seed=9)] if same_shape else []
        alone.append(pictures(renderer, job, *company)["a"])
        assert np.array_equal(
            pictures(renderer, *((job, neighbour) if same_shape else (neighbour, job)))["a"], alone[-1]
        )
    assert not np.array_equal(*alone)


def test_a_picture_has_the_size_of_its_own_start(folder: Path) -> None:
    rows = [PlacedRow("-", PromptRow(prompt="a", init_image=str(folder / name))) for name in ("one.png", "wide.png")]
    jobs = plan_jobs(rows, Planner(PictureSettings(steps=3, strength=0.4), Ingredients("tiny", "float32"))).jobs
    with Renderer(stream_pipelines.sd()) as renderer:
        sizes = [picture.shape for picture in pictures(renderer, *jobs).values()]
    assert sizes == [(32, 32, 3), (16, 48, 3)]


def test_one_side_that_is_asked_for_keeps_the_shape_of_the_start(folder: Path) -> None:
    row = PlacedRow("-", PromptRow(prompt="a", init_image=str(folder / "wide.png"), width=96))
    (job,) = plan_jobs([row], Planner(PictureSettings(), Ingredients("tiny", "float32"))).jobs
    assert (job.width, job.height) == (96, 32)
