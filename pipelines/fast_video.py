"""Video with AnimateDiff and Stable Video Diffusion, accelerated by call arguments.

    pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline="pipelines/fast_video.py", trust_remote_code=True)
    pipe("a red heart that beats", num_frames=16, cache="deepcache:interval=3,branch=0").frames[0]

`cache`, `guidance` and `gate` take a method, its text or its dictionary; without them the call is the stock one.
"""

from diffusers import AnimateDiffPipeline, StableVideoDiffusionPipeline

import diffaccel.pipelines.base


class FastVideoPipeline(
    diffaccel.pipelines.base.FastPipeline, stock=(AnimateDiffPipeline, StableVideoDiffusionPipeline)
):
    """The stock video pipeline of its components, with `cache`, `guidance` and `gate`."""
