"""Further pipelines for video around transformers: from pictures, in pieces, with sound, and newer networks."""

from typing import Any

import diffusers
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from walk_edits import texts
from walk_further_pictures import HEADS, kandinsky5, kandinsky5_inputs, twice_prompted
from walk_parts import Draw, Stop, flow, made, network, red, seeded, transformer, vision
from walk_videos import SIZE, cog, cog_vae, guided, hunyuan, hunyuan_inputs, ltx, masked, second, skyreels, wan, wan_vae

WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32}


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)


def hunyuan_picture(name: str, **config: Any) -> Any:
    net = transformer("HunyuanVideoTransformer3DModel", **{"guidance_embeds": True, **config})
    return made(name, transformer=net, vae=hunyuan().vae, scheduler=flow())


def pictured(d: Draw, **more: Any) -> dict[str, Any]:
    return hunyuan_inputs(d, image=red(32), **more)


def from_picture(**parts: Any) -> Any:
    net = transformer("WanTransformer3DModel", in_channels=12, out_channels=4)
    return wan("WanImageToVideoPipeline", transformer=net, **parts)


def with_vision(pipe: Any) -> Any:
    seen = vision()
    pipe.register_modules(image_encoder=seen["image_encoder"], image_processor=seen["feature_extractor"])
    return pipe


def skyreels_picture() -> Any:
    pipe = with_vision(skyreels("SkyReelsV2ImageToVideoPipeline"))
    config = {"in_channels": 12, "out_channels": 4, "image_dim": 16, "added_kv_proj_dim": 16}
    pipe.transformer = transformer("SkyReelsV2Transformer3DModel", **config)
    return pipe


def forced(d: Draw, **more: Any) -> dict[str, Any]:
    """Diffusion forcing: frames have timesteps of their own."""
    return guided(d, **{"prompt": None, "num_frames": 9, "base_num_frames": 9, "ar_step": 0, **more})


def in_two(index: int) -> tuple[int, int]:
    """Runs of five steps with both prompts, one after another."""
    return (index // 2) % 5, index % 2


def any_flow() -> Any:
    net = network("AnyFlowTransformer3DModel", **WAN, in_channels=4, out_channels=4, num_layers=4, rope_max_seq_len=32)
    return made("AnyFlowPipeline", transformer=net, vae=wan_vae(), scheduler=diffusers.FlowMapEulerDiscreteScheduler())


class Encoder(torch.nn.Module):
    """A text encoder behind the results of T5."""

    device = torch.device("cpu")

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.encoder.dtype
        return found

    def forward(self, ids: torch.Tensor, **rest: Any) -> tuple[torch.Tensor]:
        return (self.encoder(ids[:, :16])[0],)


def long_prompts() -> Any:
    pipe, found = ltx("LTXI2VLongMultiPromptPipeline"), texts()
    pipe.register_modules(tokenizer=found["tokenizer"], text_encoder=Encoder(found["text_encoder"]))
    return pipe


def hunyuan15() -> Any:
    net = network(
        "HunyuanVideo15Transformer3DModel",
        **HEADS,
        in_channels=9,
        out_channels=4,
        num_layers=3,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
        target_size=16,
        task_type="t2v",
    )
    vae = network(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    pipe = made("HunyuanVideo15Pipeline", transformer=net, scheduler=flow(), vae=vae)
    pipe.register_modules(guider=ClassifierFreeGuidance(guidance_scale=3.0))
    pipe.vision_num_semantic_tokens, pipe.vision_states_dim = 4, 8
    return pipe


def framepack() -> Any:
    net = network(
        "HunyuanVideoFramepackTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    pipe = made("HunyuanVideoFramepackPipeline", transformer=net, vae=hunyuan().vae, scheduler=flow())
    pipe.register_modules(**vision())
    return pipe


def motif() -> Any:
    net = network(
        "MotifVideoTransformer3DModel",
        **HEADS,
        in_channels=9,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    pipe = made("MotifVideoPipeline", transformer=net, vae=wan_vae(), scheduler=flow())
    pipe.register_modules(guider=AdaptiveProjectedGuidance(guidance_scale=3.0))
    return pipe


def chrono() -> Any:
    config = {"in_channels": 12, "out_channels": 4, "num_layers": 3, "rope_max_seq_len": 32}
    net = network("ChronoEditTransformer3DModel", **WAN, **config, image_dim=16, added_kv_proj_dim=24)
    return with_vision(made("ChronoEditPipeline", transformer=net, vae=wan_vae(), scheduler=unipc()))


def joy() -> Any:
    net = network(
        "JoyImageEditTransformer3DModel",
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        mlp_width_ratio=2.0,
        num_layers=3,
        rope_dim_list=[4, 6, 6],
    )
    return made("JoyImageEditPipeline", transformer=net, vae=wan_vae(), scheduler=flow())


def helios() -> Any:
    net = network("HeliosTransformer3DModel", **WAN, in_channels=4, out_channels=4, num_layers=3, rope_dim=(4, 4, 4))
    scheduler = diffusers.HeliosScheduler(stage_range=[0, 1], stages=1)
    return made("HeliosPipeline", transformer=net, vae=wan_vae(), scheduler=scheduler)


def consis() -> Any:
    net = network(
        "ConsisIDTransformer3DModel",
        **HEADS,
        in_channels=8,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=16,
        num_layers=3,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
        cross_attn_interval=1,
    )
    return made("ConsisIDPipeline", transformer=net, vae=cog_vae(), scheduler=diffusers.CogVideoXDDIMScheduler())


def easy() -> Any:
    net = network(
        "EasyAnimateTransformer3DModel",
        **HEADS,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=16,
        num_layers=3,
        sample_width=16,
        sample_height=16,
        patch_size=2,
        mmdit_layers=2,
    )
    vae = network(
        "AutoencoderKLMagvit",
        down_block_types=("SpatialDownBlock3D", "SpatialTemporalDownBlock3D"),
        up_block_types=("SpatialUpBlock3D", "SpatialTemporalUpBlock3D"),
        block_out_channels=(8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return made("EasyAnimatePipeline", transformer=net, vae=vae, scheduler=flow())


def sana_video() -> Any:
    net = network(
        "SanaVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=4,
        rope_max_seq_len=32,
    )
    return made("SanaVideoPipeline", transformer=net, vae=wan_vae(), scheduler=flow())


def ltx2() -> Any:
    net = network(
        "LTX2VideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=3,
        caption_channels=16,
        rope_double_precision=False,
        perturbed_attn=True,
    )
    vae = network(
        "AutoencoderKLLTX2Video",
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        patch_size_t=1,
    )
    audio = network(
        "AutoencoderKLLTX2Audio",
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        norm_type="pixel",
        causality_axis="height",
        mid_block_add_attention=False,
        mel_bins=8,
    )
    connected = {"caption_channels": 16, "text_proj_in_factor": 2, "connector_rope_base_seq_len": 8}
    for kind in ("video", "audio"):
        connected[f"{kind}_connector_num_attention_heads"] = 2
        connected[f"{kind}_connector_attention_head_dim"] = 8
        connected[f"{kind}_connector_num_layers"] = 1
        connected[f"{kind}_connector_num_learnable_registers"] = None
    connectors = seeded(
        lambda: LTX2TextConnectors(
            **connected, rope_theta=10000.0, rope_double_precision=False, causal_temporal_positioning=False
        )
    )
    parts = {"vae": vae, "audio_vae": audio, "connectors": connectors, "scheduler": flow()}
    return made("LTX2Pipeline", transformer=net, **parts)


def ltx2_inputs(d: Draw, *, skips: bool) -> dict[str, Any]:
    scales = {"stg_scale": 0.0, "modality_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0}
    if skips:
        scales = {"stg_scale": 1.0, "modality_scale": 2.0, "spatio_temporal_guidance_blocks": [1]}  # type: ignore[dict-item]
    prompts = d.prompts(mask="prompt_attention_mask", width=32)
    return {**prompts, **SIZE, "num_frames": 5, "guidance_scale": 3.0, **scales}


STOPS = [
    Stop(
        "CogVideoXFunControlPipeline",
        lambda: cog("CogVideoXFunControlPipeline", in_channels=8),
        lambda d: {**d.prompts(), **SIZE, "control_video": [red(32)] * 5},
        "b",
    ),
    Stop(
        "HunyuanVideoImageToVideoPipeline",
        lambda: hunyuan_picture(
            "HunyuanVideoImageToVideoPipeline", in_channels=9, out_channels=4, image_condition_type="latent_concat"
        ),
        pictured,
    ),
    Stop(
        "HunyuanVideoImageToVideoPipeline, token replace",
        lambda: hunyuan_picture("HunyuanVideoImageToVideoPipeline", image_condition_type="token_replace"),
        pictured,
    ),
    Stop(
        "HunyuanSkyreelsImageToVideoPipeline",
        lambda: hunyuan_picture("HunyuanSkyreelsImageToVideoPipeline", in_channels=8, out_channels=4),
        pictured,
    ),
    Stop("HunyuanVideo15Pipeline", hunyuan15, lambda d: twice_prompted(d, num_frames=5), "pn"),
    Stop(
        "HunyuanVideoFramepackPipeline",
        framepack,
        lambda d: {**pictured(d, latent_window_size=2), "num_frames": 13},
        calls=lambda index: (index % 5, 0),
    ),
    Stop("WanImageToVideoPipeline", from_picture, lambda d: guided(d, image=red(32)), "pn"),
    Stop(
        "WanImageToVideoPipeline, 2.2",
        lambda: from_picture(transformer_2=second(in_channels=12, out_channels=4), boundary_ratio=0.7),
        lambda d: guided(d, image=red(32)),
        "pn",
        networks=("transformer", "transformer_2"),
        before={"transformer_2": 2},
        steps=6,
    ),
    Stop(
        "LucyEditPipeline",
        lambda: wan(
            "LucyEditPipeline",
            transformer=transformer("WanTransformer3DModel", in_channels=8, out_channels=4),
            expand_timesteps=True,
        ),
        lambda d: guided(d, video=[red(32)] * 5),
        "pn",
    ),
    Stop("ChronoEditPipeline", chrono, lambda d: guided(d, image=red(32)), "pn"),
    Stop(
        "ChronoEditPipeline, reasoning",
        chrono,
        lambda d: guided(
            d, image=red(32), num_frames=13, enable_temporal_reasoning=True, num_temporal_reasoning_steps=4
        ),
        "pnpn",  # frames are dropped before the last step
        calls=lambda index: (index // 2, index % 2 + 2 * (index > 7)),
    ),
    Stop("SkyReelsV2ImageToVideoPipeline", skyreels_picture, lambda d: guided(d, image=red(32)), "pn"),
    Stop(
        "SkyReelsV2DiffusionForcingPipeline",
        lambda: skyreels("SkyReelsV2DiffusionForcingPipeline"),
        forced,
        "pn",
    ),
    Stop(
        "SkyReelsV2DiffusionForcingPipeline, asynchronous",
        lambda: skyreels("SkyReelsV2DiffusionForcingPipeline"),
        lambda d: forced(d, ar_step=2, causal_block_size=1, num_inference_steps=5),
        "pn",
        9,
    ),
    Stop(
        "SkyReelsV2DiffusionForcingPipeline, long",
        lambda: skyreels("SkyReelsV2DiffusionForcingPipeline"),
        lambda d: forced(d, num_frames=13, overlap_history=5),
        "pn",
        calls=in_two,
    ),
    Stop(
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        lambda: skyreels("SkyReelsV2DiffusionForcingImageToVideoPipeline"),
        lambda d: forced(d, image=red(32)),
        "pn",
    ),
    Stop(
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        lambda: skyreels("SkyReelsV2DiffusionForcingVideoToVideoPipeline"),
        lambda d: forced(d, num_frames=13, overlap_history=5, video=[red(32)] * 5),
        "pn",
        calls=in_two,
    ),
    Stop(
        "LTXI2VLongMultiPromptPipeline",
        long_prompts,
        lambda d: {
            **SIZE,
            "prompt": "a cat | a dog",
            "negative_prompt": "bad",
            "num_frames": 17,
            "temporal_tile_size": 9,
            "temporal_overlap": 1,
            "guidance_scale": 3.0,
            "max_sequence_length": 16,
            "num_inference_steps": 5,
            "seed": 1,
        },
        "b",
        4,  # the last of five sigmas is none
        calls=lambda index: (index % 4, 0),
    ),
    Stop("LTX2Pipeline", ltx2, lambda d: ltx2_inputs(d, skips=False), "b"),
    Stop("LTX2Pipeline, all guidances", ltx2, lambda d: ltx2_inputs(d, skips=True), ("b", "x", "x")),
    Stop("AnyFlowPipeline", any_flow, lambda d: {**d.prompts("prompt_embeds"), **SIZE, "num_frames": 5}),
    Stop("AnyFlowPipeline, guided", any_flow, lambda d: guided(d, guidance_scale=3.0), "b"),
    Stop(
        "Kandinsky5T2VPipeline",
        lambda: kandinsky5("Kandinsky5T2VPipeline", hunyuan().vae),
        lambda d: kandinsky5_inputs(d, num_frames=5),
        "pn",
    ),
    Stop("EasyAnimatePipeline", easy, lambda d: masked(d, num_frames=5), "b"),
    Stop(
        "SanaVideoPipeline",
        sana_video,
        lambda d: {
            **d.prompts(mask="prompt_attention_mask"),
            **SIZE,
            "negative_prompt": None,
            "frames": 5,
            "use_resolution_binning": False,
        },
        "b",
    ),
    Stop("MotifVideoPipeline", motif, lambda d: masked(d, num_frames=5), "pn"),
    Stop("JoyImageEditPipeline", joy, lambda d: {**d.prompts(mask="prompt_embeds_mask"), **SIZE}, "pn", large=True),
    Stop(
        "HeliosPipeline",
        helios,
        lambda d: guided(d, num_frames=33, history_sizes=[4, 2, 1], num_latent_frames_per_chunk=3),
        "pn",
        calls=in_two,
    ),
    Stop(
        "ConsisIDPipeline",
        consis,
        lambda d: {**guided(d, image=red(16)), "height": 16, "width": 16, "num_frames": 9},
        "b",
    ),
]
