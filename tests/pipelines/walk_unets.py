"""Pipelines around UNets."""

from dataclasses import replace
from typing import Any

import diffusers
import PIL.Image
import torch
from tiny_networks import TEXT, ddpm_unet, motion_unet, sd_unet, sdxl_unet, svd_unet, unet3d
from walk_parts import Draw, Stop, ddim, kl, made, seeded, vision

HALF = {"num_inference_steps": 8, "strength": 0.5}
SIZE = {"height": 64, "width": 64, "output_type": "latent"}
SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}


def sd(name: str, **parts: Any) -> Any:
    whole = {"unet": sd_unet(**SMALL), "scheduler": ddim(), "requires_safety_checker": False, "vae": kl()}
    return made(name, **{**whole, **parts})


def xl(name: str, **parts: Any) -> Any:
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (2, 2),
        "transformer_layers_per_block": (1, 1),
    }
    whole = {"unet": sdxl_unet(**{**config, **parts.pop("config", {})}), "scheduler": ddim(), "vae": kl()}
    return made(name, add_watermarker=False, **{**whole, **parts})


def controlnet(unet: Any) -> Any:
    return seeded(lambda: diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 16)))


def with_controlnet(name: str, make: Any) -> Any:
    unet = make(name.replace("ControlNet", "")).unet if make is xl else sd_unet(**SMALL)
    return make(name, unet=unet, controlnet=controlnet(unet))


def sd_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    return {**d.prompts(), **SIZE, **more}


def picture_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    return {**d.prompts(), "output_type": "latent", "image": d.normal(1, 4, 8, 8), **HALF, **more}


def control(d: Draw) -> torch.Tensor:
    return d.picture(1, 3, 64, 64)


def mask() -> torch.Tensor:
    found = torch.zeros(1, 1, 64, 64)
    found[..., 32:] = 1
    return found


def xl_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    return {**d.prompts(), **d.pooled(), **SIZE, **more}


def xl_picture(d: Draw, **more: Any) -> dict[str, Any]:
    inputs = xl_inputs(d, image=d.normal(1, 4, 8, 8), **HALF, **more)
    return {key: value for key, value in inputs.items() if key not in ("height", "width")}


def video_inputs(d: Draw, **more: Any) -> dict[str, Any]:
    return {**d.prompts(), **SIZE, "num_frames": 2, **more}


def animated(name: str, **parts: Any) -> Any:
    unet = motion_unet()
    return made(name, **{"unet": unet, "scheduler": ddim(), "vae": kl(), "motion_adapter": None, **parts})


def lcm(name: str) -> Any:
    unet = sd_unet(**SMALL, time_cond_proj_dim=8)
    return sd(name, unet=unet, scheduler=diffusers.LCMScheduler())


def svd() -> Any:
    vae = seeded(
        lambda: diffusers.AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4, layers_per_block=1
        )
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
    )
    return made("StableVideoDiffusionPipeline", vae=vae, unet=svd_unet(), scheduler=scheduler, **vision())


def deepfloyd(name: str, channels: int = 3) -> Any:
    unet = sd_unet(
        **SMALL,
        in_channels=channels,
        out_channels=6,
        encoder_hid_dim=TEXT,
        **({"class_embed_type": "timestep"} if channels == 6 else {}),
    )
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    return made(
        name,
        unet=unet,
        scheduler=scheduler,
        image_noising_scheduler=diffusers.DDPMScheduler(),
        requires_safety_checker=False,
    )


def kandinsky(name: str, channels: int = 4) -> Any:
    unet = sd_unet(
        **SMALL,
        in_channels=channels,
        out_channels=8,
        encoder_hid_dim=TEXT,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        class_embed_type=None,
    )
    movq = seeded(
        lambda: diffusers.VQModel(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4,) * 4,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
            num_vq_embeddings=8,
        )
    )
    return made(name, unet=unet, scheduler=diffusers.DDPMScheduler(variance_type="learned_range"), movq=movq)


def embedded(d: Draw, **more: Any) -> dict[str, Any]:
    return {"image_embeds": d.normal(1, TEXT), "negative_image_embeds": d.normal(1, TEXT), **SIZE, **more}


def unguided(d: Draw, **more: Any) -> dict[str, Any]:
    return sd_inputs(d, guidance_scale=1.0, **more)


STOPS = [
    Stop("StableDiffusionPipeline", lambda: sd("StableDiffusionPipeline"), sd_inputs, "b", slow=False),
    Stop("StableDiffusionPipeline, unguided", lambda: sd("StableDiffusionPipeline"), unguided),
    Stop(
        "StableDiffusionPipeline, Heun",
        lambda: sd("StableDiffusionPipeline", scheduler=diffusers.HeunDiscreteScheduler()),
        lambda d: sd_inputs(d, num_inference_steps=3),
        "b",
    ),
    Stop(
        "StableDiffusionPipeline, PNDM",
        lambda: sd("StableDiffusionPipeline", scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1)),
        lambda d: sd_inputs(d, num_inference_steps=5),
        "b",
        6,
    ),
    Stop("StableDiffusionImg2ImgPipeline", lambda: sd("StableDiffusionImg2ImgPipeline"), picture_inputs, "b", 4),
    Stop(
        "StableDiffusionInpaintPipeline",
        lambda: sd("StableDiffusionInpaintPipeline"),
        lambda d: sd_inputs(d, image=d.picture(1, 3, 64, 64), mask_image=mask(), strength=1.0),
        "b",
    ),
    Stop(
        "StableDiffusionControlNetPipeline",
        lambda: with_controlnet("StableDiffusionControlNetPipeline", sd),
        lambda d: sd_inputs(d, image=control(d)),
        "b",
        slow=False,
    ),
    Stop(
        "StableDiffusionControlNetPipeline, guess mode",
        lambda: with_controlnet("StableDiffusionControlNetPipeline", sd),
        lambda d: sd_inputs(d, image=control(d), guess_mode=True),
        "b",
    ),
    Stop(
        "StableDiffusionControlNetImg2ImgPipeline",
        lambda: with_controlnet("StableDiffusionControlNetImg2ImgPipeline", sd),
        lambda d: picture_inputs(d, control_image=control(d)),
        "b",
        4,
    ),
    Stop(
        "StableDiffusionControlNetInpaintPipeline",
        lambda: with_controlnet("StableDiffusionControlNetInpaintPipeline", sd),
        lambda d: sd_inputs(d, image=d.picture(1, 3, 64, 64), mask_image=mask(), control_image=control(d)),
        "b",
    ),
    Stop(
        "StableDiffusionPanoramaPipeline",
        lambda: sd("StableDiffusionPanoramaPipeline"),
        lambda d: {**sd_inputs(d), "height": 64, "width": 640},
        ("b",) * 3,
    ),
    Stop("StableDiffusionSAGPipeline", lambda: sd("StableDiffusionSAGPipeline"), sd_inputs, ("b", "n")),
    Stop("StableDiffusionPAGPipeline", lambda: sd("StableDiffusionPAGPipeline"), sd_inputs, "x"),
    Stop("StableDiffusionPAGImg2ImgPipeline", lambda: sd("StableDiffusionPAGImg2ImgPipeline"), picture_inputs, "x", 4),
    Stop(
        "StableDiffusionControlNetPAGPipeline",
        lambda: with_controlnet("StableDiffusionControlNetPAGPipeline", sd),
        lambda d: sd_inputs(d, image=control(d)),
        "x",
    ),
    Stop(
        "StableDiffusionLDM3DPipeline",
        lambda: sd("StableDiffusionLDM3DPipeline", vae=kl(in_channels=6, out_channels=6)),
        lambda d: sd_inputs(d, output_type="np"),
        "b",
    ),
    Stop(
        "StableDiffusionInstructPix2PixPipeline",
        lambda: sd("StableDiffusionInstructPix2PixPipeline", unet=sd_unet(**SMALL, in_channels=8)),
        lambda d: {**d.prompts(), "output_type": "latent", "image": d.picture(1, 3, 64, 64)},
        "x",
    ),
    Stop(
        "StableDiffusionUpscalePipeline",
        lambda: sd(
            "StableDiffusionUpscalePipeline",
            unet=sd_unet(**SMALL, in_channels=7, num_class_embeds=400),
            low_res_scheduler=diffusers.DDPMScheduler(),
        ),
        lambda d: {**d.prompts(), "output_type": "latent", "image": d.picture(1, 3, 16, 16)},
        "b",
    ),
    Stop("StableDiffusionXLPipeline", lambda: xl("StableDiffusionXLPipeline"), xl_inputs, "b", slow=False),
    Stop("StableDiffusionXLImg2ImgPipeline", lambda: xl("StableDiffusionXLImg2ImgPipeline"), xl_picture, "b", 4),
    Stop(
        "StableDiffusionXLImg2ImgPipeline, refiner",
        lambda: xl(
            "StableDiffusionXLImg2ImgPipeline",
            requires_aesthetics_score=True,
            config={"projection_class_embeddings_input_dim": 5 * 8 + TEXT},
        ),
        lambda d: xl_picture(d, denoising_start=0.5),
        "b",
        4,
    ),
    Stop(
        "StableDiffusionXLInpaintPipeline",
        lambda: xl("StableDiffusionXLInpaintPipeline"),
        lambda d: xl_inputs(d, image=d.picture(1, 3, 64, 64), mask_image=mask(), strength=1.0),
        "b",
    ),
    Stop(
        "StableDiffusionXLInstructPix2PixPipeline",
        lambda: xl("StableDiffusionXLInstructPix2PixPipeline", config={"in_channels": 8}),
        lambda d: xl_inputs(d, image=d.picture(1, 3, 64, 64)),
        "x",
    ),
    Stop("StableDiffusionXLPAGPipeline", lambda: xl("StableDiffusionXLPAGPipeline"), xl_inputs, "x"),
    Stop(
        "StableDiffusionXLControlNetPipeline",
        lambda: with_controlnet("StableDiffusionXLControlNetPipeline", xl),
        lambda d: xl_inputs(d, image=control(d)),
        "b",
    ),
    Stop("LatentConsistencyModelPipeline", lambda: lcm("LatentConsistencyModelPipeline"), lambda d: lcm_inputs(d)),
    Stop(
        "LatentConsistencyModelImg2ImgPipeline",
        lambda: lcm("LatentConsistencyModelImg2ImgPipeline"),
        lambda d: {
            **d.prompts("prompt_embeds"),
            "output_type": "latent",
            "image": d.normal(1, 4, 8, 8),
            "strength": 0.9,
            "original_inference_steps": 100,
        },
        steps=5,
    ),
    Stop("AnimateDiffPipeline", lambda: animated("AnimateDiffPipeline"), video_inputs, "b", slow=False),
    Stop(
        "AnimateDiffVideoToVideoPipeline",
        lambda: animated("AnimateDiffVideoToVideoPipeline"),
        lambda d: {**sd_inputs(d), "video": [d.picture(3, 64, 64).float()] * 2, **HALF},
        "b",
        4,
    ),
    Stop(
        "AnimateDiffPAGPipeline",
        lambda: animated("AnimateDiffPAGPipeline", pag_applied_layers=["mid", r"down_blocks\.0"]),
        video_inputs,
        "x",
    ),
    Stop(
        "StableVideoDiffusionPipeline",
        svd,
        lambda d: {**SIZE, "image": PIL.Image.new("RGB", (64, 64), "red"), "num_frames": 2},
        "b",
    ),
    Stop(
        "TextToVideoSDPipeline",
        lambda: made("TextToVideoSDPipeline", unet=unet3d(), scheduler=ddim(), vae=kl()),
        video_inputs,
        "b",
    ),
    Stop(
        "DDPMPipeline",
        lambda: made("DDPMPipeline", unet=ddpm_unet(), scheduler=diffusers.DDPMScheduler()),
        lambda d: {"output_type": "np"},
    ),
    Stop(
        "DDIMPipeline",
        lambda: made("DDIMPipeline", unet=ddpm_unet(), scheduler=ddim()),
        lambda d: {"output_type": "np"},
    ),
    Stop(
        "LDMPipeline",
        lambda: made("LDMPipeline", unet=ddpm_unet(), scheduler=ddim(), vqvae=kl()),
        lambda d: {"output_type": "np"},
    ),
    Stop(
        "IFPipeline",
        lambda: deepfloyd("IFPipeline"),
        lambda d: {**d.prompts(), "height": 8, "width": 8, "output_type": "pt"},
        "b",
    ),
    Stop(
        "IFSuperResolutionPipeline",
        lambda: deepfloyd("IFSuperResolutionPipeline", 6),
        lambda d: {**d.prompts(), "height": 8, "width": 8, "output_type": "pt", "image": d.picture(1, 3, 4, 4).float()},
        "b",
    ),
    Stop("KandinskyV22Pipeline", lambda: kandinsky("KandinskyV22Pipeline"), embedded, "b"),
    Stop(
        "KandinskyV22Img2ImgPipeline",
        lambda: kandinsky("KandinskyV22Img2ImgPipeline"),
        lambda d: embedded(d, image=d.picture(1, 3, 64, 64), **HALF),
        "b",
        4,
    ),
]


def lcm_inputs(d: Draw) -> dict[str, Any]:
    return {**d.prompts("prompt_embeds"), **SIZE, "original_inference_steps": 50}


STOPS = [replace(stop, networks=("unet",)) for stop in STOPS]
