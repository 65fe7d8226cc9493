"""A picture is the stock pipeline's picture, whatever its place in a batch and whatever was rendered before it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file

from diffaccel import models
from diffaccel.attach.handle import accelerate
from diffaccel.batch.jobs import Job
from diffaccel.batch.render import Renderer, RenderError
from diffaccel.methods import DeepCache

JOB = Job(id="a", prompt="a red heart", seed=7, model="tiny", dtype="float32", steps=6, guidance_scale=2.0)
CACHED = replace(JOB, cache="deepcache:interval=3,branch=0")


@pytest.fixture
def renderer(tiny_sd: Path) -> Iterator[Renderer]:
    with Renderer(models.load(tiny_sd)) as renderer:
        yield renderer


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def stock(folder: Path, **arguments: object) -> Image.Image:
    pipe = models.load(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    values = {"num_inference_steps": 6, "guidance_scale": 2.0, "generator": torch.Generator().manual_seed(7)}
    return pipe("a red heart", **values, **arguments).images[0]


def test_equals_the_stock_pipeline(tiny_sd: Path, renderer: Renderer) -> None:
    job = replace(JOB, scheduler="euler", negative_prompt="blue", width=40, height=24)
    (image,) = renderer.render([job]).images
    assert image.size == (40, 24)
    assert np.array_equal(pixels(image), pixels(stock(tiny_sd, negative_prompt="blue", width=40, height=24)))


def test_cached_equals_accelerate(tiny_sd: Path, renderer: Renderer) -> None:
    pipe = models.load(tiny_sd)
    pipe.set_progress_bar_config(disable=True)
    with accelerate(pipe, DeepCache(interval=3, branch=0)):
        expected = pipe(
            "a red heart", num_inference_steps=6, guidance_scale=2.0, generator=torch.Generator().manual_seed(7)
        ).images[0]
    assert np.array_equal(pixels(renderer.render([CACHED]).images[0]), pixels(expected))


@pytest.mark.parametrize("cache", ["none", "deepcache:interval=3,branch=0"])
def test_picture_does_not_depend_on_its_batch(renderer: Renderer, cache: str) -> None:
    others = [replace(JOB, id=str(seed), seed=seed, prompt=f"p{seed}", cache=cache) for seed in range(3)]
    alone = renderer.render([replace(JOB, cache=cache)]).images[0]
    among = renderer.render([*others, replace(JOB, cache=cache)]).images[3]
    assert np.abs(pixels(alone) - pixels(among)).max() <= 1


@pytest.mark.slow
def test_picture_does_not_depend_on_what_came_before(renderer: Renderer, tiny_lora: Path) -> None:
    first = renderer.render([CACHED]).images[0]
    plain = renderer.render([JOB]).images[0]
    adapted = renderer.render([replace(CACHED, lora=str(tiny_lora), scheduler="lcm", steps=2)]).images[0]
    assert np.array_equal(pixels(renderer.render([CACHED]).images[0]), pixels(first))
    assert np.array_equal(pixels(renderer.render([JOB]).images[0]), pixels(plain))
    assert not np.array_equal(pixels(adapted), pixels(first))


@pytest.mark.slow
def test_calls_are_counted_under_caching_only(tiny_sd: Path) -> None:
    with Renderer(models.load(tiny_sd)) as renderer:
        renderer.render([CACHED, replace(CACHED, seed=8)])
        renderer.render([JOB])
        renderer.render([CACHED])
    assert (renderer.calls.computed, renderer.calls.replayed) == (4, 8)
    assert 0 < renderer.calls.macs_saved < 1


@pytest.mark.slow
def test_methods_compose(renderer: Renderer) -> None:
    both = renderer.render([replace(CACHED, cache="deepcache:interval=3,branch=0 + textkvcache")]).images[0]
    assert np.array_equal(pixels(both), pixels(renderer.render([CACHED]).images[0]))


def test_nothing_stays_attached(tiny_sd: Path) -> None:
    pipe = models.load(tiny_sd)
    with Renderer(pipe) as renderer:
        renderer.render([CACHED])
    accelerate(pipe, DeepCache()).detach()


@pytest.mark.slow
def test_image_to_image(tmp_path: Path, renderer: Renderer) -> None:
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    start = replace(CACHED, init_image=str(tmp_path / "red.png"), width=32, height=32)
    weak, strong = (renderer.render([replace(start, strength=strength)]) for strength in (0.2, 1.0))
    assert weak.images[0].size == (32, 32)
    assert not np.array_equal(pixels(weak.images[0]), pixels(strong.images[0]))
    assert renderer.render([replace(start)]).jobs[0].strength == 0.8


def test_unreadable_init_image_is_named(renderer: Renderer) -> None:
    with pytest.raises(RenderError, match=r"init_image: cannot read nowhere\.png"):
        renderer.render([replace(JOB, init_image="nowhere.png")])


def test_setting_that_the_pipeline_lacks_is_named(renderer: Renderer) -> None:
    with pytest.raises(RenderError, match=r"has no setting strength: it needs .* \(init_image\)"):
        renderer.render([replace(JOB, strength=0.5)])


@pytest.mark.slow
def test_open_settings_are_filled_in_from_the_pipeline(renderer: Renderer) -> None:
    (job,) = renderer.render([replace(JOB, steps=None, guidance_scale=None)]).jobs
    assert (job.steps, job.guidance_scale) == (50, 7.5)


def test_pictures_that_are_not_finite_are_refused(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = renderer._pipe.vae
    decode = vae.decode

    def poisoned(latents: torch.Tensor, **arguments: object) -> object:
        return decode(latents * torch.nan, **arguments)

    monkeypatch.setattr(vae, "decode", poisoned)
    with pytest.raises(RenderError, match="not finite; try --dtype float32"):
        renderer.render([JOB])


def test_a_strength_that_leaves_no_step_is_named(tmp_path: Path, renderer: Renderer) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(RenderError, match=r"strength: 0\.1 of 6 steps is less than one step"):
        renderer.render([replace(JOB, init_image=str(tmp_path / "a.png"), strength=0.1)])


def test_a_pipeline_that_cannot_start_from_a_picture_is_named(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unheard(type(renderer._pipe)):  # type: ignore[misc]
        pass

    monkeypatch.setattr(renderer._pipe, "__class__", Unheard)
    with pytest.raises(RenderError, match="init_image: Unheard cannot start from a picture"):
        renderer.render([replace(JOB, init_image="a.png")])


def test_a_size_that_leaves_a_part_of_a_patch_is_named() -> None:
    job = replace(JOB, model="emoji-dit", width=136, height=128)
    with Renderer(models.load("emoji-dit")) as renderer, pytest.raises(RenderError, match="size: emoji-dit paints mul"):
        renderer.render([job])


@pytest.mark.slow
def test_a_lora_that_breaks_off_leaves_nothing_of_those_before_it(
    renderer: Renderer, tiny_lora: Path, tmp_path: Path
) -> None:
    plain = renderer.render([JOB]).images[0]
    save_file({"lora_unet_conv_in.hada_w1_a": torch.ones(2, 2)}, tmp_path / "half.safetensors")
    for _ in range(2):
        with pytest.raises(KeyError, match="hada_w1_b"):
            renderer.render([replace(JOB, lora=f"{tiny_lora} + {tmp_path / 'half.safetensors'}")])
        assert np.array_equal(pixels(renderer.render([JOB]).images[0]), pixels(plain))
