"""Faster diffusers pipelines, with the price in quality measured.

Names are loaded on first use, so that `import diffaccel` and `diffaccel --help` do not wait for torch and diffusers.
Methods are public by the list in `methods/__init__.py` alone. To add another name, put it into `_HOME` and, for type
checkers, into the block below.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach.calibrate import calibrate as calibrate
    from .attach.handle import Handle as Handle
    from .attach.handle import accelerate as accelerate
    from .attach.report import Report as Report
    from .measure.relevance import relevance as relevance
    from .methods import *  # noqa: F403
    from .networks import UnsupportedModelError as UnsupportedModelError
    from .networks.expert_unet import ExpertUNet2DConditionModel as ExpertUNet2DConditionModel
    from .networks.image_prompts import ImagePrompt as ImagePrompt
    from .networks.ptdit import PTDiTTransformer2DModel as PTDiTTransformer2DModel
    from .reuse.forecast import Aligned as Aligned
    from .reuse.forecast import Newton as Newton
    from .reuse.forecast import Taylor as Taylor
    from .reuse.measure import SeaFilter as SeaFilter
    from .reuse.per_prompt import PerPrompt as PerPrompt
    from .reuse.schedule import Always as Always
    from .reuse.schedule import BackLoaded as BackLoaded
    from .reuse.schedule import FrontLoaded as FrontLoaded
    from .reuse.schedule import Quadratic as Quadratic
    from .reuse.schedule import ScaledSteps as ScaledSteps
    from .reuse.schedule import Steps as Steps
    from .reuse.schedule import Threshold as Threshold
    from .reuse.schedule import Uniform as Uniform
    from .runtime.causal_context import CausalContext as CausalContext
    from .sampling.guidance import FullGuidance as FullGuidance
    from .sampling.guidance import NoGuidance as NoGuidance
    from .sampling.guidance import OneTimeNegative as OneTimeNegative
    from .sampling.guidance import SelfNegative as SelfNegative
    from .stream.engine import StreamEngine as StreamEngine
    from .stream.host import HostFull as HostFull
    from .stream.host import HostReport as HostReport
    from .stream.host import StreamHost as StreamHost
    from .stream.motion import MotionNoise as MotionNoise
    from .stream.regions import Region as Region
    from .stream.report import StreamOutput as StreamOutput
    from .stream.report import StreamReport as StreamReport
    from .stream.similarity import SimilarityFilter as SimilarityFilter
    from .stream.slot_cache import SlotCache as SlotCache
    from .stream.smoothing import MotionBlend as MotionBlend
    from .stream.steadiness import CrossFrame as CrossFrame
    from .stream.worker import StreamClosed as StreamClosed
    from .stream.worker import StreamWorker as StreamWorker
    from .tune.router_training import train_routers as train_routers
    from .video.engine import VideoEngine as VideoEngine
    from .video.report import ChunkReport as ChunkReport
    from .video.report import VideoChunk as VideoChunk

__version__ = "0.1.0"

_HOME: dict[str, str] = {
    "Aligned": ".reuse.forecast",
    "Always": ".reuse.schedule",
    "BackLoaded": ".reuse.schedule",
    "CausalContext": ".runtime.causal_context",
    "ChunkReport": ".video.report",
    "CrossFrame": ".stream.steadiness",
    "FrontLoaded": ".reuse.schedule",
    "FullGuidance": ".sampling.guidance",
    "Handle": ".attach.handle",
    "HostFull": ".stream.host",
    "HostReport": ".stream.host",
    "ImagePrompt": ".networks.image_prompts",
    "MotionBlend": ".stream.smoothing",
    "MotionNoise": ".stream.motion",
    "Newton": ".reuse.forecast",
    "NoGuidance": ".sampling.guidance",
    "OneTimeNegative": ".sampling.guidance",
    "ExpertUNet2DConditionModel": ".networks.expert_unet",
    "PTDiTTransformer2DModel": ".networks.ptdit",
    "PerPrompt": ".reuse.per_prompt",
    "Quadratic": ".reuse.schedule",
    "Region": ".stream.regions",
    "Report": ".attach.report",
    "ScaledSteps": ".reuse.schedule",
    "SeaFilter": ".reuse.measure",
    "SelfNegative": ".sampling.guidance",
    "SimilarityFilter": ".stream.similarity",
    "SlotCache": ".stream.slot_cache",
    "Steps": ".reuse.schedule",
    "StreamClosed": ".stream.worker",
    "StreamEngine": ".stream.engine",
    "StreamHost": ".stream.host",
    "StreamOutput": ".stream.report",
    "StreamReport": ".stream.report",
    "StreamWorker": ".stream.worker",
    "Taylor": ".reuse.forecast",
    "Threshold": ".reuse.schedule",
    "Uniform": ".reuse.schedule",
    "UnsupportedModelError": ".networks",
    "VideoChunk": ".video.report",
    "VideoEngine": ".video.engine",
    "accelerate": ".attach.handle",
    "calibrate": ".attach.calibrate",
    "relevance": ".measure.relevance",
    "train_routers": ".tune.router_training",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it; `__all__` is made of what there is."""
    if name == "__all__":
        return sorted([*_HOME, *import_module(".methods", __name__).__all__, "__version__"])
    home = _HOME.get(name, ".methods" if name[:1].isupper() else "")  # methods are classes
    module = import_module(home, __name__) if home else None
    if module is None or name not in getattr(module, "__all__", [name]):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__all__", *(name for name in globals() if name.startswith("__"))]
