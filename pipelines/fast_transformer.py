"""Diffusion transformers (PixArt, SD3, FLUX, Sana, Qwen-Image, Z-Image and others), accelerated by call arguments.

    pipe = DiffusionPipeline.from_pretrained(
        model, custom_pipeline="pipelines/fast_transformer.py", trust_remote_code=True
    )
    pipe("a red heart", cache="blockcache:threshold=0.08").images[0]

`cache` and `guidance` take a method, its text or its dictionary; without them the call is the stock one.
"""

import diffaccel.pipelines.base

STOCK = (
    "PixArtAlpha",
    "PixArtSigma",
    "Sana",
    "StableDiffusion3",
    "StableDiffusion3Img2Img",
    "StableDiffusion3Inpaint",
    "StableDiffusion3ControlNet",
    "StableDiffusion3ControlNetInpainting",
    "Flux",
    "FluxImg2Img",
    "FluxInpaint",
    "FluxKontext",
    "FluxFill",
    "FluxControl",
    "FluxControlNet",
    "FluxControlNetImg2Img",
    "FluxControlNetInpaint",
    "QwenImage",
    "QwenImageImg2Img",
    "QwenImageInpaint",
    "QwenImageControlNet",
    "QwenImageEdit",
    "PixArtSigmaPAG",
    "SanaPAG",
    "SanaControlNet",
    "SanaSprint",
    "SanaSprintImg2Img",
    "StableDiffusion3PAG",
    "StableDiffusion3PAGImg2Img",
    "FluxControlImg2Img",
    "FluxControlInpaint",
    "FluxKontextInpaint",
    "Flux2",
    "Flux2Klein",
    "Flux2KleinInpaint",
    "Flux2KleinKV",
    "QwenImageControlNetInpaint",
    "QwenImageEditInpaint",
    "QwenImageEditPlus",
    "QwenImage21",
    "Chroma",
    "ChromaImg2Img",
    "ZImage",
    "ZImageImg2Img",
    "ZImageInpaint",
    "AuraFlow",
    "Bria",
    "CogView3Plus",
    "CogView4",
    "CogView4Control",
    "DiT",
    "ErnieImage",
    "GlmImage",
    "HiDreamImage",
    "HunyuanDiT",
    "HunyuanDiTPAG",
    "HunyuanImage",
    "JoyImageEdit",
    "Kandinsky5T2I",
    "Krea2",
    "LongCatImage",
    "Lumina",
    "Lumina2",
    "NucleusMoEImage",
    "OvisImage",
    "PRX",
)
"""Stock pipelines that it can be."""


class FastTransformerPipeline(
    diffaccel.pipelines.base.FastPipeline,
    stock=diffaccel.pipelines.base.named(STOCK),
):
    """The stock pipeline of the model, or of its components, with `cache` and `guidance`."""
