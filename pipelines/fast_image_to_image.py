"""Image-to-image with Stable Diffusion and SDXL, with or without a ControlNet, accelerated by call arguments.

    pipe = DiffusionPipeline.from_pretrained(
        model, custom_pipeline="pipelines/fast_image_to_image.py", trust_remote_code=True
    )
    pipe("a red heart", image=image, strength=0.6, cache={"type": "deepcache", "interval": 2}).images[0]

`cache`, `guidance` and `gate` take a method, its text or its dictionary; without them the call is the stock one.
"""

from diffusers import (
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)

import diffaccel.pipelines.base


class FastImageToImagePipeline(
    diffaccel.pipelines.base.FastPipeline,
    stock=(
        StableDiffusionImg2ImgPipeline,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionXLControlNetImg2ImgPipeline,
    ),
):
    """The stock image-to-image pipeline of its components, with `cache`, `guidance` and `gate`."""
