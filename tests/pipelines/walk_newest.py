"""Pipelines of worlds, characters, sound and the newest pictures: two networks beside each other, segments, several streams."""

import inspect
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from walk_edits import Told
from walk_further_videos import ltx2, ltx2_inputs, sana_video
from walk_parts import TOKENS, Draw, Stop, flow, kl, made, network, red, seeded, vision
from walk_pictures import hunyuan as hunyuan_dit
from walk_pictures import hunyuan_inputs as hunyuan_dit_inputs
from walk_pictures import listed, zimage
from walk_videos import SIZE, guided, hunyuan, wan_vae

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


class Guard(torch.nn.Module):
    """In the place of a checker that finds everything safe."""

    dtype, device = torch.float32, torch.device("cpu")

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def cosmos(name: str, scheduler: Any, channels: int = 4, **more: Any) -> Any:
    net = network(
        "CosmosTransformer3DModel",
        **HEADS,
        in_channels=channels,
        out_channels=4,
        num_layers=4,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,
        **more,
    )
    vae = wan_vae() if "2" in name else cosmos_vae()
    return made(name, transformer=net, vae=vae, scheduler=scheduler, safety_checker=Guard())


def cosmos_vae() -> Any:
    return network(
        "AutoencoderKLCosmos",
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )


def edm() -> Any:
    return diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")


def karras() -> Any:
    return flow(use_karras_sigmas=True)


def animated() -> Any:
    net = network(
        "WanAnimateTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12,
        latent_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=4,
        image_dim=16,
        rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    seen = vision()
    parts = {"image_encoder": seen["image_encoder"], "image_processor": seen["feature_extractor"]}
    return made("WanAnimatePipeline", transformer=net, vae=wan_vae(), scheduler=flow(), **parts)


def acting(d: Draw, **more: Any) -> dict[str, Any]:
    clip = [red(16)] * 9
    more = {"segment_frame_length": 5, "image": red(16), "guidance_scale": 3.0, "output_type": "pt", **more}
    return {**d.prompts(), "height": 16, "width": 16, "pose_video": clip, "face_video": clip, **more}


def fibo() -> Any:
    net = network(
        "BriaFiboTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        joint_attention_dim=16,
        text_encoder_dim=8,
        axes_dims_rope=[2, 2, 4],
    )
    pipe = made("BriaFiboPipeline", transformer=net, vae=wan_vae(), scheduler=flow())

    def get_prompt_embeds(prompt: Any, **rest: Any) -> Any:
        drawn = torch.Generator().manual_seed(len(prompt[0]))
        layers = [torch.randn(1, TOKENS, 8, generator=drawn) for _ in range(5)]
        return torch.cat(layers[:2], -1), layers, torch.ones(1, TOKENS)

    pipe.register_modules(text_encoder=Told())
    pipe.get_prompt_embeds = get_prompt_embeds
    return pipe


def ideogram() -> Any:
    config = {
        **HEADS,
        "in_channels": 16,
        "num_layers": 4,
        "intermediate_size": 32,
        "adaln_dim": 8,
        "llm_features_dim": 16,
        "mrope_section": (4, 2, 2),
    }
    nets = {
        name: network("Ideogram4Transformer2DModel", **config) for name in ("transformer", "unconditional_transformer")
    }
    pipe = made("Ideogram4Pipeline", **nets, vae=kl(), scheduler=flow())

    def encode_prompt(prompt: Any, grid_h: int, grid_w: int, max_sequence_length: int, device: Any) -> Any:
        count = grid_h * grid_w + max_sequence_length
        drawn = torch.Generator().manual_seed(len(prompt))
        places = torch.arange(count).reshape(1, count, 1).expand(1, count, 3)
        kinds = torch.full((1, count), 2)
        kinds[:, :max_sequence_length] = 3
        return torch.randn(1, count, 16, generator=drawn), places, torch.ones(1, count, dtype=torch.long), kinds

    pipe.encode_prompt = encode_prompt
    return pipe


def long_cat_sound() -> Any:
    net = network("LongCatAudioDiTTransformer", dit_dim=16, dit_depth=4, dit_heads=2, dit_text_dim=16, latent_dim=4)
    vae = network(
        "LongCatAudioDiTVae",
        in_channels=1,
        channels=8,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=4,
        encoder_latent_dim=8,
    )
    pipe = made("LongCatAudioDiTPipeline", transformer=net, vae=vae, scheduler=flow())

    def encode_prompt(prompt: Any, device: Any) -> Any:
        drawn = torch.Generator().manual_seed(len(prompt[0]))
        return torch.randn(len(prompt), TOKENS, 16, generator=drawn), torch.full((len(prompt),), TOKENS)

    pipe.encode_prompt = encode_prompt
    return pipe


def dreamlite() -> Any:
    net = network(
        "DreamLiteUNetModel",
        sample_size=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=2,
        transformer_layers_per_block=1,
        addition_embed_type=None,
    )
    pipe = made("DreamLitePipeline", unet=net, vae=network("AutoencoderTiny"), scheduler=flow())
    pipe.register_modules(text_encoder=Told())

    def encode_prompt(prompts: Any, **rest: Any) -> Any:
        drawn = [torch.Generator().manual_seed(len(prompt)) for prompt in prompts]
        return torch.cat([torch.randn(1, TOKENS, 16, generator=g) for g in drawn]), torch.ones(len(prompts), TOKENS)

    pipe.encode_prompt = encode_prompt
    return pipe


def sized(d: Draw, **more: Any) -> dict[str, Any]:
    return {"height": 64, "width": 64, "output_type": "latent", **more}


def stable_audio3() -> Any:
    net = network(
        "StableAudio3DiTModel",
        io_channels=8,
        embed_dim=16,
        depth=4,
        num_heads=2,
        cond_token_dim=16,
        global_cond_dim=16,
        local_add_cond_dim=9,
        timestep_features_dim=8,
        num_memory_tokens=2,
    )
    vae = network(
        "AutoencoderSAME",
        patch_size=4,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        dim_heads=8,
        sampling_rate=64,
    )
    pipe = made(
        "StableAudio3Pipeline",
        transformer=net,
        vae=vae,
        duration_embedder=seeded(lambda: StableAudio3DurationEmbedder(output_dim=16, fourier_dim=8)),
        scheduler=flow(num_train_timesteps=1),
    )
    pipe.register_modules(text_encoder=Told())
    return pipe


def sounding(d: Draw) -> dict[str, Any]:
    masks = {f"{kind}encoder_attention_mask": torch.ones(1, TOKENS, dtype=torch.long) for kind in ("", "negative_")}
    return {**d.prompts(), **masks, "duration": 1.0, "guidance_scale": 3.0, "output_type": "latent"}


def kandinsky6() -> Any:
    net = network(
        "Kandinsky6Transformer3DModel",
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(2, 2, 4),
        in_audio_dim=4,
        out_audio_dim=4,
    )
    pipe = made("Kandinsky6TI2VAPipeline", transformer=net, vae=hunyuan().vae, scheduler=flow())
    pipe.register_modules(audio_vae=Told(), vocoder=Told())
    pipe.audio_sample_rate, pipe.audio_latent_hop_length = 64, 16
    return pipe


def kandinsky6_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    return {**d.prompts(), **d.pooled(8), **SIZE, "num_frames": 5, **more}


def z_control() -> Any:
    pipe = zimage("ZImagePipeline")
    config = pipe.transformer.config
    net = network(
        "ZImageControlNetModel",
        control_layers_places=[0, 2],
        control_refiner_layers_places=[0],
        control_in_dim=4,
        dim=config.dim,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        n_refiner_layers=config.n_refiner_layers,
        norm_eps=config.norm_eps,
    )
    return made("ZImageControlNetPipeline", **{**pipe.components, "controlnet": net})


def dit_control() -> Any:
    pipe = hunyuan_dit("HunyuanDiTPipeline")
    wanted = inspect.signature(diffusers.HunyuanDiT2DControlNetModel.__init__).parameters
    config = {key: value for key, value in pipe.transformer.config.items() if key in wanted}
    net = network("HunyuanDiT2DControlNetModel", **config, transformer_num_layers=4)
    return made("HunyuanDiTControlNetPipeline", **{**pipe.components, "controlnet": net}, requires_safety_checker=False)


def pixels() -> Any:
    net = network(
        "PRXTransformer2DModel",
        in_channels=3,
        patch_size=4,
        context_in_dim=16,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=4,
        axes_dim=[4, 4],
    )
    return made("PRXPixelPipeline", transformer=net, scheduler=flow())


STOPS = [
    Stop("CosmosTextToWorldPipeline", lambda: cosmos("CosmosTextToWorldPipeline", edm()), guided, "pn"),
    Stop(
        "CosmosVideoToWorldPipeline",
        lambda: cosmos("CosmosVideoToWorldPipeline", edm(), 5),
        lambda d: guided(d, image=red(32)),
        "pn",
    ),
    Stop(
        "Cosmos2TextToImagePipeline",
        lambda: cosmos("Cosmos2TextToImagePipeline", karras()),
        lambda d: {**d.prompts(), **SIZE},
        "pn",
    ),
    Stop(
        "Cosmos2VideoToWorldPipeline",
        lambda: cosmos("Cosmos2VideoToWorldPipeline", karras(), 5),
        lambda d: guided(d, image=red(32)),
        "pn",
    ),
    Stop("WanAnimatePipeline", animated, acting, "pn", calls=lambda index: ((index // 2) % 5, index % 2)),
    Stop(
        "BriaFiboPipeline",
        fibo,
        lambda d: {"prompt": "a cat", "negative_prompt": "no", "height": 64, "width": 64, "output_type": "latent"},
        "b",
    ),
    Stop(
        "Ideogram4Pipeline",
        ideogram,
        lambda d: {
            "prompt": "a cat",
            "height": 64,
            "width": 64,
            "guidance_scale": 3.0,
            "guidance_schedule": None,
            "max_sequence_length": 6,
            "output_type": "latent",
        },
        "p",
        networks=("transformer", "unconditional_transformer"),
    ),
    Stop(
        "LongCatAudioDiTPipeline",
        long_cat_sound,
        lambda d: {"prompt": "a cat", "negative_prompt": "no", "audio_duration_s": 0.01, "output_type": "latent"},
        "pn",
    ),
    Stop("StableAudio3Pipeline", stable_audio3, sounding, "b"),
    Stop("Kandinsky6TI2VAPipeline", kandinsky6, kandinsky6_inputs, "pn"),
    Stop(
        "ZImageControlNetPipeline",
        z_control,
        lambda d: listed(d, control_image=d.picture(1, 3, 64, 64)),
        "B",
    ),
    Stop(
        "HunyuanDiTControlNetPipeline",
        dit_control,
        lambda d: {**hunyuan_dit_inputs(d), "control_image": d.picture(1, 3, 64, 64)},
        "b",
    ),
    Stop(
        "LTX2ImageToVideoPipeline",
        lambda: made("LTX2ImageToVideoPipeline", **ltx2().components),
        lambda d: {**ltx2_inputs(d, skips=False), "image": red(32)},
        "b",
    ),
    Stop(
        "LTX2ConditionPipeline",
        lambda: made("LTX2ConditionPipeline", **ltx2().components),
        lambda d: ltx2_inputs(d, skips=False),
        "b",
    ),
    Stop(
        "SanaImageToVideoPipeline",
        lambda: made("SanaImageToVideoPipeline", **sana_video().components),
        lambda d: {
            **d.prompts(mask="prompt_attention_mask"),
            **SIZE,
            "frames": 5,
            "image": red(32),
            "negative_prompt": None,
            "use_resolution_binning": False,
        },
        "b",
    ),
    Stop(
        "PRXPixelPipeline",
        pixels,
        lambda d: {
            **d.prompts(mask="prompt_attention_mask"),
            "height": 32,
            "width": 32,
            "use_resolution_binning": False,
            "output_type": "pt",
        },
        "b",
    ),
    Stop("DreamLitePipeline", dreamlite, lambda d: sized(d, prompt="a cat"), "b", networks=("unet",)),
    Stop(
        "DreamLitePipeline, edit", dreamlite, lambda d: sized(d, prompt="a cat", image=red(64)), "x", networks=("unet",)
    ),
]
