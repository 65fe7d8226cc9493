"""Called once, a stream is a diffusers pipeline: pictures in, as many out, the same as from an engine held open."""

from typing import Any

import numpy as np
import pytest
import stream_pipelines
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from PIL import Image

from diffaccel import (
    DeepCache,
    OneTimeNegative,
    SelfNegative,
    SimilarityFilter,
    SlotCache,
    StreamEngine,
)
from diffaccel.pipelines import StreamDiffusionPipeline

FRAMES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IMAGE = {"prompt": "a cat", "strength": 0.6, "num_steps": 2, "output_type": "pt"}
CHANNELS = {"sd": (4, 8, 8, 8), "sdxl": (4, 8, 8)}  # a halving of the control image between any two
TEXT = {"prompt": "a cat", "num_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    stock = stream_pipelines.sdxl() if request.param == "sdxl" else stream_pipelines.sd()
    made = StreamDiffusionPipeline.from_pipe(stock)
    assert isinstance(made, type(stock))
    made.set_progress_bar_config(disable=True)
    return made


def size(pipe: Any) -> dict[str, int]:
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return {"height": side, "width": side}


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"guidance": SelfNegative(1.4)}, {"cache": "deepcache:interval=2"}], ids=str)
def test_a_video_gives_what_an_engine_gives(pipe: Any, settings: dict[str, Any]) -> None:
    images = pipe(**IMAGE | settings, image=FRAMES).images
    with pipe.stream(**IMAGE | settings) as engine:
        assert isinstance(engine, StreamEngine)
        pushed = [output.image for frame in FRAMES for output in engine.push(frame)]
        expected = torch.stack(pushed + [output.image for output in engine.flush()])
    assert len(images) == 5
    assert torch.equal(images, expected)
    assert torch.equal(pipe(**IMAGE | settings, image=FRAMES).images, expected)


@pytest.mark.parametrize(
    ("plain", "config"),
    [
        ({"guidance": "self"}, {"guidance": SelfNegative()}),
        ({"guidance": "onetimenegative:scale=2.0"}, {"guidance": OneTimeNegative(2.0)}),
        ({"guidance": {"type": "selfnegative", "scale": 1.4, "delta": 0.5}}, {"guidance": SelfNegative(1.4, 0.5)}),
        ({"similarity": "similarityfilter:threshold=0.9"}, {"similarity": SimilarityFilter(0.9)}),
        ({"cache": {"type": "deepcache", "interval": 2}}, {"cache": SlotCache(DeepCache(interval=2))}),
        ({"cache": "slotcache:method=deepcache(interval=2),key=frame"}, {"cache": SlotCache(DeepCache(2), "frame")}),
    ],
    ids=str,
)
def test_settings_as_text_and_dictionaries(pipe: Any, plain: dict[str, Any], config: dict[str, Any]) -> None:
    with pipe.stream(**IMAGE | plain) as engine:
        name, expected = next(iter(config.items()))
        assert getattr(engine.config, name) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_controlnet_follows_control_images(kind: str) -> None:
    base = getattr(stream_pipelines, kind)()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=CHANNELS[kind]).eval()
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=2.0)
        for layer in net.controlnet_cond_embedding.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
    pipe = StreamDiffusionPipeline.from_pipe(base, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    options = IMAGE | {"strength": 1.0, "output_type": "latent", "image": FRAMES}
    made = pipe(**options, control="identity").images
    torch.testing.assert_close(pipe(**options, control_image=FRAMES).images, made, atol=1e-4, rtol=0)
    assert (pipe(**options, control_image=FRAMES[0]).images - made).abs().max() > 1e-2
    assert len(pipe(**TEXT, control_image=FRAMES[0], num_images_per_prompt=2).images) == 2
    with pytest.raises(ValueError, match="5 frames need as many control images, or one for all, not 2"):
        pipe(**IMAGE, image=FRAMES, control_image=FRAMES[:2])


@pytest.mark.slow
def test_inputs_of_every_kind(pipe: Any) -> None:
    arrays = FRAMES.movedim(1, -1).numpy()
    expected = pipe(**IMAGE, image=FRAMES).images
    assert torch.equal(pipe(**IMAGE, image=list(FRAMES)).images, expected)
    torch.testing.assert_close(pipe(**IMAGE, image=arrays).images, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(pipe(**IMAGE, image=FRAMES[0]).images, expected[:1], atol=1e-4, rtol=0)
    pictures = [Image.fromarray((array * 255).round().astype(np.uint8)) for array in arrays]
    assert pipe(**IMAGE, image=pictures).images.shape == expected.shape


@pytest.mark.slow
def test_output_types(pipe: Any) -> None:
    found = {kind: pipe(**IMAGE | {"output_type": kind}, image=FRAMES).images for kind in ("pt", "np", "pil", "latent")}
    assert np.array_equal(np.moveaxis(found["np"], -1, 1), found["pt"].numpy())
    assert [picture.size for picture in found["pil"]] == [tuple(size(pipe).values())] * 5
    assert found["latent"].shape == (5, 4, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    returned = pipe(**IMAGE, image=FRAMES, return_dict=False)
    assert torch.equal(returned[0], found["pt"])


def test_text_to_image(pipe: Any) -> None:
    one = pipe(**TEXT, generator=seeds(1)[0]).images
    several = pipe(**TEXT, num_images_per_prompt=2, generator=seeds(2)).images
    torch.testing.assert_close(several[:1], one, atol=1e-4, rtol=0)
    assert not torch.allclose(several[0], several[1])
    both = pipe(**TEXT | {"prompt": ["a cat", "a red star"]}, generator=[*seeds(1), *seeds(1)]).images
    torch.testing.assert_close(both[:1], one, atol=1e-4, rtol=0)
    assert not torch.allclose(both[0], both[1])
    noise = torch.randn(1, 4, *[pipe.unet.config.sample_size] * 2, generator=seeds(1)[0])
    torch.testing.assert_close(pipe(**TEXT, latents=noise).images, one, atol=1e-4, rtol=0)


def test_generators_and_prompts_of_every_kind_are_heeded(pipe: Any) -> None:
    two, word = FRAMES[:2], IMAGE["prompt"]
    drawn = pipe(**IMAGE, image=two, generator=seeds(2)).images
    assert not torch.equal(drawn, pipe(**IMAGE, image=two).images)
    torch.testing.assert_close(pipe(**IMAGE, image=two[1], generator=seeds(2)[1:]).images, drawn[1:], atol=1e-4, rtol=0)
    blended = pipe(**IMAGE | {"prompt": {word: 0.5, "a red star": 0.5}}, image=two).images
    assert len(blended) == 2  # once: two of each word
    assert not torch.equal(blended, pipe(**IMAGE, image=two).images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": seeds(3)}, "1 frames need as many generators, not 3"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "1 frames need as many latents, not 2"),
        ({"latents": torch.zeros(1, 4, 8, 8), "image": torch.zeros(3, 32, 32)}, "leave them out, or image"),
        (
            {"num_images_per_prompt": 2, "image": torch.zeros(3, 32, 32)},
            "painted once for each prompt: leave num_images_per_prompt=2 out",
        ),
        ({"guidance": SelfNegative(1.2)}, "for text-to-image use OneTimeNegative or FullGuidance"),
        ({"cache": "deepcash"}, "unknown method 'deepcash'"),
    ],
)
def test_bad_values(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**TEXT, **options)


def test_callbacks_and_interruption(pipe: Any) -> None:
    seen: list[int] = []

    def note(called: Any, output: Any) -> None:
        seen.append(output.frame_id)
        called._interrupt = len(seen) == 2

    images = pipe(**IMAGE, image=FRAMES, callback_on_frame_end=note).images
    assert seen == [0, 1]
    assert torch.equal(images, pipe(**IMAGE, image=FRAMES).images[:2])


def test_one_time_negative_follows_the_negative_prompt(pipe: Any) -> None:
    options = IMAGE | {"guidance": OneTimeNegative(2.0), "image": FRAMES}
    first, second = (pipe(**options, negative_prompt=text).images for text in ("blurry", "a blue dog"))
    assert not torch.equal(first, second)


def test_back_to_the_stock_pipeline() -> None:
    stock = stream_pipelines.sd()
    made = StreamDiffusionPipeline.from_pipe(stock)
    back = StableDiffusionPipeline.from_pipe(made, vae=stock.vae)
    back.set_progress_bar_config(disable=True)
    call = {"prompt": "a cat", "num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}
    pictures = [pipe(**call, generator=seeds(1)[0]).images for pipe in (stock, back)]
    assert torch.equal(*pictures)


def test_skipped_frames_keep_their_places(pipe: Any) -> None:
    still = FRAMES[:1].repeat(4, 1, 1, 1)
    options = IMAGE | {"num_steps": 3, "image": torch.cat([FRAMES, still, FRAMES[1:2]])}
    plain, seen = pipe(**options).images, []
    similarity = SimilarityFilter(threshold=0.99999, max_skip=100)
    skipping = pipe(**options, similarity=similarity, callback_on_frame_end=lambda _, output: seen.append(output))
    assert [o.frame_id for o in seen if o.skipped] == [6, 7, 8]
    assert [o.frame_id for o in seen] != list(range(10))
    expected = [*range(6), 5, 5, 5, 9]
    for picture, index in zip(skipping.images, expected, strict=True):
        torch.testing.assert_close(picture, plain[index], atol=1e-4, rtol=0)
