"""Pipelines that none of the others is like: old ones, for pictures within pictures, in layers, with a language model."""

from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers.pipelines.deprecated import alt_diffusion, paint_by_example
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.omnigen import pipeline_omnigen
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered
from tiny_networks import TEXT, ddpm_unet, sd_unet
from walk_edits import Told, texts
from walk_further_pictures import flux2, kandinsky5, kandinsky5_inputs, long_cat
from walk_further_videos import easy
from walk_parts import TOKENS, Draw, Stop, ddim, flow, kl, made, network, red
from walk_pictures import STOPS as PICTURES
from walk_pictures import qwen, qwen_inputs
from walk_priors import drawn
from walk_unets import HALF, SIZE, SMALL, mask, sd, sd_inputs
from walk_variants import changed, with_components
from walk_videos import SIZE as FILM
from walk_videos import hunyuan, masked, wan_vae


class Bert(torch.nn.Module):
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(600, TEXT)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.table(ids),)


def first_latent_diffusion() -> Any:
    parts = {"vqvae": kl(), "bert": Bert(), "tokenizer": texts()["tokenizer"]}
    return made("LDMTextToImagePipeline", **parts, unet=sd_unet(**SMALL), scheduler=ddim())


class Example(torch.nn.Module):
    """Sees a picture as one token."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.nn.Parameter(drawn(6, 1, 1, TEXT))

    @property
    def dtype(self) -> torch.dtype:
        return self.seen.dtype

    def forward(self, pixels: torch.Tensor, return_uncond_vector: bool = False) -> Any:
        return (self.seen, -self.seen) if return_uncond_vector else self.seen


def by_example() -> Any:
    parts = {"unet": sd_unet(**SMALL, in_channels=9), "image_encoder": Example(), "requires_safety_checker": False}
    with mock.patch.object(diffusers, "PaintByExamplePipeline", paint_by_example.PaintByExamplePipeline):
        return made("PaintByExamplePipeline", **parts, scheduler=ddim(), vae=kl())


def alt(name: str) -> Any:
    with mock.patch.object(diffusers, name, getattr(alt_diffusion, name), create=True):
        return sd(name)


def placed_pictures() -> Any:
    pipe = sd("StableDiffusionGLIGENTextImagePipeline", unet=sd_unet(**SMALL, attention_type="gated-text-image"))

    def grounded(repeat_batch: int, **rest: Any) -> dict[str, torch.Tensor]:
        rows = {"boxes": drawn(1, 1, 2, 4), "masks": torch.ones(1, 2)}
        for kind in ("phrases", "image"):
            rows[f"{kind}_masks"] = torch.ones(1, 2)
            rows[f"{kind}_embeddings"] = drawn(2, 1, 2, TEXT)
        return {key: value.expand(repeat_batch, *value.shape[1:]).to(pipe.unet.dtype) for key, value in rows.items()}

    pipe.get_cross_attention_kwargs_with_grounded = grounded
    pipe.get_cross_attention_kwargs_without_grounded = lambda **given: {
        key: torch.zeros_like(value) for key, value in grounded(**given).items()
    }
    return pipe


def edited(name: str, channels: int, **config: Any) -> Any:
    pipe = easy()
    pipe = with_components(name, pipe, transformer=changed(pipe, in_channels=channels, **config))
    known = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
    pipe.encode_prompt = lambda **given: tuple(given[key] for key in known)
    return pipe


def moving() -> Any:
    pipe = kandinsky5("Kandinsky5I2VPipeline", hunyuan().vae, visual_cond=True)
    pipe.normalize_first_frame = lambda latents: latents  # reads more frames than there are
    pipe._get_scale_factor = lambda height, width: (1.0, 1.0, 1.0)
    return pipe


def second_fibo() -> Any:
    net = network(
        "BriaFibo2Transformer2DModel",
        in_channels=4,
        dim=16,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=16,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=2,
        gist_max_text_len=16,
        axes_dims=(2, 2, 4),
        axes_lens=(64, 32, 32),
    )
    return made("BriaFibo2Pipeline", transformer=net, vae=flux2("Flux2Pipeline").vae, scheduler=flow())


def second_fibo_inputs(d: Draw) -> dict[str, Any]:
    prompts = {f"{kind}prompt_embeds": d.normal(1, 2, TOKENS, 16) for kind in ("", "negative_")}
    return {**prompts, **SIZE, "prompt_embeds_mask": torch.ones(1, TOKENS, dtype=torch.long), "guidance_scale": 3.0}


def joined_pictures() -> Any:
    net = network(
        "JoyImageEditPlusTransformer3DModel",
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        mlp_width_ratio=2.0,
        num_layers=3,
        rope_dim_list=[4, 6, 6],
    )
    pipe = made("JoyImageEditPlusPipeline", transformer=net, vae=wan_vae(), scheduler=flow())

    def encode(prompt: Any, **rest: Any) -> Any:
        return drawn(len(prompt[0]), 1, TOKENS, 16).to(net.dtype), torch.ones(1, TOKENS, dtype=net.dtype)

    pipe.encode_prompt_multiple_images = encode
    return pipe


class NoProcessor:
    image_processor = None


def edited_cat() -> Any:
    pipe = made("LongCatImageEditPipeline", **{**long_cat().components, "text_processor": NoProcessor()})

    def encode(prompt: str, **rest: Any) -> Any:
        return drawn(len(prompt), 1, TOKENS, 16).to(pipe.transformer.dtype), torch.zeros(TOKENS, 3)

    pipe.encode_prompt = encode
    return small(pipe, pipeline_longcat_image_edit)


def small(pipe: Any, module: Any) -> Any:
    """A pipeline that takes small pictures, where its module takes large ones alone."""
    module.calculate_dimensions = lambda area, ratio: (64, 64)
    return pipe


def layered() -> Any:
    pipe = qwen("QwenImageLayeredPipeline")
    pipe.register_modules(text_encoder=Told())
    pipe.get_image_caption = lambda *args, **rest: "a cat"
    pipe.encode_prompt = lambda prompt_embeds, prompt_embeds_mask, **rest: (prompt_embeds, prompt_embeds_mask)
    return small(pipe, pipeline_qwenimage_layered)


def layered_inputs(d: Draw) -> dict[str, Any]:
    given = qwen_inputs(d, image=red(64), layers=2, output_type="pt")
    return {key: value for key, value in given.items() if key not in ("height", "width")}


def cloze(name: str) -> Any:
    fill = next(stop for stop in PICTURES if stop.name == "FluxFillPipeline").build()
    pipe = made(name, **fill.components, resolution=64)
    width = fill.transformer.config.pooled_projection_dim

    def encode(*args: Any, **rest: Any) -> Any:
        dtype = pipe.transformer.dtype
        return drawn(1, 1, TOKENS, 16).to(dtype), drawn(2, 1, width).to(dtype), torch.zeros(TOKENS, 3)

    inner = [getattr(pipe, key) for key in ("generation_pipe", "upsampling_pipe") if hasattr(pipe, key)]
    for one in inner or [pipe]:
        one.encode_prompt = encode
        one.set_progress_bar_config(disable=True)
    return pipe


def cloze_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    pictures = [[red(64), red(64)], [red(64), None]]
    return {"task_prompt": "a", "content_prompt": "b", "image": pictures, "output_type": "pt", **more}


class Song(torch.nn.Module):
    """Encodes texts, words and voices of a song."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.null_condition_emb = torch.nn.Parameter(drawn(3, 1, 1, 16))
        self.silence_latent = torch.nn.Parameter(drawn(4, 1, 800, 4))

    def forward(self, **rest: Any) -> Any:
        return drawn(5, 1, TOKENS, 16).to(self.silence_latent), torch.ones(1, TOKENS)


def ace() -> Any:
    net = network(
        "AceStepTransformer1DModel",
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        encoder_hidden_size=16,
        sliding_window=4,
    )
    vae = network(
        "AutoencoderOobleck",
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        channel_multiples=[2, 4],
        sampling_rate=40,
    )
    pipe = made(
        "AceStepPipeline", transformer=net, vae=vae, scheduler=flow(num_train_timesteps=1), condition_encoder=Song()
    )
    pipe.encode_prompt = lambda **rest: (drawn(6, 1, TOKENS, 16), torch.ones(1, TOKENS)) * 2
    return pipe


def sung(d: Draw, **more: Any) -> dict[str, Any]:
    return {"prompt": "a", "audio_duration": 2.0, "guidance_scale": 3.0, "output_type": "latent", **more}


class Multimodal:
    """Writes texts and pictures as one list of tokens, as many lists as there are predictions."""

    max_image_size = 1024

    def __init__(self, *args: Any, **rest: Any) -> None: ...

    def __call__(self, prompt: Any, images: Any, height: int, width: int, **rest: Any) -> dict[str, Any]:
        rows = 2 if images[0] is None else 3
        count = TOKENS + 1 + (height // 16) * (width // 16)
        return {
            "input_ids": torch.randint(1, 32, (rows, TOKENS), generator=torch.Generator().manual_seed(1)),
            "attention_mask": torch.ones(rows, count, count),
            "position_ids": torch.arange(count)[None].repeat(rows, 1),
            "input_pixel_values": [torch.zeros(1, 3, 16, 16)] * (rows - 2),
            "input_image_sizes": {},
        }


def omni() -> Any:
    net = network(
        "OmniGenTransformer2DModel",
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=4,
        pad_token_id=0,
        vocab_size=32,
        max_position_embeddings=128,
        original_max_position_embeddings=64,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
        pos_embed_max_size=32,
        time_step_dim=16,
    )
    with mock.patch.object(pipeline_omnigen, "OmniGenMultiModalProcessor", Multimodal, create=True):
        return made(
            "OmniGenPipeline", transformer=net, vae=kl(), scheduler=flow(invert_sigmas=True, num_train_timesteps=1)
        )


STOPS = [
    Stop(
        "ConsistencyModelPipeline",
        lambda: made(
            "ConsistencyModelPipeline",
            unet=ddpm_unet(),
            scheduler=diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40),
        ),
        lambda d: {"output_type": "pt"},
        networks=("unet",),
    ),
    Stop(
        "LDMTextToImagePipeline",
        first_latent_diffusion,
        lambda d: {"prompt": "a cat", "height": 64, "width": 64, "guidance_scale": 3.0, "output_type": "pt"},
        "b",
        networks=("unet",),
    ),
    Stop(
        "PaintByExamplePipeline",
        by_example,
        lambda d: {
            "example_image": torch.zeros(1, 3, 8, 8),
            "image": 2 * d.picture(1, 3, 64, 64).float() - 1,
            "mask_image": mask(),
            "output_type": "latent",
        },
        "b",
        networks=("unet",),
    ),
    Stop("AltDiffusionPipeline", lambda: alt("AltDiffusionPipeline"), sd_inputs, "b", networks=("unet",)),
    Stop(
        "AltDiffusionImg2ImgPipeline",
        lambda: alt("AltDiffusionImg2ImgPipeline"),
        lambda d: {**d.prompts(), "output_type": "latent", "image": d.normal(1, 4, 8, 8), **HALF},
        "b",
        4,
        networks=("unet",),
    ),
    Stop(
        "StableDiffusionGLIGENTextImagePipeline",
        placed_pictures,
        lambda d: sd_inputs(d, gligen_boxes=[[0.1, 0.1, 0.5, 0.5]], gligen_phrases=["a"], gligen_images=[red(8)]),
        "bb",
        networks=("unet",),
    ),
    Stop(
        "EasyAnimateControlPipeline",
        lambda: edited("EasyAnimateControlPipeline", 12),
        lambda d: masked(d, num_frames=5),
        "b",
    ),
    Stop(
        "EasyAnimateInpaintPipeline",
        lambda: edited("EasyAnimateInpaintPipeline", 9, resize_inpaint_mask_directly=True),
        lambda d: masked(d, num_frames=5),
        "b",
    ),
    Stop("Kandinsky5I2VPipeline", moving, lambda d: kandinsky5_inputs(d, num_frames=5, image=red(32)), "pn"),
    Stop("BriaFibo2Pipeline", second_fibo, second_fibo_inputs, "pn"),
    Stop(
        "JoyImageEditPlusPipeline",
        joined_pictures,
        lambda d: {**FILM, "prompt": ["aa"], "negative_prompt": ["b"]},
        "b",
    ),
    Stop(
        "LongCatImageEditPipeline",
        edited_cat,
        lambda d: {"prompt": "a", "negative_prompt": "bcd", "image": red(64), "output_type": "latent"},
        "pn",
    ),
    Stop("QwenImageLayeredPipeline", layered, layered_inputs, "pn", large=True),
    Stop("VisualClozeGenerationPipeline", lambda: cloze("VisualClozeGenerationPipeline"), cloze_inputs),
    Stop(
        "VisualClozePipeline",
        lambda: cloze("VisualClozePipeline"),
        lambda d: cloze_inputs(d, upsampling_height=64, upsampling_width=64, upsampling_strength=0.8),
        calls=lambda index: (index % 9 - 5 * (index % 9 > 4), 0),  # of five steps and, of the larger picture, four
    ),
    Stop("AceStepPipeline", ace, sung, "B"),
    Stop(
        "AceStepPipeline, guidance begins late",
        ace,
        lambda d: sung(d, cfg_interval_start=0.2),
        "xB",
        calls=lambda index: (index, int(index > 2)),
    ),
    Stop("OmniGenPipeline", omni, lambda d: {"prompt": "a", **SIZE}, "B"),
    Stop(
        "OmniGenPipeline, from a picture",
        omni,
        lambda d: {"prompt": ["<img><|image_1|></img>"], "input_images": [[red(16)]], **SIZE},
        "x",
    ),
]
