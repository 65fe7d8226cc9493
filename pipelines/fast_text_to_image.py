"""Text-to-image with Stable Diffusion and SDXL, with or without a ControlNet, accelerated by call arguments.

    pipe = DiffusionPipeline.from_pretrained(
        model, custom_pipeline="pipelines/fast_text_to_image.py", trust_remote_code=True
    )
    pipe("a red heart", cache="deepcache:interval=3,branch=0", guidance="one-time").images[0]

`cache`, `guidance` and `gate` take a method, its text or its dictionary; without them the call is the stock one.
"""

import diffaccel.pipelines.base

STOCK = (
    "StableDiffusion",
    "StableDiffusionXL",
    "StableDiffusionControlNet",
    "StableDiffusionXLControlNet",
    "StableDiffusionPAG",
    "StableDiffusionXLPAG",
    "StableDiffusionControlNetPAG",
    "StableDiffusionXLControlNetPAG",
    "StableDiffusionXLControlNetUnion",
    "StableDiffusionAdapter",
    "StableDiffusionXLAdapter",
    "LatentConsistencyModel",
)
"""Stock pipelines that it can be."""


class FastTextToImagePipeline(
    diffaccel.pipelines.base.FastPipeline,
    stock=diffaccel.pipelines.base.named(STOCK),
):
    """The stock text-to-image pipeline of its components, with `cache`, `guidance` and `gate`."""
