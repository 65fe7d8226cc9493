"""Video with AnimateDiff, Stable Video Diffusion, Wan, LTX, HunyuanVideo, CogVideoX and others, by call arguments.

    pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline="pipelines/fast_video.py", trust_remote_code=True)
    pipe("a red heart that beats", num_frames=16, cache="deepcache:interval=3,branch=0").frames[0]

`cache`, `guidance` and `gate` take a method, its text or its dictionary; without them the call is the stock one.
"""

import diffaccel.pipelines.base

STOCK = (
    "AnimateDiff",
    "AnimateDiffVideoToVideo",
    "AnimateDiffControlNet",
    "StableVideoDiffusion",
    "Wan",
    "WanImageToVideo",
    "WanVideoToVideo",
    "LTX",
    "LTXImageToVideo",
    "HunyuanVideo",
    "HunyuanVideoImageToVideo",
    "CogVideoX",
    "CogVideoXImageToVideo",
    "CogVideoXVideoToVideo",
    "AnimateDiffPAG",
    "AnimateDiffSDXL",
    "AnimateDiffVideoToVideoControlNet",
    "WanVACE",
    "LucyEdit",
    "SkyReelsV2",
    "SkyReelsV2ImageToVideo",
    "SkyReelsV2DiffusionForcing",
    "SkyReelsV2DiffusionForcingImageToVideo",
    "SkyReelsV2DiffusionForcingVideoToVideo",
    "LTXCondition",
    "LTXI2VLongMultiPrompt",
    "LTX2",
    "HunyuanVideo15",
    "HunyuanVideoFramepack",
    "HunyuanSkyreelsImageToVideo",
    "CogVideoXFunControl",
    "Allegro",
    "AnyFlow",
    "ChronoEdit",
    "ConsisID",
    "EasyAnimate",
    "Helios",
    "Kandinsky5T2V",
    "Latte",
    "Mochi",
    "MotifVideo",
    "SanaVideo",
    "TextToVideoSD",
    "VideoToVideoSD",
)
"""Stock pipelines that it can be."""


class FastVideoPipeline(diffaccel.pipelines.base.FastPipeline, stock=diffaccel.pipelines.base.named(STOCK)):
    """The stock video pipeline of the model, or of its components, with `cache`, `guidance` and `gate`."""
