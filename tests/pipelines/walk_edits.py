"""Pipelines around UNets that edit, upscale, estimate or go their own ways through the noise levels; sound among them."""

import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import tiny_pipeline
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from tiny_networks import TEXT, ddpm_unet, i2vgen_unet, motion_unet, sd_unet, unet3d
from transformers import CLIPTextModelWithProjection, SpeechT5HifiGan, SpeechT5HifiGanConfig
from walk_parts import Draw, Stop, ddim, kl, made, red, seeded, vision
from walk_unets import (
    HALF,
    SIZE,
    SMALL,
    animated,
    deepfloyd,
    embedded,
    kandinsky,
    mask,
    picture_inputs,
    sd,
    sd_inputs,
    video_inputs,
    xl,
    xl_inputs,
)

MARIGOLD = {
    "default_denoising_steps": 5,
    "default_processing_resolution": 64,
    "scale_invariant": True,
    "shift_invariant": True,
    "use_full_z_range": True,
}
TARGETS = {
    "target_names": ["albedo", "roughness"],
    "albedo": {"prediction_space": "srgb", "up_to_scale": False},
    "roughness": {"prediction_space": "linear", "up_to_scale": False},
}


class Told(torch.nn.Module):
    """In the place of an encoder whose results are given; asked for its type and its limits alone."""

    dtype = torch.float32
    device = torch.device("cpu")
    config = SimpleNamespace(model_type="t5")
    model_max_length, eos_token = 77, ""

    @property
    def text_model(self) -> "Told":
        return self


def texts() -> dict[str, Any]:
    """A text encoder and its tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = tiny_pipeline.build(Path(folder))
    return {"text_encoder": pipe.text_encoder.eval(), "tokenizer": pipe.tokenizer}


def with_text(name: str, **parts: Any) -> Any:
    return sd(name, **texts(), **parts)


def changed(unet: Any, **config: Any) -> Any:
    """A network with another configuration."""
    kept = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    return seeded(lambda: type(unet)(**{**kept, **config}))


def upscaler() -> Any:
    unet = sd_unet(**SMALL, in_channels=8, out_channels=5, time_cond_proj_dim=128 + TEXT)
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample")
    return sd("StableDiffusionLatentUpscalePipeline", unet=unet, scheduler=scheduler)


def marigold(name: str, kind: str, maps: int = 1, **more: Any) -> Any:
    unet = sd_unet(**SMALL, in_channels=4 * (1 + maps), out_channels=4 * maps)
    scheduler = ddim(prediction_type="v_prediction")
    return made(name, unet=unet, vae=kl(), scheduler=scheduler, prediction_type=kind, **texts(), **MARIGOLD, **more)


def seen(d: Draw, **more: Any) -> dict[str, Any]:
    return {"image": d.picture(1, 3, 64, 64), "output_type": "pt", "match_input_resolution": False, **more}


def animated_xl() -> Any:
    config = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"),
        "up_block_types": ("CrossAttnUpBlockMotion", "UpBlockMotion"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": TEXT,
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
        "motion_max_seq_length": 8,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT,
        "transformer_layers_per_block": (1, 1),
        "use_linear_projection": True,
    }
    return animated("AnimateDiffSDXLPipeline", unet=seeded(lambda: diffusers.UNetMotionModel(**config)))


def initialised() -> Any:
    pipe = animated("AnimateDiffPipeline")
    pipe.enable_free_init(num_iters=2)
    return pipe


def unending() -> Any:
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_max_seq_length=8, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    pipe = animated("AnimateDiffPipeline", motion_adapter=motion, **texts())
    pipe.enable_free_noise(context_length=2, context_stride=1)
    return pipe


def unclip() -> Any:
    size = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * TEXT}
    return sd(
        "StableUnCLIPImg2ImgPipeline",
        unet=sd_unet(**SMALL, **size),
        image_normalizer=seeded(lambda: StableUnCLIPImageNormalizer(embedding_dim=TEXT)),
        image_noising_scheduler=diffusers.DDPMScheduler(),
        **vision(),
    )


def zero_xl() -> Any:
    one = texts()
    config = one["text_encoder"].config
    config.projection_dim = TEXT
    second = seeded(lambda: CLIPTextModelWithProjection(config))
    more = {"tokenizer_2": one["tokenizer"], "text_encoder_2": second, "config": {"cross_attention_dim": 2 * TEXT}}
    return xl("TextToVideoZeroSDXLPipeline", **one, **more)


def zero(index: int) -> tuple[int, int]:
    """Three calls of the first frame, and then a run of all frames from the second of five timesteps on."""
    return (index if index < 3 else index - 3, 0)


def sound(name: str) -> Any:
    """Its cross-attentions are given no prompt, which comes as class labels instead."""
    unet = sd_unet(
        **{**SMALL, "cross_attention_dim": (8, 16)},
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=TEXT,
        class_embeddings_concat=True,
    )
    config = SpeechT5HifiGanConfig(
        model_in_dim=64,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        normalize_before=False,
    )
    vae = kl(in_channels=1, out_channels=1)
    pipe = made(name, unet=unet, vae=vae, scheduler=ddim(), vocoder=seeded(lambda: SpeechT5HifiGan(config)))
    pipe.register_modules(text_encoder=Told())
    return pipe


def sounding(d: Draw) -> dict[str, Any]:
    prompts = {"prompt_embeds": d.normal(1, TEXT), "negative_prompt_embeds": d.normal(1, TEXT)}
    return {**prompts, "audio_length_in_s": 0.05, "output_type": "pt"}


def deep_picture(d: Draw, **more: Any) -> dict[str, Any]:
    return {**d.prompts(), "output_type": "pt", "image": d.picture(1, 3, 8, 8).float(), **HALF, **more}


STOPS = [
    Stop(
        "StableDiffusionDepth2ImgPipeline",
        lambda: sd("StableDiffusionDepth2ImgPipeline", unet=sd_unet(**SMALL, in_channels=5)),
        lambda d: {**picture_inputs(d), "image": d.picture(1, 3, 64, 64), "depth_map": d.picture(1, 64, 64)},
        "b",
        4,
    ),
    Stop(
        "StableDiffusionImageVariationPipeline",
        lambda: sd("StableDiffusionImageVariationPipeline", **vision()),
        lambda d: {"image": red(64), **SIZE},
        "b",
    ),
    Stop(
        "StableDiffusionLatentUpscalePipeline",
        upscaler,
        lambda d: {**d.prompts(), **d.pooled(), "image": d.normal(1, 4, 8, 8), "output_type": "latent"},
        "b",
    ),
    Stop("StableDiffusionModelEditingPipeline", lambda: sd("StableDiffusionModelEditingPipeline"), sd_inputs, "b"),
    Stop(
        "StableDiffusionParadigmsPipeline",
        lambda: sd("StableDiffusionParadigmsPipeline", scheduler=diffusers.DDIMParallelScheduler(clip_sample=False)),
        lambda d: sd_inputs(d, parallel=3),
        "b",
    ),
    Stop(
        "StableDiffusionDiffEditPipeline",
        lambda: with_text(
            "StableDiffusionDiffEditPipeline", inverse_scheduler=diffusers.DDIMInverseScheduler(clip_sample=False)
        ),
        lambda d: {
            "prompt": "a cat",
            "mask_image": torch.ones(1, 1, 8, 8),
            "image_latents": d.normal(1, 5, 4, 8, 8),
            "output_type": "latent",
            "inpaint_strength": 1.0,
        },
        "b",
    ),
    Stop(
        "StableUnCLIPImg2ImgPipeline", unclip, lambda d: {**d.prompts(), **SIZE, "image_embeds": d.normal(1, TEXT)}, "b"
    ),
    Stop(
        "SemanticStableDiffusionPipeline",
        lambda: with_text("SemanticStableDiffusionPipeline"),
        lambda d: {"prompt": "a cat", "editing_prompt": ["hat"], "edit_warmup_steps": 1, **SIZE},
        "x",
    ),
    Stop(
        "CycleDiffusionPipeline",
        lambda: with_text("CycleDiffusionPipeline", scheduler=ddim(set_alpha_to_one=False)),
        lambda d: {
            "prompt": "a cat",
            "source_prompt": "a dog",
            "image": d.picture(1, 3, 64, 64),
            "output_type": "pt",
            **HALF,
        },
        "x",
        4,
    ),
    Stop(
        "StableDiffusionAttendAndExcitePipeline",
        lambda: with_text("StableDiffusionAttendAndExcitePipeline"),
        lambda d: {"prompt": "a cat", "token_indices": [1, 2], **SIZE, "max_iter_to_alter": 0, "attn_res": (8, 8)},
        "x",
    ),
    Stop(
        "StableDiffusionGLIGENPipeline",
        lambda: with_text("StableDiffusionGLIGENPipeline", unet=sd_unet(**SMALL, attention_type="gated")),
        lambda d: {"prompt": "a cat", "gligen_phrases": ["hat"], "gligen_boxes": [[0.1, 0.1, 0.5, 0.5]], **SIZE},
        "b",
    ),
    Stop("MarigoldDepthPipeline", lambda: marigold("MarigoldDepthPipeline", "depth"), seen),
    Stop(
        "MarigoldDepthPipeline, ensemble",
        lambda: marigold("MarigoldDepthPipeline", "depth"),
        lambda d: seen(d, ensemble_size=3, batch_size=1),
        calls=lambda index: (index % 5, index // 5),
    ),
    Stop("MarigoldNormalsPipeline", lambda: marigold("MarigoldNormalsPipeline", "normals"), seen),
    Stop(
        "MarigoldIntrinsicsPipeline",
        lambda: marigold("MarigoldIntrinsicsPipeline", "intrinsics", 2, target_properties=TARGETS),
        seen,
    ),
    Stop(
        "LDMSuperResolutionPipeline",
        lambda: made(
            "LDMSuperResolutionPipeline",
            vqvae=kl(3, 3),
            unet=changed(ddpm_unet(), in_channels=6, out_channels=3),
            scheduler=ddim(),
        ),
        lambda d: {"image": d.picture(1, 3, 8, 8), "output_type": "np"},
    ),
    Stop(
        "RePaintPipeline",
        lambda: made("RePaintPipeline", unet=ddpm_unet(), scheduler=diffusers.RePaintScheduler()),
        lambda d: {
            "image": d.picture(1, 4, 16, 16),
            "mask_image": mask()[..., ::4, ::4],
            "output_type": "np",
            "jump_length": 2,
            "jump_n_sample": 2,
        },
    ),
    Stop(
        "PNDMPipeline",
        lambda: made("PNDMPipeline", unet=ddpm_unet(), scheduler=diffusers.PNDMScheduler()),
        lambda d: {"output_type": "np"},
    ),
    Stop("IFImg2ImgPipeline", lambda: deepfloyd("IFImg2ImgPipeline"), deep_picture, "b", 4),
    Stop(
        "IFInpaintingPipeline",
        lambda: deepfloyd("IFInpaintingPipeline"),
        lambda d: deep_picture(d, mask_image=torch.ones(1, 1, 8, 8)),
        "b",
        4,
    ),
    Stop(
        "KandinskyV22InpaintPipeline",
        lambda: kandinsky("KandinskyV22InpaintPipeline", 9),
        lambda d: embedded(d, image=d.picture(1, 3, 64, 64), mask_image=mask()),
        "b",
    ),
    Stop(
        "KandinskyV22ControlnetPipeline",
        lambda: kandinsky("KandinskyV22ControlnetPipeline"),
        lambda d: embedded(d, hint=d.picture(1, 3, 64, 64), output_type="pt"),
        "b",
    ),
    Stop("AudioLDMPipeline", lambda: sound("AudioLDMPipeline"), sounding, "b"),
    Stop("MusicLDMPipeline", lambda: sound("MusicLDMPipeline"), sounding, "b"),
    Stop(
        "VideoToVideoSDPipeline",
        lambda: made("VideoToVideoSDPipeline", unet=unet3d(), scheduler=ddim(), vae=kl()),
        lambda d: {**d.prompts(), "output_type": "latent", "video": [d.picture(3, 64, 64).float()] * 2, **HALF},
        "b",
        4,
    ),
    Stop(
        "TextToVideoZeroPipeline",
        lambda: with_text("TextToVideoZeroPipeline"),
        lambda d: {"prompt": "a cat", **SIZE, "video_length": 2, "t0": 1, "t1": 3},
        "b",
        calls=zero,
    ),
    Stop(
        "TextToVideoZeroSDXLPipeline",
        zero_xl,
        lambda d: {"prompt": "a cat", **SIZE, "video_length": 2, "t0": 1, "t1": 3},
        "b",
        calls=zero,
    ),
    Stop("AnimateDiffSDXLPipeline", animated_xl, lambda d: xl_inputs(d, num_frames=2), "b"),
    Stop("AnimateDiffPipeline, FreeInit", initialised, video_inputs, "b", calls=lambda index: (index % 5, 0)),
    Stop("AnimateDiffPipeline, FreeNoise", unending, lambda d: {**SIZE, "prompt": "a cat", "num_frames": 4}, "b"),
    Stop(
        "PIAPipeline",
        lambda: animated("PIAPipeline", unet=changed(motion_unet(), in_channels=9), **vision()),
        lambda d: video_inputs(d, image=red(64), strength=1.0),
        "b",
    ),
    Stop(
        "I2VGenXLPipeline",
        lambda: made("I2VGenXLPipeline", unet=i2vgen_unet(), vae=kl(), scheduler=ddim(), **vision()),
        lambda d: video_inputs(d, prompt=None, image=red(64), target_fps=8),
        "b",
    ),
]
STOPS = [replace(stop, networks=("unet",)) for stop in STOPS]
