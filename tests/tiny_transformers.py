"""Tiny diffusion transformers with random weights, in the shapes of published models, and inputs for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

import diffaccel

ROWS = 2


@dataclass(frozen=True)
class Tiny:
    """How to build a transformer, and inputs by name without the timestep; `sample` is the first of its inputs.

    Attributes:
        config: arguments of the class.
        inputs: makes random inputs for some rows from a generator.
        timestep: name of that input.
    """

    config: dict[str, Any]
    inputs: Callable[[int, torch.Generator], dict[str, Any]]
    timestep: str = "timestep"

    def build(self, name: str) -> Any:
        torch.manual_seed(0)
        model = getattr(diffusers if hasattr(diffusers, name) else diffaccel, name)(**self.config).eval()
        for parameter in model.parameters():  # published models start some layers at zero, which would hide them
            if parameter.abs().max() == 0:
                torch.nn.init.normal_(parameter, std=0.2)
        return model


def _normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _image(prompt: int | None = 16, channels: int = 4, size: int = 8, **more: Any) -> Any:
    """Inputs of a network that takes a picture, (rows, channels, size, size), and a prompt, (rows, 6, prompt)."""

    def inputs(rows: int, g: torch.Generator) -> dict[str, Any]:
        values = {"hidden_states": _normal(g, rows, channels, size, size)}
        if prompt is not None:
            values["encoder_hidden_states"] = _normal(g, rows, 6, prompt)
        return values | {name: make(rows, g) for name, make in more.items()}

    return inputs


def _video(prompt: int = 16, channels: int = 4, frames: int = 2, size: int = 4, order: str = "cf", **more: Any) -> Any:
    """Inputs of a network that takes a video, (rows, channels, frames, size, size) or with frames first."""

    def inputs(rows: int, g: torch.Generator) -> dict[str, Any]:
        lead = (channels, frames) if order == "cf" else (frames, channels)
        values = {
            "hidden_states": _normal(g, rows, *lead, size, size),
            "encoder_hidden_states": _normal(g, rows, 6, prompt),
        }
        return values | {name: make(rows, g) for name, make in more.items()}

    return inputs


def _tokens(prompt: int = 16, channels: int = 4, tokens: int = 16, **more: Any) -> Any:
    """Inputs of a network that takes a sequence, (rows, tokens, channels)."""

    def inputs(rows: int, g: torch.Generator) -> dict[str, Any]:
        values = {
            "hidden_states": _normal(g, rows, tokens, channels),
            "encoder_hidden_states": _normal(g, rows, 6, prompt),
        }
        return values | {name: make(rows, g) for name, make in more.items()}

    return inputs


def normal(*shape: int) -> Any:
    return lambda rows, g: _normal(g, rows, *shape)


def fixed(value: Any) -> Any:
    return lambda rows, g: value


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    return lambda rows, g: torch.ones(rows, *shape, dtype=dtype)


def ids(count: int, axes: int, low: int = 0) -> torch.Tensor:
    positions = torch.zeros(count, axes)
    positions[:, -1] = torch.arange(count) + low
    return positions


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
PATCH = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4}
FLUX_IDS = {"img_ids": fixed(ids(16, 3)), "txt_ids": fixed(torch.zeros(6, 3))}
WAN = {
    **HEADS,
    "patch_size": (1, 2, 2),
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}

TRANSFORMERS: dict[str, Tiny] = {
    "AuraFlowTransformer2DModel": Tiny(
        {
            **HEADS,
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 64,
            "out_channels": 4,
        },
        _image(),
    ),
    "AllegroTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "cross_attention_dim": 16,
            "sample_width": 4,
            "sample_height": 4,
            "sample_frames": 2,
            "caption_channels": 16,
        },
        _video(image_rotary_emb=fixed(None), attention_mask=ones(2, 4, 4), encoder_attention_mask=ones(1, 6)),
    ),
    "ChromaTransformer2DModel": Tiny(
        {
            **HEADS,
            "patch_size": 1,
            "in_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (2, 2, 4),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        _tokens(**FLUX_IDS),
    ),
    "CogVideoXTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "num_layers": 4,
            "sample_width": 4,
            "sample_height": 4,
            "sample_frames": 5,
            "patch_size": 2,
            "max_text_seq_length": 6,
        },
        _video(order="fc"),
    ),
    "CogView3PlusTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "condition_dim": 4,
            "pos_embed_max_size": 8,
            "sample_size": 8,
            "patch_size": 2,
        },
        _image(original_size=normal(2), target_size=normal(2), crop_coords=normal(2)),
    ),
    "CogView4Transformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "condition_dim": 4,
            "sample_size": 8,
            "patch_size": 2,
            "rope_axes_dim": (8, 8),
        },
        _image(original_size=normal(2), target_size=normal(2), crop_coords=normal(2)),
    ),
    "DiTTransformer2DModel": Tiny(
        {**HEADS, **PATCH, "num_layers": 4, "num_embeds_ada_norm": 10},
        _image(None, class_labels=lambda rows, g: torch.randint(10, (rows,), generator=g)),
    ),
    "Flux2Transformer2DModel": Tiny(
        {
            **HEADS,
            "patch_size": 1,
            "in_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (2, 2, 2, 2),
            "timestep_guidance_channels": 16,
        },
        _tokens(img_ids=fixed(ids(16, 4)), txt_ids=fixed(ids(6, 4)), guidance=ones()),
    ),
    "FluxTransformer2DModel": Tiny(
        {
            **HEADS,
            "patch_size": 1,
            "in_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 8,
            "axes_dims_rope": (2, 2, 4),
        },
        _tokens(pooled_projections=normal(8), **FLUX_IDS),
    ),
    "HunyuanDiT2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 16,
            "num_layers": 4,
            "cross_attention_dim": 16,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 16,
            "text_len": 6,
            "text_len_t5": 6,
            "activation_fn": "gelu-approximate",
        },
        _image(
            text_embedding_mask=ones(6),
            encoder_hidden_states_t5=normal(6, 16),
            text_embedding_mask_t5=ones(6),
            image_meta_size=normal(6),
            style=lambda rows, g: torch.zeros(rows, dtype=torch.long),
            image_rotary_emb=fixed([torch.ones(16, 8), torch.zeros(16, 8)]),
        ),
    ),
    "HunyuanVideoTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (2, 2, 4),
            "guidance_embeds": False,
        },
        _video(encoder_attention_mask=ones(6), pooled_projections=normal(8)),
    ),
    "LTXVideoTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "cross_attention_dim": 16,
            "caption_channels": 16,
        },
        _tokens(encoder_attention_mask=ones(6), num_frames=fixed(1), height=fixed(4), width=fixed(4)),
    ),
    "LatteTransformer3DModel": Tiny(
        {
            **HEADS,
            "sample_size": 4,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "patch_size": 2,
            "attention_bias": True,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "norm_type": "ada_norm_single",
            "video_length": 2,
        },
        _video(),
    ),
    "Lumina2Transformer2DModel": Tiny(
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (2, 2, 4),
            "axes_lens": (64, 16, 16),
            "cap_feat_dim": 16,
        },
        _image(encoder_attention_mask=ones(6, dtype=torch.bool)),
    ),
    "LuminaNextDiT2DModel": Tiny(
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 4,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "ffn_dim_multiplier": None,
            "learn_sigma": False,
            "cross_attention_dim": 16,
        },
        _image(
            encoder_mask=ones(6),
            image_rotary_emb=fixed(torch.ones(384, 384, 4, dtype=torch.complex64)),
            cross_attention_kwargs=fixed({}),
        ),
    ),
    "MochiTransformer3DModel": Tiny(
        {
            **HEADS,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "pooled_projection_dim": 16,
            "time_embed_dim": 4,
            "text_embed_dim": 16,
            "max_sequence_length": 6,
        },
        _video(encoder_attention_mask=ones(6, dtype=torch.bool)),
    ),
    "PTDiTTransformer2DModel": Tiny(
        {
            **HEADS,
            **PATCH,
            "num_layers": 4,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "use_additional_conditions": False,
            "window": 2,
            "compression": 2,
        },
        _image(),
    ),
    "PixArtTransformer2DModel": Tiny(
        {
            **HEADS,
            **PATCH,
            "num_layers": 4,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "out_channels": 8,
            "use_additional_conditions": False,
        },
        _image(added_cond_kwargs=fixed({"resolution": None, "aspect_ratio": None})),
    ),
    "QwenImageTransformer2DModel": Tiny(
        {
            **HEADS,
            "patch_size": 1,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "joint_attention_dim": 16,
            "axes_dims_rope": (2, 2, 4),
        },
        _tokens(
            encoder_hidden_states_mask=ones(6, dtype=torch.long),
            img_shapes=lambda rows, g: [[(1, 4, 4)]] * rows,
        ),
    ),
    "SD3Transformer2DModel": Tiny(
        {
            **HEADS,
            **PATCH,
            "num_layers": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        _image(pooled_projections=normal(8)),
    ),
    "SanaTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "sample_size": 8,
            "patch_size": 2,
        },
        _image(),
    ),
    "SkyReelsV2Transformer3DModel": Tiny(WAN, _video(size=4)),
    "StableAudioDiTModel": Tiny(
        {
            **HEADS,
            "sample_size": 4,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "num_key_value_attention_heads": 2,
            "cross_attention_dim": 16,
            "time_proj_dim": 8,
            "global_states_input_dim": 8,
            "cross_attention_input_dim": 16,
        },
        lambda rows, g: {
            "hidden_states": _normal(g, rows, 4, 8),
            "encoder_hidden_states": _normal(g, rows, 6, 16),
            "global_hidden_states": _normal(g, rows, 1, 8),
            "rotary_embedding": (torch.ones(9, 4), torch.zeros(9, 4)),
        },
    ),
    "WanTransformer3DModel": Tiny(WAN, _video(size=4)),
    "ZImageTransformer2DModel": Tiny(
        {
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 4,
            "dim": 16,
            "n_layers": 4,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "qk_norm": True,
            "cap_feat_dim": 16,
            "axes_dims": [2, 2, 4],
            "axes_lens": [256, 32, 32],
        },
        lambda rows, g: {
            "x": [_normal(g, 4, 1, 8, 8) for _ in range(rows)],
            "cap_feats": [_normal(g, 6, 16) for _ in range(rows)],
        },
        timestep="t",
    ),
}
