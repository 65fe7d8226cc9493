"""The custom pipelines as a package: `from diffaccel.pipelines import StreamDiffusionPipeline`.

They are loaded on first use: a custom pipeline file needs `base` alone, and must not see the other pipelines' classes.
"""

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffaccel.pipelines.causal_video import CausalVideoPipeline
    from diffaccel.pipelines.fast_control import FastControlPipeline
    from diffaccel.pipelines.fast_image_to_image import FastImageToImagePipeline
    from diffaccel.pipelines.fast_inpaint import FastInpaintPipeline
    from diffaccel.pipelines.fast_text_to_image import FastTextToImagePipeline
    from diffaccel.pipelines.fast_transformer import FastTransformerPipeline
    from diffaccel.pipelines.fast_video import FastVideoPipeline
    from diffaccel.pipelines.stream_diffusion import StreamDiffusionPipeline

__all__ = [
    "CausalVideoPipeline",
    "FastControlPipeline",
    "FastImageToImagePipeline",
    "FastInpaintPipeline",
    "FastTextToImagePipeline",
    "FastTransformerPipeline",
    "FastVideoPipeline",
    "StreamDiffusionPipeline",
]


def __getattr__(name: str) -> Any:
    """Import a pipeline from its file."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Pipeline")).lower()
    return getattr(import_module(f"{__name__}.{file}"), name)
