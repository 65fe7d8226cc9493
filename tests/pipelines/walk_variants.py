"""Pipelines beside those of the walk around the same networks: from pictures, painting over, with references, refining."""

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from tiny_networks import motion_unet
from walk_edits import Told
from walk_further_pictures import kandinsky5, kandinsky5_inputs, twice_prompted
from walk_further_videos import WAN, hunyuan15, ltx2, ltx2_inputs, motif
from walk_newest import Guard, cosmos, dreamlite, fibo, karras, sized, stable_audio3, z_control
from walk_parts import TOKENS, Draw, Stop, ddim, flow, kl, made, network, red
from walk_pictures import FLUX, HALF, SIZE, chroma, half_mask, image, listed, picture, zimage
from walk_unets import deepfloyd, video_inputs
from walk_videos import SIZE as FILM
from walk_videos import guided, masked, wan_vae


def changed(pipe: Any, **config: Any) -> Any:
    """A pipeline's transformer with another configuration."""
    kept = {key: value for key, value in pipe.transformer.config.items() if not key.startswith("_")}
    return network(type(pipe.transformer).__name__, **{**kept, **config})


def with_components(name: str, pipe: Any, **parts: Any) -> Any:
    return made(name, **{**pipe.components, **parts})


def chroma_inpaint() -> Any:
    pipe = image("ChromaInpaintPipeline", "ChromaTransformer2DModel", FLUX, vae=kl(shift_factor=0.0))
    pipe.transformer.register_to_config(guidance_embeds=False)
    return pipe


def z_inpaint() -> Any:
    pipe = z_control()
    config = {key: value for key, value in pipe.controlnet.config.items() if not key.startswith("_")}
    net = network("ZImageControlNetModel", **{**config, "control_in_dim": 9})
    return with_components("ZImageControlNetInpaintPipeline", pipe, controlnet=net)


class Seeing(torch.nn.Module):
    """In the place of an encoder of pictures and of what prepares them."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1, 4, 8), 0.3))

    def forward(self, **rest: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.weight)


class Prepared(dict[str, torch.Tensor]):
    def preprocess(self, **rest: Any) -> "Prepared":
        return Prepared(pixel_values=torch.ones(1, 3, 8, 8))

    def to(self, *args: Any, **rest: Any) -> "Prepared":
        return self


def hunyuan15_picture() -> Any:
    pipe = with_components("HunyuanVideo15ImageToVideoPipeline", hunyuan15())
    pipe.register_modules(image_encoder=Seeing(), feature_extractor=Prepared())
    pipe.vision_num_semantic_tokens, pipe.vision_states_dim = 4, 8
    return pipe


def hunyuan15_inputs(d: Draw) -> dict[str, Any]:
    inputs = twice_prompted(d, num_frames=5, image=red(32))
    return {key: value for key, value in inputs.items() if key not in ("height", "width")}


def kandinsky5_picture() -> Any:
    pipe = kandinsky5("Kandinsky5I2IPipeline", kl(), visual_cond=True)
    pipe.resolutions = [(64, 64)]
    return pipe


def cosmos25() -> Any:
    pipe = cosmos("Cosmos2VideoToWorldPipeline", karras(), 5)
    scheduler = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    parts = {"scheduler": scheduler, "safety_checker": Guard()}
    return made("Cosmos2_5_PredictBasePipeline", transformer=pipe.transformer, vae=pipe.vae, **parts)


def sparse() -> Any:
    unet = motion_unet()
    shared = (
        "block_out_channels",
        "down_block_types",
        "layers_per_block",
        "norm_num_groups",
        "cross_attention_dim",
        "motion_max_seq_length",
        "motion_num_attention_heads",
    )
    net = network(
        "SparseControlNetModel",
        **{name: unet.config[name] for name in shared},
        attention_head_dim=2,
        conditioning_channels=3,
        conditioning_embedding_out_channels=(4, 8, 8, 16),
        use_simplified_condition_embedding=False,
    )
    parts = {"unet": unet, "controlnet": net, "scheduler": ddim(), "vae": kl(), "motion_adapter": None}
    return made("AnimateDiffSparseControlNetPipeline", **parts)


def fibo_edit() -> Any:
    own = fibo()
    pipe = made("BriaFiboEditPipeline", transformer=own.transformer, vae=own.vae, scheduler=flow())
    pipe.register_modules(text_encoder=Told())
    pipe.get_prompt_embeds = own.get_prompt_embeds
    return pipe


def mobile() -> Any:
    own = dreamlite()
    pipe = made("DreamLiteMobilePipeline", unet=own.unet, vae=own.vae, scheduler=flow())
    pipe.register_modules(text_encoder=Told())
    pipe.encode_prompt = own.encode_prompt
    return pipe


def refiner() -> Any:
    net = network(
        "HunyuanImageTransformer2DModel",
        in_channels=16,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=(1, 1, 1),
        text_embed_dim=16,
        rope_axes_dim=(4, 4, 4),
        guidance_embeds=True,
    )
    vae = network(
        "AutoencoderKLHunyuanImageRefiner",
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        temporal_compression_ratio=1,
    )
    return made("HunyuanImageRefinerPipeline", transformer=net, vae=vae, scheduler=flow())


def omni() -> Any:
    pipe = zimage("ZImagePipeline")
    net = changed(pipe, siglip_feat_dim=8)
    return made("ZImageOmniPipeline", transformer=net, vae=pipe.vae, scheduler=flow())


def pyramid() -> Any:
    net = network("HeliosTransformer3DModel", **WAN, in_channels=4, out_channels=4, num_layers=3, rope_dim=(4, 4, 4))
    scheduler = diffusers.HeliosScheduler(gamma=0.25)
    return made("HeliosPyramidPipeline", transformer=net, vae=wan_vae(), scheduler=scheduler)


def pyramid_inputs(d: Draw) -> dict[str, Any]:
    sizes = {"height": 64, "width": 64, "history_sizes": [4, 2, 1], "num_latent_frames_per_chunk": 3}
    return guided(d, num_inference_steps=None, num_frames=9, pyramid_num_inference_steps_list=[3, 3, 3], **sizes)


def super_resolved(d: Draw, **more: Any) -> dict[str, Any]:
    pictures = {"image": d.picture(1, 3, 4, 4).float(), "original_image": d.picture(1, 3, 8, 8).float()}
    return {**d.prompts(), **pictures, "output_type": "pt", **HALF, **more}


def heard(d: Draw, **more: Any) -> dict[str, Any]:
    prompts = {**d.prompts("prompt_embeds"), "encoder_attention_mask": torch.ones(1, TOKENS, dtype=torch.long)}
    return {**prompts, "duration": 1.0, "audio": d.normal(1, 2, 64).float(), "output_type": "latent", **more}


def short_film(d: Draw, *names: str, **more: Any) -> dict[str, Any]:
    return {**d.prompts(*names, mask="prompt_attention_mask", width=32), **FILM, "num_frames": 5, **more}


STOPS = [
    Stop(
        "ChromaInpaintPipeline",
        chroma_inpaint,
        lambda d: chroma(d, **picture(d, mask_image=half_mask(), **HALF), true_cfg_scale=3.0),
        "pn",
        4,
    ),
    Stop(
        "ZImageControlNetInpaintPipeline",
        z_inpaint,
        lambda d: listed(d, control_image=d.picture(1, 3, 64, 64), **picture(d, mask_image=half_mask())),
        "B",
    ),
    Stop(
        "ZImageOmniPipeline",
        omni,
        lambda d: {name: [[d.normal(TOKENS, 16)]] for name in ("prompt_embeds", "negative_prompt_embeds")} | SIZE,
        "B",
    ),
    Stop("HunyuanVideo15ImageToVideoPipeline", hunyuan15_picture, hunyuan15_inputs, "pn"),
    Stop("HunyuanImageRefinerPipeline", refiner, lambda d: refined(d)),
    Stop(
        "MotifVideoImage2VideoPipeline",
        lambda: with_components("MotifVideoImage2VideoPipeline", motif()),
        lambda d: masked(d, num_frames=5, image=red(32), prompt=None),
        "pn",
    ),
    Stop(
        "Kandinsky5I2IPipeline",
        kandinsky5_picture,
        lambda d: {**kandinsky5_inputs(d, image=red(64)), "height": 64, "width": 64},
        "pn",
    ),
    Stop(
        "LTX2HDRPipeline",
        lambda: with_components("LTX2HDRPipeline", ltx2()),
        lambda d: short_film(d, "prompt_embeds"),
    ),
    Stop(
        "LTX2HDRPipeline, guided",
        lambda: with_components("LTX2HDRPipeline", ltx2()),
        lambda d: short_film(d, guidance_scale=3.0),
        "b",
    ),
    Stop(
        "LTX2InContextPipeline",
        lambda: with_components("LTX2InContextPipeline", ltx2()),
        lambda d: ltx2_inputs(d, skips=False),
        "b",
    ),
    Stop("Cosmos2_5_PredictBasePipeline", cosmos25, lambda d: guided(d, image=None, guidance_scale=3.0), "pn"),
    Stop(
        "AnimateDiffSparseControlNetPipeline",
        sparse,
        lambda d: video_inputs(d, conditioning_frames=[red(64)]),
        "b",
        networks=("unet",),
    ),
    Stop(
        "BriaFiboEditPipeline",
        fibo_edit,
        lambda d: {
            "prompt": '{"edit_instruction": "x"}',
            "negative_prompt": "no",
            "image": red(64),
            **SIZE,
            "_auto_resize": False,
        },
        "b",
    ),
    Stop("DreamLiteMobilePipeline", mobile, lambda d: sized(d, prompt="a cat"), networks=("unet",)),
    Stop(
        "IFImg2ImgSuperResolutionPipeline",
        lambda: deepfloyd("IFImg2ImgSuperResolutionPipeline", 6),
        super_resolved,
        "b",
        4,
        networks=("unet",),
    ),
    Stop(
        "IFInpaintingSuperResolutionPipeline",
        lambda: deepfloyd("IFInpaintingSuperResolutionPipeline", 6),
        lambda d: super_resolved(d, mask_image=torch.ones(1, 1, 8, 8)),
        "b",
        4,
        networks=("unet",),
    ),
    Stop(
        "HeliosPyramidPipeline",
        pyramid,
        pyramid_inputs,
        "pn",
        3,
        calls=lambda index: ((index // 2) % 3, index % 2),  # each stage sets its own timesteps
    ),
    Stop(
        "StableAudio3AudioToAudioPipeline",
        lambda: with_components("StableAudio3AudioToAudioPipeline", stable_audio3()),
        heard,
    ),
    Stop(
        "StableAudio3InpaintPipeline",
        lambda: with_components("StableAudio3InpaintPipeline", stable_audio3()),
        lambda d: heard(d, mask_start_seconds=0.0, mask_end_seconds=0.5),
    ),
]


def refined(d: Draw) -> dict[str, Any]:
    inputs = d.prompts(mask="prompt_embeds_mask")
    return {**inputs, "image": red(16), "height": 16, "width": 16, "output_type": "latent"}
