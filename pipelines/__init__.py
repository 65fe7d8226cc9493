"""The custom pipelines as a package: `from diffaccel.pipelines import StreamDiffusionPipeline`."""

from diffaccel.pipelines.fast_image_to_image import FastImageToImagePipeline
from diffaccel.pipelines.fast_inpaint import FastInpaintPipeline
from diffaccel.pipelines.fast_text_to_image import FastTextToImagePipeline
from diffaccel.pipelines.fast_transformer import FastTransformerPipeline
from diffaccel.pipelines.fast_video import FastVideoPipeline
from diffaccel.pipelines.stream_diffusion import StreamDiffusionPipeline

__all__ = [
    "FastImageToImagePipeline",
    "FastInpaintPipeline",
    "FastTextToImagePipeline",
    "FastTransformerPipeline",
    "FastVideoPipeline",
    "StreamDiffusionPipeline",
]
