"""Tiny pipelines with random weights, one per family that can stream."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from diffaccel.stream.engine import StreamEngine

Build = Callable[..., StreamEngine]  # what the fixture `engine` gives
DATA = Path(__file__).parents[1] / "data"
WORDS = ["<pad>", "<unk>", "</s>", "a", "cat", "dog", "red", "blue", "heart", "star", "blurry", "user"]


def _seeded(build: Callable[[], Any]) -> Any:
    """A module whose weights are random, not tiny: also what networks initialise with zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build().eval()
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.abs().sum():
                torch.nn.init.normal_(parameter, std=0.02)
    return model


def _words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=32,
        chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}",
    )


def _clip(projected: bool = False) -> Any:
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    config = CLIPTextConfig.from_pretrained(DATA / "tiny-sd", subfolder="text_encoder")
    return _seeded(lambda: kind(config))


def _clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(DATA / "tiny-sd", subfolder="tokenizer")


def _t5(size: int = 32) -> T5EncoderModel:
    return _seeded(
        lambda: T5EncoderModel(
            T5Config(vocab_size=len(WORDS), d_model=size, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
        )
    )


def _kl(channels: int, levels: int = 3, scale: float = 0.9, shift: float | None = None) -> AutoencoderKL:
    return _seeded(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(8,) * levels,
            norm_num_groups=4,
            latent_channels=channels,
            scaling_factor=scale,
            shift_factor=shift,
            sample_size=32,
        )
    )


def tiny_vae() -> AutoencoderTiny:
    return AutoencoderTiny.from_pretrained(DATA / "tiny-vae")


@cache
def _tiny_sd() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(DATA / "tiny-sd", vae=tiny_vae(), safety_checker=None)
    pipe.vae.register_to_config(scaling_factor=20.0)  # random weights encode every picture to nearly the same latents
    return pipe


def sd(scheduler: Any = LCMScheduler, **config: Any) -> StableDiffusionPipeline:
    pipe = copy.deepcopy(_tiny_sd())
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl() -> StableDiffusionXLPipeline:
    unet = _seeded(
        lambda: UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            sample_size=8,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
            cross_attention_dim=64,
        )
    )
    return StableDiffusionXLPipeline(
        vae=_kl(4),
        text_encoder=_clip(),
        text_encoder_2=_clip(projected=True),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=unet,
        add_watermarker=False,
        scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        ),
    )


def sd3() -> StableDiffusion3Pipeline:
    transformer = _seeded(
        lambda: SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            out_channels=4,
            pos_embed_max_size=16,
        )
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_kl(4, shift=0.1),
        text_encoder=_clip(projected=True),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(projected=True),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(64),
        tokenizer_3=_words(),
    )


def flux(guidance_embeds: bool = False) -> FluxPipeline:
    transformer = _seeded(
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        )
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0, use_dynamic_shifting=guidance_embeds, base_shift=0.3, max_shift=0.9
        ),
        vae=_kl(4, shift=0.1),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_words(),
    )


def sana() -> SanaPipeline:
    transformer = _seeded(
        lambda: SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=8,
            sample_size=32,
        )
    )
    vae = _seeded(
        lambda: AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=[1, 1],
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        )
    )
    encoder = _seeded(
        lambda: Gemma2Model(
            Gemma2Config(
                head_dim=8,
                hidden_size=8,
                intermediate_size=16,
                num_attention_heads=2,
                num_hidden_layers=1,
                num_key_value_heads=2,
                vocab_size=len(WORDS),
                attn_implementation="eager",
            )
        )
    )
    return SanaPipeline(
        tokenizer=_words(),
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def pixart() -> PixArtAlphaPipeline:
    transformer = _seeded(
        lambda: PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=16,
            out_channels=8,
            use_additional_conditions=False,
        )
    )
    return PixArtAlphaPipeline(
        tokenizer=_words(),
        text_encoder=_t5(),
        vae=_kl(4),
        transformer=transformer,
        scheduler=LCMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def z_image() -> ZImagePipeline:
    transformer = _seeded(
        lambda: ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
            rope_theta=256.0,
            t_scale=1000.0,
        )
    )
    encoder = _seeded(
        lambda: Qwen3Model(
            Qwen3Config(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                vocab_size=len(WORDS),
                max_position_embeddings=512,
            )
        )
    )
    return ZImagePipeline(
        transformer=transformer,
        vae=_kl(16, levels=2, shift=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=encoder,
        tokenizer=_words(),
    )
