"""Pipelines for pictures around transformers."""

from typing import Any

import diffusers
import torch
from walk_parts import TOKENS, Draw, Stop, ddim, flow, kl, made, seeded, transformer

HALF = {"num_inference_steps": 8, "strength": 0.5}
LATENT = {"output_type": "latent"}
SIZE = {"height": 64, "width": 64, **LATENT}
FLUX = {"in_channels": 16, "out_channels": 16}
PROMPTS = ("prompt_embeds", "negative_prompt_embeds")


def image(name: str, network: str, config: dict[str, Any] | None = None, **parts: Any) -> Any:
    whole = {"transformer": transformer(network, **(config or {})), "scheduler": flow(), "vae": kl()}
    return made(name, **{**whole, **parts})


def flux(name: str, **config: Any) -> Any:
    parts = {"vae": kl(shift_factor=0.0)}
    if "ControlNet" in name:
        network = transformer("FluxTransformer2DModel", **{**FLUX, **config})
        parts["controlnet"] = seeded(
            lambda: diffusers.FluxControlNetModel.from_transformer(
                network,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
            )
        )
        parts["transformer"] = network
    return image(name, "FluxTransformer2DModel", {**FLUX, **config}, **parts)


def flux_inputs(d: Draw, guided: bool = False, width: int = 8, **more: Any) -> dict[str, Any]:
    names = PROMPTS if guided else PROMPTS[:1]
    pooled = d.pooled(width)
    inputs = {**d.prompts(*names), "pooled_prompt_embeds": pooled["pooled_prompt_embeds"], **SIZE, **more}
    return {**inputs, **pooled, "true_cfg_scale": 3.0} if guided else inputs


def masked(d: Draw, *names: str, mask: str, **more: Any) -> dict[str, Any]:
    return {**d.prompts(*names, mask=mask), **SIZE, **more}


def attended(d: Draw, **more: Any) -> dict[str, Any]:
    """Prompts with the masks that PixArt, Sana and others want."""
    return masked(d, mask="prompt_attention_mask", negative_prompt=None, **more)


def chroma(d: Draw, **more: Any) -> dict[str, Any]:
    inputs = {key: value.bool() if "mask" in key else value for key, value in attended(d).items()}
    return {**inputs, **more}


def sd3_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    return {**d.prompts(), **d.pooled(8), **SIZE, **more}


def sd3(name: str, channels: int = 4, **parts: Any) -> Any:
    config = {"dual_attention_layers": (), "in_channels": channels, "out_channels": channels}
    return image(name, "SD3Transformer2DModel", config, **parts)


def skipping(index: int) -> tuple[int, int]:
    """Calls of SD3 with skip-layer guidance in the third and the fourth of five steps."""
    return [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0)][index]


def picture(d: Draw, **more: Any) -> dict[str, Any]:
    return {"image": d.picture(1, 3, 64, 64), **more}


def half_mask() -> torch.Tensor:
    found = torch.zeros(1, 1, 64, 64)
    found[..., 32:] = 1
    return found


def sana(name: str, **config: Any) -> Any:
    scheduler = diffusers.SCMScheduler() if "Sprint" in name else flow()
    vae = seeded(
        lambda: diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "ResBlock"),
            decoder_block_types=("ResBlock", "ResBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
        )
    )
    return image(name, "SanaTransformer2DModel", config, scheduler=scheduler, vae=vae)


def sana_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    return {**attended(d), "height": 32, "width": 32, "use_resolution_binning": False, **more}


def sprint_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    prompts = d.prompts("prompt_embeds", mask="prompt_attention_mask")
    return {
        **prompts,
        "height": 32,
        "width": 32,
        "use_resolution_binning": False,
        "intermediate_timesteps": None,
        **LATENT,
        **more,
    }


def pixart(name: str, **parts: Any) -> Any:
    return image(name, "PixArtTransformer2DModel", scheduler=ddim(), **parts)


def hunyuan(name: str, **parts: Any) -> Any:
    config = {"text_len": 77, "text_len_t5": 256, "learn_sigma": True}
    return image(name, "HunyuanDiT2DModel", config, scheduler=ddim(), requires_safety_checker=False, **parts)


def hunyuan_inputs(d: Draw) -> dict[str, Any]:
    inputs: dict[str, Any] = {"use_resolution_binning": False, **SIZE}
    for name, tokens in (("", 77), ("_2", 256)):
        for kind in ("", "negative_"):
            inputs[f"{kind}prompt_embeds{name}"] = d.normal(1, tokens, 16)
            inputs[f"{kind}prompt_attention_mask{name}"] = torch.ones(1, tokens)
    return inputs


def qwen_vae() -> Any:
    return seeded(
        lambda: diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    )


def qwen(name: str) -> Any:
    return image(name, "QwenImageTransformer2DModel", FLUX, vae=qwen_vae())


def qwen_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    return masked(d, mask="prompt_embeds_mask", true_cfg_scale=3.0, **more)


def listed(d: Draw, **more: Any) -> dict[str, Any]:
    """Lists of prompts, as Z-Image takes them."""
    return {**{name: [d.normal(TOKENS, 16)] for name in PROMPTS}, **SIZE, **more}


def zimage(name: str) -> Any:
    return image(name, "ZImageTransformer2DModel", vae=kl(shift_factor=0.0))


def prx() -> Any:
    network = seeded(
        lambda: diffusers.PRXTransformer2DModel(
            in_channels=4,
            patch_size=2,
            context_in_dim=16,
            hidden_size=16,
            mlp_ratio=2.0,
            num_heads=2,
            depth=4,
            axes_dim=[4, 4],
        )
    )
    return made("PRXPipeline", transformer=network, scheduler=flow(), vae=kl())


def ovis() -> Any:
    network = seeded(
        lambda: diffusers.OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        )
    )
    return made("OvisImagePipeline", transformer=network, scheduler=flow(), vae=kl())


def bria() -> Any:
    network = seeded(
        lambda: diffusers.BriaTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=[2, 2, 4],
        )
    )
    return made("BriaPipeline", transformer=network, scheduler=flow(), vae=kl())


def flux2(name: str) -> Any:
    vae = seeded(
        lambda: diffusers.AutoencoderKLFlux2(
            block_out_channels=(4,) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=32,
        )
    )
    return image(name, "Flux2Transformer2DModel", {"in_channels": 16}, vae=vae)


def dit() -> Any:
    config = {"num_embeds_ada_norm": 1000, "out_channels": 8}
    return image("DiTPipeline", "DiTTransformer2DModel", config, scheduler=ddim())


STOPS = [
    Stop("DiTPipeline", dit, lambda d: {"class_labels": [3], "output_type": "np"}, "B", slow=False),
    Stop(
        "PixArtAlphaPipeline",
        lambda: pixart("PixArtAlphaPipeline"),
        lambda d: attended(d, use_resolution_binning=False),
        "b",
        slow=False,
    ),
    Stop(
        "PixArtSigmaPipeline",
        lambda: pixart("PixArtSigmaPipeline"),
        lambda d: attended(d, use_resolution_binning=False),
        "b",
    ),
    Stop(
        "PixArtSigmaPAGPipeline",
        lambda: pixart("PixArtSigmaPAGPipeline", pag_applied_layers=["blocks.1"]),
        lambda d: attended(d, use_resolution_binning=False),
        "x",
    ),
    Stop("SanaPipeline", lambda: sana("SanaPipeline"), sana_inputs, "b"),
    Stop("SanaPAGPipeline", lambda: sana("SanaPAGPipeline"), sana_inputs, "x"),
    Stop("SanaSprintPipeline", lambda: sana("SanaSprintPipeline", guidance_embeds=True), sprint_inputs),
    Stop("StableDiffusion3Pipeline", lambda: sd3("StableDiffusion3Pipeline"), sd3_inputs, "b", slow=False),
    Stop(
        "StableDiffusion3Pipeline, skip-layer guidance",
        lambda: sd3("StableDiffusion3Pipeline"),
        lambda d: sd3_inputs(d, skip_guidance_layers=[2], skip_layer_guidance_start=0.3, skip_layer_guidance_stop=0.7),
        ("b", "x"),
        calls=skipping,
    ),
    Stop(
        "StableDiffusion3Img2ImgPipeline",
        lambda: sd3("StableDiffusion3Img2ImgPipeline"),
        lambda d: {**sd3_inputs(d), "image": d.normal(1, 4, 8, 8), **HALF},
        "b",
        4,
    ),
    Stop(
        "StableDiffusion3InpaintPipeline",
        lambda: sd3("StableDiffusion3InpaintPipeline", 16, vae=kl(16, shift_factor=0.0)),
        lambda d: sd3_inputs(d, **picture(d, mask_image=half_mask(), **HALF)),
        "b",
        4,
    ),
    Stop(
        "StableDiffusion3PAGPipeline",
        lambda: sd3("StableDiffusion3PAGPipeline", pag_applied_layers=["blocks.1"]),
        sd3_inputs,
        "x",
    ),
    Stop("FluxPipeline", lambda: flux("FluxPipeline"), flux_inputs, slow=False),
    Stop("FluxPipeline, true guidance", lambda: flux("FluxPipeline"), lambda d: flux_inputs(d, True), "pn"),
    Stop(
        "FluxImg2ImgPipeline",
        lambda: flux("FluxImg2ImgPipeline"),
        lambda d: flux_inputs(d, **picture(d, **HALF)),
        steps=4,
    ),
    Stop(
        "FluxInpaintPipeline",
        lambda: flux("FluxInpaintPipeline"),
        lambda d: flux_inputs(d, **picture(d, mask_image=half_mask(), **HALF)),
        steps=4,
    ),
    Stop(
        "FluxKontextPipeline, true guidance",
        lambda: flux("FluxKontextPipeline"),
        lambda d: flux_inputs(d, True, image=d.picture(1, 3, 64, 64), max_area=64 * 64, _auto_resize=False),
        "pn",
        slow=False,
    ),
    Stop(
        "FluxFillPipeline",
        lambda: flux("FluxFillPipeline", in_channels=16 + 16 + 256, out_channels=16),
        lambda d: flux_inputs(d, **picture(d, mask_image=half_mask(), strength=1.0)),
    ),
    Stop(
        "FluxControlPipeline",
        lambda: flux("FluxControlPipeline", in_channels=32),
        lambda d: flux_inputs(d, control_image=d.picture(1, 3, 64, 64)),
    ),
    Stop(
        "FluxControlNetPipeline",
        lambda: flux("FluxControlNetPipeline"),
        lambda d: flux_inputs(d, control_image=d.picture(1, 3, 64, 64)),
    ),
    Stop("Flux2Pipeline", lambda: flux2("Flux2Pipeline"), lambda d: {**d.prompts("prompt_embeds"), **SIZE}),
    Stop("Flux2KleinPipeline", lambda: flux2("Flux2KleinPipeline"), lambda d: {**d.prompts(), **SIZE}, "pn"),
    Stop("ChromaPipeline", lambda: image("ChromaPipeline", "ChromaTransformer2DModel", FLUX), chroma, "pn"),
    Stop(
        "ChromaImg2ImgPipeline",
        lambda: image("ChromaImg2ImgPipeline", "ChromaTransformer2DModel", FLUX, vae=kl(shift_factor=0.0)),
        lambda d: chroma(d, **picture(d, **HALF)),
        "pn",
        4,
    ),
    Stop("QwenImagePipeline", lambda: qwen("QwenImagePipeline"), qwen_inputs, "pn"),
    Stop(
        "QwenImageImg2ImgPipeline",
        lambda: qwen("QwenImageImg2ImgPipeline"),
        lambda d: qwen_inputs(d, **picture(d, **HALF)),
        "pn",
        4,
    ),
    Stop(
        "QwenImageInpaintPipeline",
        lambda: qwen("QwenImageInpaintPipeline"),
        lambda d: qwen_inputs(d, **picture(d, mask_image=half_mask(), **HALF)),
        "pn",
        4,
    ),
    Stop("AuraFlowPipeline", lambda: image("AuraFlowPipeline", "AuraFlowTransformer2DModel"), attended, "b"),
    Stop(
        "CogView3PlusPipeline",
        lambda: image(
            "CogView3PlusPipeline", "CogView3PlusTransformer2DModel", scheduler=diffusers.CogVideoXDDIMScheduler()
        ),
        lambda d: {**d.prompts(), **SIZE},
        "b",
    ),
    Stop(
        "CogView4Pipeline",
        lambda: image("CogView4Pipeline", "CogView4Transformer2DModel"),
        lambda d: {**d.prompts(), **SIZE},
        "pn",
    ),
    Stop("HunyuanDiTPipeline", lambda: hunyuan("HunyuanDiTPipeline"), hunyuan_inputs, "b"),
    Stop(
        "HunyuanDiTPAGPipeline",
        lambda: hunyuan("HunyuanDiTPAGPipeline", pag_applied_layers=["blocks.1"]),
        hunyuan_inputs,
        "x",
    ),
    Stop(
        "LuminaPipeline", lambda: image("LuminaPipeline", "LuminaNextDiT2DModel", {"learn_sigma": True}), attended, "B"
    ),
    Stop("Lumina2Pipeline", lambda: image("Lumina2Pipeline", "Lumina2Transformer2DModel"), attended, "pn", slow=False),
    Stop("ZImagePipeline", lambda: zimage("ZImagePipeline"), listed, "B"),
    Stop(
        "ZImageImg2ImgPipeline",
        lambda: zimage("ZImageImg2ImgPipeline"),
        lambda d: listed(d, **picture(d, **HALF)),
        "B",
        4,
    ),
    Stop("PRXPipeline", prx, lambda d: masked(d, mask="prompt_attention_mask", use_resolution_binning=False), "b"),
    Stop("OvisImagePipeline", ovis, lambda d: {**d.prompts(), **SIZE, "negative_prompt": None}, "pn"),
    Stop("BriaPipeline", bria, lambda d: {**d.prompts(), **SIZE}, "b"),
]
