"""Custom pipelines go every road that the stock pipelines go which they claim to be."""

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import stream_pipelines
import torch
import walk
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from walk_edits import Told

import diffaccel.pipelines
from diffaccel import DeepCache, accelerate
from diffaccel.pipelines import (
    FastImageToImagePipeline,
    FastTextToImagePipeline,
    FastTransformerPipeline,
    fast_image_to_image,
    fast_inpaint,
    fast_text_to_image,
    fast_transformer,
    fast_video,
)
from diffaccel.pipelines.stock import required_by

FILES_WITH_STOCK = (fast_text_to_image, fast_image_to_image, fast_inpaint, fast_transformer, fast_video)
# What a pipeline is told after it was made does not go along in diffusers' from_pipe, either.
TOLD_AFTERWARDS = ("AnimateDiffPAG", "AnimateDiffPipeline, Free", "HunyuanVideo15", "LongCatImage")
EVERY = [
    name
    for name, stop in walk.STOPS.items()
    if any(name.partition("Pipeline")[0] in file.STOCK for file in FILES_WITH_STOCK)
    and not (stop.large or name.startswith(TOLD_AFTERWARDS))
]
FILES = Path(diffaccel.pipelines.__file__).parent
CALL = {"prompt": "a cat", "num_inference_steps": 3, "height": 32, "width": 32, "output_type": "pt"}


def picture(pipe: Any, **more: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(**CALL, generator=torch.Generator().manual_seed(0), **more).images


@pytest.fixture
def fast() -> Any:
    return FastTextToImagePipeline.from_pipe(stream_pipelines.sd())


def test_from_pipe_with_a_custom_file_keeps_all_parts() -> None:
    stock = stream_pipelines.sd()
    file = str(FILES / "fast_text_to_image.py")
    fast = DiffusionPipeline.from_pipe(stock, custom_pipeline=file, trust_remote_code=True)
    assert fast.text_encoder is stock.text_encoder
    assert fast.unet is stock.unet
    assert torch.equal(picture(fast), picture(stock))
    assert not torch.equal(picture(fast, cache="deepcache:interval=3"), picture(stock))


def test_auto_pipelines_know_it(fast: Any) -> None:
    parts = {"vae": fast.vae}  # the tiny autoencoder is not of the class that diffusers expects
    assert type(AutoPipelineForImage2Image.from_pipe(fast, **parts)) is StableDiffusionImg2ImgPipeline
    assert type(AutoPipelineForInpainting.from_pipe(fast, **parts)) is StableDiffusionInpaintPipeline


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_are_of_the_same_kind_and_paint_the_same(how: Any, fast: Any) -> None:
    copied = how(fast)
    assert type(copied) is type(fast)
    assert torch.equal(picture(copied, cache="deepcache:interval=2"), picture(fast, cache="deepcache:interval=2"))


def test_an_accelerated_one_is_not_copied(fast: Any) -> None:
    with accelerate(fast, DeepCache()), pytest.raises(RuntimeError, match="cannot be copied or pickled"):
        copy.deepcopy(fast)


def meanwhile(work: Callable[[], None]) -> Callable[..., dict[str, Any]]:
    """A callback of steps that does something on another thread, from beginning to end, after the first one."""

    def during(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        return tensors

    return during


def test_calls_of_two_threads_share_no_cache(fast: Any) -> None:
    """Hooks lie on the network: a call without a cache would reuse what the other one's has it reuse."""
    other, refused = copy.copy(fast), []
    other.scheduler = type(fast.scheduler).from_config(fast.scheduler.config)

    def beside() -> None:
        for options in ({}, {"cache": "deepcache:interval=2"}):
            try:
                picture(other, **options)
            except RuntimeError as error:
                refused.append(str(error))

    during = meanwhile(beside)
    expected = picture(fast)
    picture(fast, cache="deepcache:interval=2", callback_on_step_end=during)
    assert [text.partition(" uses")[0] for text in refused] == ["another thread's call"] * 2
    refused.clear()
    assert torch.equal(picture(fast, callback_on_step_end=during), expected)
    assert len(refused) == 1  # the one with a cache
    assert not torch.equal(picture(fast, cache="deepcache:interval=2"), expected)


def test_a_stock_pipeline_of_another_thread_stays_as_it_is(fast: Any) -> None:
    stock = StableDiffusionPipeline(**fast.components)
    stock.scheduler = type(fast.scheduler).from_config(fast.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    made: list[torch.Tensor] = []

    def short() -> None:
        generator = torch.Generator().manual_seed(0)
        made.append(stock(**CALL | {"num_inference_steps": 2}, generator=generator).images)

    during = meanwhile(short)
    cache = {"type": "deepcache", "schedule": {"type": "steps", "steps": [0, 2]}}  # for runs of three calls or more
    short()
    expected = picture(fast, cache=cache)
    assert torch.equal(picture(fast, cache=cache, callback_on_step_end=during), expected)
    assert torch.equal(*made)
    assert list(fast.report().full) == ["another thread's calls, which asked for no acceleration"]


@pytest.mark.parametrize(
    ("kind", "stock"),
    [
        (FastTransformerPipeline, FluxPipeline),
        (FastTransformerPipeline, FluxImg2ImgPipeline),
        (FastTransformerPipeline, FluxKontextPipeline),
        (FastTransformerPipeline, StableDiffusion3Img2ImgPipeline),
    ],
)
def test_the_class_follows_the_models_own_pipeline(kind: Any, stock: Any, tmp_path: Path) -> None:
    made = stream_pipelines.flux() if "Flux" in stock.__name__ else stream_pipelines.sd3()
    pipe = stock(**{name: made.components[name] for name in made.components if name in stock.__init__.__annotations__})
    assert isinstance(kind.from_pipe(pipe), stock)
    pipe.save_pretrained(tmp_path)
    assert isinstance(kind.from_pretrained(tmp_path), stock)
    file = str(FILES / "fast_transformer.py")
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=file, trust_remote_code=True)
    assert isinstance(loaded, stock)
    assert type(loaded).__name__ == stock.__name__


def test_a_single_file_of_another_model_is_refused(tmp_path: Path) -> None:
    stream_pipelines.flux().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is for a FluxPipeline: it can be StableDiffusionImg2ImgPipeline"):
        FastImageToImagePipeline.from_single_file("model.safetensors", config=tmp_path)


def test_every_stock_pipeline_that_is_named_exists() -> None:
    for file in FILES_WITH_STOCK:
        for name in file.STOCK:
            assert issubclass(getattr(diffusers, f"{name}Pipeline"), DiffusionPipeline)
            assert any(stop.partition(",")[0] == f"{name}Pipeline" for stop in walk.STOPS), f"{name} has not been tried"


def becomes(name: str) -> None:
    """A stock pipeline of the walk, made the custom pipeline that can be it, is of its class and makes the same."""
    stock, stop = name.partition(",")[0], walk.STOPS[name]
    file = next(file for file in FILES_WITH_STOCK if stock.removesuffix("Pipeline") in file.STOCK)
    pipe = walk.built(stop, torch.float32)
    for part in required_by(getattr(diffusers, stock)):
        if getattr(pipe, part, None) is None:
            pipe.register_modules(**{part: Told()})
    plain = walk.made_by(pipe, stop, torch.float32)
    kind = next(k for k in vars(file).values() if isinstance(k, type) and k.__name__.startswith("Fast"))
    fast = kind.from_pipe(pipe)
    assert isinstance(fast, getattr(diffusers, stock))
    assert torch.equal(walk.made_by(fast, stop, torch.float32), plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what stock pipelines say of tiny parts
@pytest.mark.parametrize(
    "name",
    [
        "Flux2KleinPipeline",
        "ZImagePipeline",
        "ChromaImg2ImgPipeline",
        "HunyuanVideoImageToVideoPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionXLPAGInpaintPipeline",
    ],
)
def test_it_becomes_any_of_them(name: str) -> None:
    becomes(name)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EVERY)
def test_it_becomes_all_of_them(name: str) -> None:
    becomes(name)
