"""Pipelines for video around transformers."""

from typing import Any

import diffusers
import torch
from walk_parts import Draw, Stop, ddim, flow, kl, made, seeded, transformer

LATENT = {"output_type": "latent"}
SIZE = {"height": 32, "width": 32, **LATENT}


def wan_vae() -> Any:
    return seeded(
        lambda: diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    )


def wan(name: str, **parts: Any) -> Any:
    whole = {"transformer": transformer("WanTransformer3DModel"), "scheduler": flow(), "vae": wan_vae()}
    return made(name, **{**whole, **parts})


def guided(d: Draw, **more: Any) -> dict[str, Any]:
    return {**d.prompts(), **SIZE, "num_frames": 5, **more}


def skyreels(name: str) -> Any:
    return made(
        name,
        transformer=transformer("SkyReelsV2Transformer3DModel"),
        vae=wan_vae(),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )


def cog_vae() -> Any:
    kinds = {f"{kind}_block_types": (f"CogVideoX{kind.title()}Block3D",) * 4 for kind in ("down", "up")}
    return seeded(
        lambda: diffusers.AutoencoderKLCogVideoX(
            **kinds,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        )
    )


def cog(name: str, **config: Any) -> Any:
    network = transformer("CogVideoXTransformer3DModel", **config)
    return made(name, transformer=network, vae=cog_vae(), scheduler=diffusers.CogVideoXDDIMScheduler())


def ltx(name: str) -> Any:
    vae = seeded(
        lambda: diffusers.AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            patch_size=1,
            patch_size_t=1,
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
        )
    )
    return made(name, transformer=transformer("LTXVideoTransformer3DModel"), vae=vae, scheduler=flow())


def masked(d: Draw, **more: Any) -> dict[str, Any]:
    return {**d.prompts(mask="prompt_attention_mask"), **SIZE, "num_frames": 9, **more}


def hunyuan() -> Any:
    vae = seeded(
        lambda: diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
        )
    )
    return made(
        "HunyuanVideoPipeline",
        transformer=transformer("HunyuanVideoTransformer3DModel", guidance_embeds=True),
        vae=vae,
        scheduler=flow(),
    )


def hunyuan_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    inputs = {**masked(d, num_frames=5), "true_cfg_scale": 1.0, **more}
    pooled = d.pooled(8)
    if inputs["true_cfg_scale"] > 1:
        return {**inputs, **pooled}
    kept = {key: value for key, value in inputs.items() if not key.startswith("negative")}
    return {**kept, "pooled_prompt_embeds": pooled["pooled_prompt_embeds"]}


def latte() -> Any:
    return made(
        "LattePipeline", transformer=transformer("LatteTransformer3DModel", out_channels=8), vae=kl(), scheduler=ddim()
    )


def allegro() -> Any:
    vae = seeded(
        lambda: diffusers.AutoencoderKLAllegro(
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
        )
    )
    return made(
        "AllegroPipeline",
        transformer=transformer("AllegroTransformer3DModel", attention_head_dim=12, cross_attention_dim=24),
        vae=vae,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
    )


def mochi() -> Any:
    vae = seeded(
        lambda: diffusers.AutoencoderKLMochi(
            encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4,
            latent_channels=4,
            layers_per_block=(1, 1, 1, 1, 1),
            latents_mean=(0.0,) * 4,
            latents_std=(1.0,) * 4,
        )
    )
    return made(
        "MochiPipeline",
        transformer=transformer("MochiTransformer3DModel", max_sequence_length=6),
        vae=vae,
        scheduler=flow(invert_sigmas=True),
    )


def vace() -> Any:
    network = seeded(
        lambda: diffusers.WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=4,
            rope_max_seq_len=32,
            vace_layers=[0, 2],
            vace_in_channels=4 * 2 + 64,
        )
    )
    return wan("WanVACEPipeline", transformer=network)


STOPS = [
    Stop("CogVideoXPipeline", lambda: cog("CogVideoXPipeline"), guided, "b", slow=False),
    Stop(
        "CogVideoXVideoToVideoPipeline",
        lambda: cog("CogVideoXVideoToVideoPipeline"),
        lambda d: {
            **d.prompts(),
            **SIZE,
            "video": [d.picture(3, 32, 32).float()] * 5,
            "num_inference_steps": 8,
            "strength": 0.5,
        },
        "b",
        4,
    ),
    Stop(
        "CogVideoXImageToVideoPipeline",
        lambda: cog("CogVideoXImageToVideoPipeline", in_channels=8),
        lambda d: guided(d, image=d.picture(1, 3, 32, 32).float()),
        "b",
    ),
    Stop("HunyuanVideoPipeline", hunyuan, hunyuan_inputs),
    Stop("HunyuanVideoPipeline, true guidance", hunyuan, lambda d: hunyuan_inputs(d, true_cfg_scale=3.0), "pn"),
    Stop("LTXPipeline", lambda: ltx("LTXPipeline"), masked, "b"),
    Stop(
        "LTXImageToVideoPipeline",
        lambda: ltx("LTXImageToVideoPipeline"),
        lambda d: masked(d, image=d.picture(1, 3, 32, 32).float()),
        "b",
    ),
    Stop("LTXConditionPipeline", lambda: ltx("LTXConditionPipeline"), masked, "b"),
    Stop("LattePipeline", latte, lambda d: {**d.prompts(), **SIZE, "video_length": 2, "negative_prompt": None}, "b"),
    Stop("AllegroPipeline", allegro, lambda d: masked(d, num_frames=8, negative_prompt=None), "b"),
    Stop("MochiPipeline", mochi, lambda d: masked(d, num_frames=7), "b"),
    Stop("WanPipeline", lambda: wan("WanPipeline"), guided, "pn", slow=False),
    Stop(
        "WanPipeline, 2.2",
        lambda: wan("WanPipeline", transformer_2=second(), boundary_ratio=0.7),
        guided,
        "pn",
        networks=("transformer", "transformer_2"),
        before={"transformer_2": 2},
        slow=False,
        steps=6,
    ),
    Stop("WanPipeline, expanded timesteps", lambda: wan("WanPipeline", expand_timesteps=True), guided, "pn"),
    Stop(
        "WanVideoToVideoPipeline",
        lambda: wan("WanVideoToVideoPipeline"),
        lambda d: {
            **d.prompts(),
            **SIZE,
            "video": [d.picture(3, 32, 32).float()] * 5,
            "num_inference_steps": 8,
            "strength": 0.5,
        },
        "pn",
        4,
    ),
    Stop("WanVACEPipeline", vace, guided, "pn"),
    Stop("SkyReelsV2Pipeline", lambda: skyreels("SkyReelsV2Pipeline"), guided, "pn"),
]


def second(**config: Any) -> Any:
    network = transformer("WanTransformer3DModel", **config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)
    return network
