"""Further pipelines around transformers: controlled, painting over and editing; newer networks, priors and sound."""

from typing import Any

import diffusers
import torch
from diffusers.guiders import AdaptiveProjectedMixGuidance
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from transformers import CLIPTextModelWithProjection
from walk_edits import Told, texts
from walk_parts import TOKENS, Draw, Stop, flow, kl, made, network, red, seeded, transformer, vision
from walk_pictures import (
    FLUX,
    HALF,
    SIZE,
    flux,
    flux2,
    flux_inputs,
    half_mask,
    image,
    listed,
    masked,
    picture,
    qwen,
    qwen_inputs,
    qwen_vae,
    sana,
    sana_inputs,
    sd3,
    sd3_inputs,
    sprint_inputs,
    zimage,
)

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def painted(d: Draw, **more: Any) -> dict[str, Any]:
    return picture(d, mask_image=half_mask(), **HALF, **more)


def control(d: Draw, **more: Any) -> dict[str, Any]:
    return {"control_image": d.picture(1, 3, 64, 64), **more}


def sd3_control(name: str, channels: int = 0) -> Any:
    net = transformer("SD3Transformer2DModel", dual_attention_layers=(), in_channels=4, out_channels=4)
    make = diffusers.SD3ControlNetModel.from_transformer
    config = {"num_layers": 1, "num_extra_conditioning_channels": channels, "load_weights_from_transformer": False}
    parts = {"transformer": net, "controlnet": seeded(lambda: make(net, **config)), "vae": kl(shift_factor=0.0)}
    return image(name, "SD3Transformer2DModel", **parts)


def qwen_control(name: str, channels: int = 0) -> Any:
    net = transformer("QwenImageTransformer2DModel", **FLUX)
    make = diffusers.QwenImageControlNetModel.from_transformer
    config = {
        "num_layers": 1,
        "extra_condition_channels": channels,
        "attention_head_dim": net.config.attention_head_dim,
        "num_attention_heads": net.config.num_attention_heads,
        "load_weights_from_transformer": False,
    }
    parts = {"transformer": net, "controlnet": seeded(lambda: make(net, **config)), "vae": qwen_vae()}
    return image(name, "QwenImageTransformer2DModel", **parts)


def sana_control() -> Any:
    pipe = sana("SanaPipeline")
    left_out = ("guidance_embeds", "guidance_embeds_scale", "qk_norm", "timestep_scale")
    config = {k: v for k, v in pipe.transformer.config.items() if not k.startswith("_") and k not in left_out}
    net = network("SanaControlNetModel", **{**config, "num_layers": 1})
    return made("SanaControlNetPipeline", **{**pipe.components, "controlnet": net})


def hunyuan_image() -> Any:
    net = network(
        "HunyuanImageTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=(1, 1),
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
    )
    vae = network(
        "AutoencoderKLHunyuanImage",
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=32,
        scaling_factor=1.0,
        downsample_match_channel=True,
        upsample_match_channel=True,
    )
    pipe = made("HunyuanImagePipeline", transformer=net, scheduler=flow(), vae=vae)
    pipe.register_modules(guider=AdaptiveProjectedMixGuidance(), ocr_guider=AdaptiveProjectedMixGuidance())
    return pipe


def twice_prompted(d: Draw, **more: Any) -> dict[str, Any]:
    """Prompts of two encoders and their masks."""
    inputs = {}
    for kind in ("", "negative_"):
        for which in ("", "_2"):
            inputs[f"{kind}prompt_embeds{which}"] = d.normal(1, TOKENS, 16)
            inputs[f"{kind}prompt_embeds_mask{which}"] = torch.ones(1, TOKENS, dtype=torch.long)
    return {**inputs, "height": 16, "width": 16, "output_type": "latent", **more}


def kandinsky5(name: str, vae: Any, **config: Any) -> Any:
    net = network(
        "Kandinsky5Transformer3DModel",
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(2, 2, 4),
        **config,
    )
    return made(name, transformer=net, vae=vae, scheduler=flow())


def kandinsky5_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for kind in ("", "negative_"):
        inputs[f"{kind}prompt_embeds_qwen"] = d.normal(1, TOKENS, 16)
        inputs[f"{kind}prompt_embeds_clip"] = d.normal(1, 8)
        inputs[f"{kind}prompt_cu_seqlens"] = torch.tensor([0, TOKENS], dtype=torch.int32)
    return {**inputs, "height": 32, "width": 32, "output_type": "latent", **more}


def long_cat() -> Any:
    net = network(
        "LongCatImageTransformer2DModel",
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[2, 2, 4],
    )
    pipe = made("LongCatImagePipeline", transformer=net, vae=kl(16, shift_factor=0.0), scheduler=flow())

    def encode_prompt(prompt: Any, **rest: Any) -> Any:
        generator = torch.Generator().manual_seed(len(prompt[0]))
        return torch.randn(1, TOKENS, 16, generator=generator).to(net.dtype), torch.zeros(TOKENS, 3)

    pipe.encode_prompt = encode_prompt
    return pipe


def hidream() -> Any:
    net = network(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=16,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1, 0, 1),
    )
    return made("HiDreamImagePipeline", transformer=net, vae=kl(shift_factor=0.0), scheduler=flow())


def hidream_inputs(d: Draw) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for kind in ("", "negative_"):
        inputs[f"{kind}prompt_embeds_t5"] = d.normal(1, TOKENS, 16)
        inputs[f"{kind}prompt_embeds_llama3"] = d.normal(2, 1, TOKENS, 16)
        inputs[f"{kind}pooled_prompt_embeds"] = d.normal(1, 16)
    return {**inputs, **SIZE}


def nucleus() -> Any:
    net = network(
        "NucleusMoEImageTransformer2DModel",
        **HEADS,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        num_key_value_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        mlp_ratio=2.0,
        moe_enabled=False,
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=[8.0] * 3,
    )
    return made("NucleusMoEImagePipeline", transformer=net, vae=qwen_vae(), scheduler=flow())


def krea() -> Any:
    net = network(
        "Krea2Transformer2DModel",
        **HEADS,
        in_channels=16,
        num_layers=3,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
    )
    layers = {"text_encoder_select_layers": (0, 1)}
    return made("Krea2Pipeline", transformer=net, vae=qwen_vae(), scheduler=flow(), **layers)


def krea_inputs(d: Draw) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for kind in ("", "negative_"):
        inputs[f"{kind}prompt_embeds"] = d.normal(1, TOKENS, 2, 16)
        inputs[f"{kind}prompt_embeds_mask"] = torch.ones(1, TOKENS, dtype=torch.bool)
    return {**inputs, **SIZE, "guidance_scale": 3.0}


def ernie() -> Any:
    net = network(
        "ErnieImageTransformer2DModel",
        hidden_size=32,
        num_attention_heads=2,
        num_layers=3,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(8, 4, 4),
    )
    vae = flux2("Flux2Pipeline").vae
    return made("ErnieImagePipeline", transformer=net, vae=vae, scheduler=flow())


class Processor:
    """Asked for the length of a system message and the number of one token."""

    class tokenizer:
        @staticmethod
        def encode(text: str) -> list[int]:
            return [7]

    def apply_chat_template(self, *args: Any, **rest: Any) -> list[list[int]]:
        return [[1, 2, 3]]


def qwen21() -> Any:
    net = network(
        "QwenImage21Transformer2DModel",
        **HEADS,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        context_in_dim=16,
        mlp_ratio=2,
        axes_dims_rope=(8, 4, 4),
    )
    parts = {"transformer": net, "vae": qwen_vae(), "scheduler": flow(), "processor": Processor()}
    return made("QwenImage21Pipeline", **parts)


def qwen21_inputs(d: Draw, *, cached: bool) -> dict[str, Any]:
    return masked(d, mask="prompt_embeds_mask", true_cfg_scale=3.0, use_kv_cache=cached)


def glm() -> Any:
    net = network(
        "GlmImageTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=32,
    )
    vae = kl(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return made("GlmImagePipeline", transformer=net, vae=vae, scheduler=flow())


def stable_audio() -> Any:
    net = network(
        "StableAudioDiTModel",
        sample_size=4,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    vae = network(
        "AutoencoderOobleck",
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    config = {"text_encoder_dim": 16, "conditioning_dim": 16, "min_value": 0, "max_value": 32}
    pipe = made(
        "StableAudioPipeline",
        transformer=net,
        vae=vae,
        scheduler=diffusers.CosineDPMSolverMultistepScheduler(sigma_schedule="exponential"),
        projection_model=seeded(lambda: StableAudioProjectionModel(**config)),
    )
    pipe.register_modules(text_encoder=Told())
    return pipe


def sounding(d: Draw) -> dict[str, Any]:
    inputs: dict[str, Any] = d.prompts()
    masks = {f"{kind}attention_mask": torch.ones(1, TOKENS, dtype=torch.long) for kind in ("", "negative_")}
    return {**inputs, **masks, "audio_end_in_s": 2.0, "output_type": "latent"}


def prior(name: str, scheduler: Any, **config: Any) -> Any:
    """A prior makes embeddings of pictures out of those of texts."""
    one = texts()
    one["text_encoder"].config.projection_dim = 16
    second = seeded(lambda: CLIPTextModelWithProjection(one["text_encoder"].config))
    net = network(
        "PriorTransformer",
        **{"num_attention_heads": 2, "attention_head_dim": 8, "embedding_dim": 16, "num_layers": 3, **config},
    )
    seen = vision()
    more = {"image_encoder": seen["image_encoder"], "image_processor": seen["feature_extractor"]}
    return made(name, prior=net, text_encoder=second, tokenizer=one["tokenizer"], scheduler=scheduler, **more)


def shap_e() -> Any:
    scheduler = diffusers.HeunDiscreteScheduler(
        beta_schedule="exp",
        num_train_timesteps=1024,
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
        clip_sample_range=1.0,
    )
    return prior(
        "ShapEPipeline",
        scheduler,
        attention_head_dim=16,
        num_embeddings=32,
        embedding_proj_dim=16,
        time_embed_dim=64,
        clip_embed_dim=32,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )


def unclip() -> Any:
    scheduler = diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
    )
    return prior("KandinskyV22PriorPipeline", scheduler, num_embeddings=16)


STOPS = [
    Stop(
        "CogView4ControlPipeline",
        lambda: image("CogView4ControlPipeline", "CogView4Transformer2DModel", {"in_channels": 8, "out_channels": 4}),
        lambda d: {**d.prompts(), **SIZE, **control(d)},
        "pn",
    ),
    Stop(
        "FluxControlImg2ImgPipeline",
        lambda: flux("FluxControlImg2ImgPipeline", in_channels=32),
        lambda d: flux_inputs(d, **picture(d, **HALF), **control(d)),
        steps=4,
    ),
    Stop(
        "FluxControlInpaintPipeline",
        lambda: flux("FluxControlInpaintPipeline", in_channels=32),
        lambda d: flux_inputs(d, **painted(d), **control(d)),
        steps=4,
    ),
    Stop(
        "FluxControlNetImg2ImgPipeline",
        lambda: flux("FluxControlNetImg2ImgPipeline"),
        lambda d: flux_inputs(d, **picture(d, **HALF), **control(d)),
        steps=4,
    ),
    Stop(
        "FluxControlNetInpaintPipeline",
        lambda: flux("FluxControlNetInpaintPipeline"),
        lambda d: flux_inputs(d, **painted(d), **control(d)),
        steps=4,
    ),
    Stop(
        "FluxKontextInpaintPipeline",
        lambda: flux("FluxKontextInpaintPipeline"),
        lambda d: flux_inputs(d, **painted(d), max_area=64 * 64, _auto_resize=False),
        steps=4,
    ),
    Stop(
        "FluxKontextInpaintPipeline, true guidance",
        lambda: flux("FluxKontextInpaintPipeline"),
        lambda d: flux_inputs(d, True, **painted(d), max_area=64 * 64, _auto_resize=False),
        "pn",
        4,
    ),
    Stop(
        "Flux2KleinInpaintPipeline",
        lambda: flux2("Flux2KleinInpaintPipeline"),
        lambda d: {**d.prompts(), **SIZE, **painted(d)},
        "pn",
        4,
    ),
    Stop(
        "Flux2KleinKVPipeline",
        lambda: flux2("Flux2KleinKVPipeline"),
        lambda d: {**d.prompts("prompt_embeds"), **SIZE, "image": [red(64)]},
        "pp",
        calls=lambda index: (index, min(index, 1)),  # the first keeps keys and values of the picture, the others read
    ),
    Stop(
        "StableDiffusion3ControlNetPipeline",
        lambda: sd3_control("StableDiffusion3ControlNetPipeline"),
        lambda d: sd3_inputs(d, **control(d)),
        "b",
    ),
    Stop(
        "StableDiffusion3ControlNetInpaintingPipeline",
        lambda: sd3_control("StableDiffusion3ControlNetInpaintingPipeline", 1),
        lambda d: sd3_inputs(d, **control(d, control_mask=half_mask())),
        "b",
    ),
    Stop(
        "StableDiffusion3PAGImg2ImgPipeline",
        lambda: sd3("StableDiffusion3PAGImg2ImgPipeline", pag_applied_layers=["blocks.1"]),
        lambda d: {**sd3_inputs(d), "image": d.normal(1, 4, 8, 8), **HALF},
        "x",
        4,
    ),
    Stop(
        "QwenImageControlNetPipeline",
        lambda: qwen_control("QwenImageControlNetPipeline"),
        lambda d: qwen_inputs(d, **control(d)),
        "pn",
    ),
    Stop(
        "QwenImageControlNetInpaintPipeline",
        lambda: qwen_control("QwenImageControlNetInpaintPipeline", 4),
        lambda d: qwen_inputs(d, **control(d, control_mask=half_mask())),
        "pn",
    ),
    Stop(
        "QwenImageEditPipeline",
        lambda: qwen("QwenImageEditPipeline"),
        lambda d: qwen_inputs(d, image=red(64)),
        "pn",
        large=True,
    ),
    Stop(
        "QwenImageEditInpaintPipeline",
        lambda: qwen("QwenImageEditInpaintPipeline"),
        lambda d: qwen_inputs(d, **{**painted(d), "image": red(64)}),
        "pn",
        4,
        large=True,
    ),
    Stop(
        "QwenImageEditPlusPipeline",
        lambda: qwen("QwenImageEditPlusPipeline"),
        lambda d: qwen_inputs(d, image=[red(64)]),
        "pn",
        large=True,
    ),
    Stop("QwenImage21Pipeline", qwen21, lambda d: qwen21_inputs(d, cached=False), "pn"),
    Stop(
        "QwenImage21Pipeline, cached",
        qwen21,
        lambda d: qwen21_inputs(d, cached=True),
        "pnpn",
        calls=lambda index: (index // 2, index if index < 2 else 2 + index % 2),
    ),
    Stop(
        "SanaControlNetPipeline",
        sana_control,
        lambda d: sana_inputs(d, control_image=d.picture(1, 3, 32, 32)),
        "b",
    ),
    Stop(
        "SanaSprintImg2ImgPipeline",
        lambda: sana("SanaSprintImg2ImgPipeline", guidance_embeds=True),
        lambda d: sprint_inputs(d, image=d.picture(1, 3, 32, 32), strength=0.9, num_inference_steps=5),
        steps=4,
    ),
    Stop("ZImageInpaintPipeline", lambda: zimage("ZImageInpaintPipeline"), lambda d: listed(d, **painted(d)), "B", 4),
    Stop("HunyuanImagePipeline", hunyuan_image, twice_prompted, "pn"),
    Stop("Kandinsky5T2IPipeline", lambda: kandinsky5("Kandinsky5T2IPipeline", kl()), kandinsky5_inputs, "pn"),
    Stop(
        "LongCatImagePipeline",
        long_cat,
        lambda d: {"prompt": "a", "negative_prompt": "bcd", **SIZE, "enable_prompt_rewrite": False},
        "pn",
    ),
    Stop("HiDreamImagePipeline", hidream, hidream_inputs, "b"),
    Stop("NucleusMoEImagePipeline", nucleus, lambda d: masked(d, mask="prompt_embeds_mask"), "pn"),
    Stop("Krea2Pipeline", krea, krea_inputs, "pn"),
    Stop(
        "ErnieImagePipeline",
        ernie,
        lambda d: {
            **{f"{kind}prompt_embeds": [d.normal(TOKENS, 16)] for kind in ("", "negative_")},
            **SIZE,
            "use_pe": False,
        },
        "b",
    ),
    Stop("GlmImagePipeline", glm, lambda d: {**d.prompts(), **SIZE, "prior_token_ids": torch.ones(1, 1).long()}, "pn"),
    Stop("StableAudioPipeline", stable_audio, sounding, "b"),
    Stop(
        "KandinskyV22PriorPipeline",
        unclip,
        lambda d: {"prompt": "a cat", "output_type": "pt"},
        "b",
        networks=("prior",),
    ),
    Stop("ShapEPipeline", shap_e, lambda d: {"prompt": "a cat", "output_type": "latent"}, "b", 9, networks=("prior",)),
]
