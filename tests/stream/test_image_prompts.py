"""Image prompts in streams: as the stock pipelines read them, a scale for each row, and live."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stream_pipelines
import torch
from diffusers import FluxPipeline
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from safetensors.torch import save_file
from stream_pipelines import Build
from test_stream_host import SETTINGS, hold
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from diffaccel import DeepCache, FullGuidance, ImagePrompt, IntervalCache, StreamEngine, StreamHost
from diffaccel.reuse.schedule import Uniform

EMBEDDED, STEPS = 24, 4


def seeing(pipe: Any) -> None:
    """Give a pipeline an image encoder."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=EMBEDDED, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    encoder = stream_pipelines._seeded(lambda: CLIPVisionModelWithProjection(vision))
    size = {"height": 16, "width": 16}
    pipe.register_modules(image_encoder=encoder, feature_extractor=CLIPImageProcessor(size=size, crop_size=size))


def adapted(pipe: Any, folder: Path, adapters: int = 1) -> Any:
    """A pipeline with IP-Adapters of random weights and an image encoder."""
    seeing(pipe)
    width = pipe.unet.config.cross_attention_dim
    attentions = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    sizes = [pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features for name in attentions]
    names = []
    for adapter in range(adapters):
        chance = torch.Generator().manual_seed(adapter)
        projection = stream_pipelines._seeded(lambda: ImageProjection(EMBEDDED, width, 4))
        weights = {
            "image_proj.proj.weight": projection.image_embeds.weight,
            "image_proj.proj.bias": projection.image_embeds.bias,
            "image_proj.norm.weight": projection.norm.weight,
            "image_proj.norm.bias": projection.norm.bias,
        }
        for i, inner in enumerate(sizes):
            for kind in "kv":
                name = f"ip_adapter.{2 * i + 1}.to_{kind}_ip.weight"
                weights[name] = torch.randn(inner, width, generator=chance)
        names.append(f"ip{adapter}.safetensors")
        save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, folder / names[-1])
    where = {"subfolder": "", "image_encoder_folder": None}
    pipe.load_ip_adapter([str(folder)] * adapters, weight_name=names, **where | {"subfolder": [""] * adapters})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return adapted(stream_pipelines.sd(), tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return adapted(stream_pipelines.sd(), tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def frames(frames: torch.Tensor) -> torch.Tensor:
    return frames[:6]


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (20, 16), colour)


def painted(engine: StreamEngine, frames: torch.Tensor) -> torch.Tensor:
    with engine:
        return torch.stack([output.image for output in engine.stream(frames)])


def close(ours: torch.Tensor, theirs: torch.Tensor, share: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=share * theirs.abs().max().item())


def compared(pipe: Any, images: Any, scales: Any, guidance: float, ours: ImagePrompt) -> None:
    """One frame of text-to-image, beside the stock pipeline's."""
    seed, chance = 3, torch.Generator().manual_seed(5)
    side = 32 // pipe.vae_scale_factor
    noise = torch.randn(4, side, side, generator=chance)
    chance = torch.Generator().manual_seed(seed)
    torch.randn(1, 4, side, side, generator=chance)
    pipe.set_ip_adapter_scale(scales)
    stock = pipe(
        "a cat", latents=noise[None], generator=chance, num_inference_steps=STEPS, guidance_scale=guidance, height=32,
        width=32, ip_adapter_image=images, output_type="latent",
    ).images[0]  # fmt: skip
    pipe.set_ip_adapter_scale([1.0] * len(pipe.unet.encoder_hid_proj.image_projection_layers))
    more: dict[str, Any] = {} if guidance == 1 else {"guidance": FullGuidance(guidance)}
    engine = StreamEngine(
        pipe, prompt="a cat", timestep_indices=range(STEPS), num_inference_steps=STEPS, height=32, width=32, seed=seed,
        output_type="latent", image_prompt=ours, **more,
    )  # fmt: skip
    with engine:
        (output,) = engine.push(latents=noise) + engine.flush()
    close(output.image, stock)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_an_image_prompt_as_the_stock_pipeline_reads_it(pipe: Any, guidance: float) -> None:
    compared(pipe, picture("red"), 0.6, guidance, ImagePrompt(picture("red"), 0.6))


def test_several_pictures_and_several_adapters(pipe: Any, two: Any) -> None:
    both = [picture("red"), picture("green")]
    compared(pipe, [both], 0.6, 1.0, ImagePrompt(both, 0.6))
    compared(two, both, [0.3, 1.2], 2.5, ImagePrompt(both, (0.3, 1.2)))
    compared(two, [both, picture("blue")], [0.3, 1.2], 1.0, ImagePrompt([both, picture("blue")], (0.3, 1.2)))


def test_sdxl(tmp_path: Path) -> None:
    compared(adapted(stream_pipelines.sdxl(), tmp_path), picture("red"), 0.6, 2.5, ImagePrompt(picture("red"), 0.6))


def test_forms_of_a_picture(pipe: Any, engine: Build, frames: torch.Tensor) -> None:
    """Whatever is a frame is an image prompt, too."""
    given = torch.randint(0, 256, (3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    image = Image.fromarray(given.movedim(0, -1).numpy())
    forms = [
        image,
        image.convert("RGBA"),
        given,
        given / 255,
        given[None] / 255,
        np.asarray(image),
        np.asarray(image) / 255,
    ]
    shown = [painted(engine(pipe, image_prompt=ImagePrompt(form)), frames[:1]) for form in forms]
    assert all(torch.equal(one, shown[0]) for one in shown)
    clear = Image.new("RGBA", (20, 16), (255, 0, 0, 0))
    white = painted(engine(pipe, image_prompt=ImagePrompt(picture("white"))), frames[:1])
    assert torch.equal(painted(engine(pipe, image_prompt=ImagePrompt(clear)), frames[:1]), white)
    for wrong, error, words in (
        ("red.png", TypeError, "the image prompt cannot be used: .*not str"),
        (Image.new("I;16", (20, 16)), ValueError, "not a picture of 8 bits"),
        (torch.full((3, 16, 20), torch.nan), ValueError, "found nan"),
        (torch.zeros(2, 3, 16, 20), ValueError, "give one picture, or a list of pictures, not 2 frames"),
    ):
        with pytest.raises(error, match=words):
            engine(pipe, image_prompt=ImagePrompt(wrong))


def adapted_flux(adapters: int) -> Any:
    pipe = stream_pipelines.flux()
    seeing(pipe)
    config, chance = pipe.transformer.config, torch.Generator().manual_seed(2)
    text, inner = config.joint_attention_dim, config.num_attention_heads * config.attention_head_dim

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    states = []
    for _ in range(adapters):
        projection = {"proj.weight": drawn(4 * text, EMBEDDED), "proj.bias": drawn(4 * text)}
        norm = {"norm.weight": drawn(text), "norm.bias": drawn(text)}
        attention = {f"0.to_{kind}_ip.{part}": drawn(*shape) for kind in "kv"
                     for part, shape in (("weight", (inner, text)), ("bias", (inner,)))}  # fmt: skip
        states.append({"image_proj": projection | norm, "ip_adapter": attention})
    pipe.transformer._load_ip_adapter_weights(states)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_flux(guidance: float) -> None:
    pipe, both = adapted_flux(2), [[picture("red"), picture("green")], picture("blue")]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    packed = FluxPipeline._pack_latents(noise, 1, 4, 8, 8)
    settings = {"num_inference_steps": STEPS, "height": 32, "width": 32, "output_type": "latent"}
    pipe.set_ip_adapter_scale([0.3, 1.2])
    stock = pipe(
        "a cat", negative_prompt="a dog", true_cfg_scale=guidance, latents=packed, ip_adapter_image=both, **settings
    ).images
    pipe.set_ip_adapter_scale(1.0)
    more: dict[str, Any] = {} if guidance == 1 else {"guidance": FullGuidance(guidance), "negative_prompt": "a dog"}
    settings |= {"prompt": "a cat", "timestep_indices": range(STEPS)}
    with StreamEngine(pipe, image_prompt=ImagePrompt(both, (0.3, 1.2)), **settings, **more) as engine:
        (output,) = engine.push(latents=noise[0]) + engine.flush()
    close(output.image, FluxPipeline._unpack_latents(stock, 32, 32, pipe.vae_scale_factor)[0])


def test_streams_on_flux_read_their_own_image_prompts(frames: torch.Tensor) -> None:
    pipe, films = adapted_flux(1), [frames[k : k + 3] for k in range(3)]
    settings: list[dict[str, Any]] = [
        {"image_prompt": ImagePrompt(picture("red"), 0.7), "guidance": FullGuidance(1.5)},
        {"image_prompt": ImagePrompt(picture("green")), "cache": IntervalCache(schedule=Uniform(2))},
        {"prompt": "a star"},
    ]
    assert hold(pipe, settings, films).report().streams_per_call["network"] > 1.3
    without, plain = (painted(StreamEngine(p, **SETTINGS), films[0]) for p in (pipe, stream_pipelines.flux()))
    close(without, plain)
    shown = painted(StreamEngine(pipe, **SETTINGS | {"image_prompt": ImagePrompt(picture("red"))}), films[0])
    assert not torch.allclose(shown, plain, atol=1e-3 * plain.abs().max().item())


def test_embeddings_stand_for_pictures(pipe: Any, engine: Build, frames: torch.Tensor) -> None:
    embeds = pipe.prepare_ip_adapter_image_embeds(picture("red"), None, "cpu", 1, True)
    theirs = painted(engine(pipe, image_prompt=ImagePrompt(picture("red"))), frames)
    close(painted(engine(pipe, image_prompt=ImagePrompt(embeds=embeds)), frames), theirs, 1e-5)


@pytest.mark.slow
def test_no_image_prompt_leaves_the_adapter_without_a_say(pipe: Any, engine: Build, frames: torch.Tensor) -> None:
    plain = painted(engine(), frames)
    close(painted(engine(pipe), frames), plain, 1e-5)
    close(painted(engine(pipe, image_prompt=ImagePrompt(picture("red"), 0.0)), frames), plain, 1e-5)
    close(painted(engine(pipe), frames[:1]), painted(engine(), frames[:1]), 1e-5)
    assert not torch.allclose(painted(engine(pipe, image_prompt=ImagePrompt(picture("red"))), frames), plain, atol=0.1)


def test_the_stream_batch_gives_what_the_sequential_mode_gives(pipe: Any, engine: Build, frames: torch.Tensor) -> None:
    settings = {"image_prompt": ImagePrompt(picture("red"), 0.7), "guidance": FullGuidance(1.5), "cache": DeepCache(1)}
    ours, theirs = (painted(engine(pipe, **settings, stream_batch=batch), frames) for batch in (True, False))
    close(ours, theirs)


@pytest.mark.slow
def test_streams_of_a_host_read_their_own_image_prompts(pipe: Any, frames: torch.Tensor) -> None:
    settings: list[dict[str, Any]] = [
        {"image_prompt": ImagePrompt(picture("red"), 0.7)},
        {"image_prompt": ImagePrompt(picture("green"), 1.4), "cache": DeepCache(2), "guidance": FullGuidance(1.5)},
        {"prompt": "a star"},
    ]
    films = [frames[k : k + 4] for k in range(3)]
    assert hold(pipe, settings, films).report().streams_per_call["network"] > 1.5


@pytest.mark.slow
def test_live_changes_of_picture_and_scale(pipe: Any, engine: Build, frames: torch.Tensor) -> None:
    red, green = picture("red"), picture("green")
    alone = {
        c: painted(engine(pipe, image_prompt=ImagePrompt(p, s)), frames)
        for c, p, s in (("a", red, 1), ("b", green, 0.5))
    }
    with engine(pipe, image_prompt=ImagePrompt(red)) as stream:
        shown = [o.image for f in frames[:4] for o in stream.push(f)]
        stream.update(image_prompt=ImagePrompt(green, 0.5), at="new")
        shown += [o.image for f in frames[4:] for o in stream.push(f)] + [o.image for o in stream.flush()]
    close(torch.stack(shown), torch.cat([alone["a"][:4], alone["b"][4:]]))
    with engine(pipe, image_prompt=ImagePrompt(red)) as stream:
        stream.push(frames[0])
        stream.update(image_prompt=ImagePrompt(red, 0.0), transition=4)
        slow = [o.image for f in frames for o in stream.push(f)]
    assert all(image.isfinite().all() for image in slow)
    close(slow[-1], painted(engine(), frames)[-3], 1e-3)


def test_a_host_says_whose_image_prompts_keep_them_apart(pipe: Any) -> None:
    red = picture("red")
    with StreamHost(pipe) as host:
        opened = [host.open(**SETTINGS, image_prompt=prompt) for prompt in (None, ImagePrompt(red))]
        assert host.report().apart == {}
        opened.append(host.open(**SETTINGS, image_prompt=ImagePrompt([red, red])))
        assert host.report().apart == {"32 x 32, 1 pictures": 2, "32 x 32, 2 pictures": 1}
    with StreamHost(stream_pipelines.z_image()) as host:  # whose prompts may be of any length
        opened = [host.open(**SETTINGS | {"prompt": text}) for text in ("a cat", "a red heart and a blue star")]
        assert host.report().apart == {}


def test_adapters_that_come_and_go_are_noticed(engine: Build, frames: torch.Tensor, tmp_path: Path) -> None:
    pipe = stream_pipelines.sd()
    before = engine(pipe)
    before.push(frames[0])
    adapted(pipe, tmp_path)
    for act in (lambda: before.push(frames[1]), lambda: before.update(image_prompt=ImagePrompt(picture("red"), 0.3))):
        with pytest.raises(RuntimeError, match="loaded or unloaded since this stream was opened: open another"):
            act()
    with engine(pipe, image_prompt=ImagePrompt(picture("red"))) as after:
        after.push(frames[0])
        pipe.unload_ip_adapter()
        with pytest.raises(RuntimeError, match="loaded or unloaded"):
            after.push(frames[1])
    close(painted(before, frames)[-3:], painted(engine(), frames)[-3:])


def test_wrong_image_prompts_are_refused_by_name(pipe: Any, two: Any, engine: Build, frames: torch.Tensor) -> None:
    red = picture("red")
    with pytest.raises(ValueError, match=r"needs an IP-Adapter .*call pipe\.load_ip_adapter"):
        engine(image_prompt=ImagePrompt(red))
    with pytest.raises(ValueError, match="2 IP-Adapters, and the image prompt 1 pictures: give one for each"):
        engine(two, image_prompt=ImagePrompt(red))
    with pytest.raises(ValueError, match="2 IP-Adapters, and the image prompt 3 scales"):
        engine(two, image_prompt=ImagePrompt([red, red], (1, 1, 1)))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 7\), and the IP-Adapter takes \(2, pictures, \.\.\., 24\)"):
        engine(pipe, image_prompt=ImagePrompt(embeds=[torch.zeros(2, 1, 7)]))
    with pytest.raises(ValueError, match="must be tensors, not list"):
        engine(pipe, image_prompt=ImagePrompt(embeds=[[1.0]]))
    with pytest.raises(ValueError, match=r"embeds\[0\] of the image prompt hold NaN"):
        engine(pipe, image_prompt=ImagePrompt(embeds=[torch.full((2, 1, 24), torch.nan)]))
    with pytest.raises(ValueError, match="either images or embeds"):
        ImagePrompt()
    with pytest.raises(TypeError, match="image_prompt must be an ImagePrompt"):
        engine(pipe, image_prompt=red)
    with engine(pipe, image_prompt=ImagePrompt(red)) as stream:
        stream.push(frames[0])
        with pytest.raises(ValueError, match="as many pictures"):
            stream.update(image_prompt=ImagePrompt([red, red]), at="new")
        stream.update(image_prompt=ImagePrompt([red, red]))
        assert len(list(stream.stream(frames))) == 7
