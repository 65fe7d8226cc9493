"""Pipelines of two stages, a prior that makes an embedding and a decoder that makes a picture of it, alone and combined."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import numpy
import torch
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from tiny_networks import TEXT, sd_unet
from transformers import CLIPTextModelWithProjection
from walk_edits import Told, texts
from walk_further_pictures import prior, shap_e, unclip
from walk_parts import TOKENS, Draw, Stop, ddim, kl, made, network, red, seeded
from walk_unets import HALF, SIZE, SMALL, embedded, kandinsky

HALF_MASK = numpy.pad(numpy.ones((64, 32), "float32"), ((0, 0), (0, 32)))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Always the same values, as an encoder makes them of the same text."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encodes(pipe: Any, network: str, mask: torch.dtype) -> Any:
    """A pipeline with an encoder whose results are drawn: of whole texts and of their tokens."""

    def encode(prompt: Any, device: Any, num: int, guided: bool, *rest: Any) -> Any:
        dtype = getattr(pipe, network).dtype
        seeds = [seed for seed in ((3, 1) if guided else (1,)) for _ in range(num)]
        whole = torch.cat([drawn(seed, 1, TEXT) for seed in seeds]).to(dtype)
        tokens = torch.cat([drawn(seed + 1, 1, TOKENS, TEXT) for seed in seeds]).to(dtype)
        return whole, tokens, torch.ones(len(seeds), TOKENS, dtype=mask)

    pipe._encode_prompt = encode
    return pipe


def first_kandinsky(name: str, channels: int = 4) -> Any:
    unet = sd_unet(
        **SMALL,
        in_channels=channels,
        out_channels=8,
        encoder_hid_dim=TEXT,
        encoder_hid_dim_type="text_image_proj",
        addition_embed_type="text_image",
    )
    pipe = made(name, unet=unet, scheduler=ddim(), movq=kandinsky("KandinskyV22Pipeline").movq)
    pipe.register_modules(text_encoder=Told())
    return encodes(pipe, "unet", torch.long)


def both(d: Draw, **more: Any) -> dict[str, Any]:
    return embedded(d, prompt="a cat", **{"output_type": "pt", **more})


def combined(name: str, channels: int = 4) -> Any:
    decoder = kandinsky(name.replace("Combined", ""), channels)
    parts = {f"prior_{key}": value for key, value in unclip().components.items()}
    return made(name, **decoder.components, **parts)


def staged(d: Draw, **more: Any) -> dict[str, Any]:
    return {**SIZE, "prompt": "a cat", "prior_num_inference_steps": 4, **more}


def first_unclip(name: str) -> Any:
    blocks = {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    }
    decoder = sd_unet(**{**SMALL, **blocks}, in_channels=3, out_channels=6, class_embed_type="identity")
    upscaler = {
        "sample_size": 16,
        "in_channels": 6,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "norm_num_groups": 4,
    }
    fixed = {"variance_type": "fixed_small_log"}
    pipe = made(
        name,
        prior=network(
            "PriorTransformer",
            num_attention_heads=2,
            attention_head_dim=8,
            embedding_dim=TEXT,
            num_layers=3,
            num_embeddings=TOKENS,
        ),
        decoder=decoder,
        text_proj=seeded(
            lambda: UnCLIPTextProjModel(clip_embeddings_dim=TEXT, time_embed_dim=32, cross_attention_dim=TEXT)
        ),
        super_res_first=network("UNet2DModel", **upscaler),
        super_res_last=network("UNet2DModel", **upscaler),
        prior_scheduler=diffusers.UnCLIPScheduler(**fixed, prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=diffusers.UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=diffusers.UnCLIPScheduler(**fixed),
    )
    pipe._encode_image = lambda image, device, num, embeddings=None: drawn(7, num, TEXT).to(decoder.dtype)
    return encodes(pipe, "decoder", torch.bool)


def three_stages(**more: Any) -> Callable[[Draw], dict[str, Any]]:
    steps = {"decoder_num_inference_steps": 5, "super_res_num_inference_steps": 5, "num_inference_steps": None}
    return lambda d: {**steps, "output_type": "np", **more}


def stable_unclip() -> Any:
    one = texts()
    one["text_encoder"].config.projection_dim = TEXT
    size = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * TEXT}
    return made(
        "StableUnCLIPPipeline",
        prior=prior("KandinskyPriorPipeline", None, num_embeddings=16).prior,
        prior_tokenizer=one["tokenizer"],
        prior_text_encoder=seeded(lambda: CLIPTextModelWithProjection(one["text_encoder"].config)),
        prior_scheduler=diffusers.DDPMScheduler(prediction_type="sample", variance_type="fixed_small_log"),
        unet=sd_unet(**SMALL, **size),
        image_normalizer=seeded(lambda: StableUnCLIPImageNormalizer(embedding_dim=TEXT)),
        image_noising_scheduler=diffusers.DDPMScheduler(),
        scheduler=ddim(),
        vae=kl(),
        **one,
    )


def shape_of_picture() -> Any:
    pipe = made("ShapEImg2ImgPipeline", **shap_e().components)

    def encode(image: Any, device: Any, num: int, guided: bool) -> torch.Tensor:
        seen = drawn(3, num, TEXT)
        return (torch.cat([torch.zeros_like(seen), seen]) if guided else seen).to(pipe.prior.dtype)

    pipe._encode_image = encode
    return pipe


DECODERS = [
    Stop("KandinskyPipeline", lambda: first_kandinsky("KandinskyPipeline"), both, "b"),
    Stop(
        "KandinskyImg2ImgPipeline",
        lambda: first_kandinsky("KandinskyImg2ImgPipeline"),
        lambda d: both(d, image=red(64), **HALF),
        "b",
        4,
    ),
    Stop(
        "KandinskyInpaintPipeline",
        lambda: first_kandinsky("KandinskyInpaintPipeline", 9),
        lambda d: both(d, image=red(64), mask_image=HALF_MASK),
        "b",
    ),
    Stop(
        "KandinskyV22ControlnetImg2ImgPipeline",
        lambda: kandinsky("KandinskyV22ControlnetImg2ImgPipeline"),
        lambda d: embedded(d, image=red(64), hint=d.picture(1, 3, 64, 64), **{**HALF, "output_type": "pt"}),
        "b",
        4,
    ),
    Stop("KandinskyV22CombinedPipeline", lambda: combined("KandinskyV22CombinedPipeline"), staged, "b"),
    Stop(
        "KandinskyV22Img2ImgCombinedPipeline",
        lambda: combined("KandinskyV22Img2ImgCombinedPipeline"),
        lambda d: staged(d, image=red(64), **HALF),
        "b",
        4,
    ),
    Stop(
        "KandinskyV22InpaintCombinedPipeline",
        lambda: combined("KandinskyV22InpaintCombinedPipeline", 9),
        lambda d: staged(d, image=red(64), mask_image=HALF_MASK),
        "b",
    ),
    Stop(
        "StableUnCLIPPipeline",
        stable_unclip,
        lambda d: {**SIZE, "prompt": "a cat", "prior_num_inference_steps": 4},
        "b",
    ),
]
PRIORS = [
    Stop(
        "KandinskyPriorPipeline",
        lambda: made("KandinskyPriorPipeline", **unclip().components),
        lambda d: {"prompt": "a cat"},
        "b",
    ),
    Stop(
        "KandinskyV22PriorEmb2EmbPipeline",
        lambda: made("KandinskyV22PriorEmb2EmbPipeline", **unclip().components),
        lambda d: {"prompt": "a cat", "image": d.normal(1, 16), **HALF},
        "b",
        4,
    ),
    Stop("UnCLIPPipeline, prior", lambda: first_unclip("UnCLIPPipeline"), three_stages(prompt="a"), "b", 25),
    Stop(
        "StableUnCLIPPipeline, prior",
        stable_unclip,
        lambda d: {**SIZE, "prompt": "a cat", "prior_num_inference_steps": 5},
        "b",
    ),
    Stop("ShapEImg2ImgPipeline", shape_of_picture, lambda d: {"image": red(8), "output_type": "latent"}, "b"),
]
STOPS = [
    *(replace(stop, networks=("unet",), alone=True) for stop in DECODERS),
    *(replace(stop, networks=("prior",), alone=True) for stop in PRIORS),
    Stop(
        "KandinskyV22CombinedPipeline, prior",
        lambda: combined("KandinskyV22CombinedPipeline"),
        lambda d: staged(d, prior_num_inference_steps=5),
        "b",
        networks=("prior_prior",),
        alone=True,
    ),
    Stop(
        "UnCLIPPipeline, decoder",
        lambda: first_unclip("UnCLIPPipeline"),
        three_stages(prompt="a"),
        "b",
        networks=("decoder", "super_res_first"),
        alone=True,
    ),
    Stop(
        "UnCLIPImageVariationPipeline",
        lambda: first_unclip("UnCLIPImageVariationPipeline"),
        three_stages(image=red(8)),
        "b",
        networks=("decoder", "super_res_first"),
        alone=True,
    ),
]
