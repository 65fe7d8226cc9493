"""Image-to-image with Stable Diffusion and SDXL, with or without a ControlNet, accelerated by call arguments.

    pipe = DiffusionPipeline.from_pretrained(
        model, custom_pipeline="pipelines/fast_image_to_image.py", trust_remote_code=True
    )
    pipe("a red heart", image=image, strength=0.6, cache={"type": "deepcache", "interval": 2}).images[0]

`cache`, `guidance` and `gate` take a method, its text or its dictionary; without them the call is the stock one.
"""

import diffaccel.pipelines.base

STOCK = (
    "StableDiffusionImg2Img",
    "StableDiffusionXLImg2Img",
    "StableDiffusionControlNetImg2Img",
    "StableDiffusionXLControlNetImg2Img",
    "StableDiffusionPAGImg2Img",
    "StableDiffusionXLPAGImg2Img",
    "StableDiffusionXLControlNetPAGImg2Img",
    "StableDiffusionXLControlNetUnionImg2Img",
    "StableDiffusionInstructPix2Pix",
    "StableDiffusionXLInstructPix2Pix",
    "StableDiffusionDepth2Img",
    "StableDiffusionUpscale",
    "StableDiffusionLatentUpscale",
    "LatentConsistencyModelImg2Img",
)
"""Stock pipelines that it can be."""


class FastImageToImagePipeline(
    diffaccel.pipelines.base.FastPipeline,
    stock=diffaccel.pipelines.base.named(STOCK),
):
    """The stock image-to-image pipeline of its components, with `cache`, `guidance` and `gate`."""
