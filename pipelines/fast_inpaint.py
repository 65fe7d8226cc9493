"""Inpainting with Stable Diffusion and SDXL, with or without a ControlNet, accelerated by call arguments.

    pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline="pipelines/fast_inpaint.py", trust_remote_code=True)
    pipe("a red heart", image=image, mask_image=mask, cache="deepcache:interval=2").images[0]

`cache`, `guidance` and `gate` take a method, its text or its dictionary; without them the call is the stock one.
"""

import diffaccel.pipelines.base

STOCK = (
    "StableDiffusionInpaint",
    "StableDiffusionXLInpaint",
    "StableDiffusionControlNetInpaint",
    "StableDiffusionXLControlNetInpaint",
    "StableDiffusionPAGInpaint",
    "StableDiffusionXLPAGInpaint",
    "StableDiffusionControlNetPAGInpaint",
    "StableDiffusionXLControlNetUnionInpaint",
)
"""Stock pipelines that it can be."""


class FastInpaintPipeline(
    diffaccel.pipelines.base.FastPipeline,
    stock=diffaccel.pipelines.base.named(STOCK),
):
    """The stock inpainting pipeline of its components, with `cache`, `guidance` and `gate`."""
