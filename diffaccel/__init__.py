"""Faster diffusers pipelines, with the price in quality measured.

Names are loaded on first use, so that `import diffaccel` and `diffaccel --help` do not wait for torch and diffusers.
To add one, put it into `__all__`, into `_HOME` and, for type checkers, into the block below.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach.calibrate import calibrate
    from .attach.handle import Handle, accelerate
    from .attach.report import Report
    from .methods import (
        BlockCache,
        CalibratedCache,
        Calibration,
        DeepCache,
        DeltaCache,
        EasyCache,
        EncoderPropagation,
        FeatureInheritance,
        IntervalCache,
        Profile,
        Recipe,
        ResidualGuidance,
        TextKVCache,
        TGate,
    )
    from .networks import UnsupportedModelError
    from .reuse.forecast import Newton, Taylor
    from .reuse.schedule import Always, BackLoaded, FrontLoaded, Quadratic, ScaledSteps, Steps, Threshold, Uniform
    from .sampling.guidance import FullGuidance, NoGuidance, OneTimeNegative, SelfNegative
    from .stream.engine import StreamEngine
    from .stream.report import StreamOutput, StreamReport
    from .stream.similarity import SimilarityFilter
    from .stream.slot_cache import SlotCache
    from .stream.worker import StreamClosed, StreamWorker

__version__ = "0.1.0"

__all__ = [
    "Always",
    "BackLoaded",
    "BlockCache",
    "CalibratedCache",
    "Calibration",
    "DeepCache",
    "DeltaCache",
    "EasyCache",
    "EncoderPropagation",
    "FeatureInheritance",
    "FrontLoaded",
    "FullGuidance",
    "Handle",
    "IntervalCache",
    "Newton",
    "NoGuidance",
    "OneTimeNegative",
    "Profile",
    "Quadratic",
    "Recipe",
    "Report",
    "ResidualGuidance",
    "ScaledSteps",
    "SelfNegative",
    "SimilarityFilter",
    "SlotCache",
    "Steps",
    "StreamClosed",
    "StreamEngine",
    "StreamOutput",
    "StreamReport",
    "StreamWorker",
    "TGate",
    "Taylor",
    "TextKVCache",
    "Threshold",
    "Uniform",
    "UnsupportedModelError",
    "__version__",
    "accelerate",
    "calibrate",
]

_HOME: dict[str, str] = {
    "Always": ".reuse.schedule",
    "BackLoaded": ".reuse.schedule",
    "BlockCache": ".methods",
    "CalibratedCache": ".methods",
    "Calibration": ".methods",
    "DeepCache": ".methods",
    "DeltaCache": ".methods",
    "EasyCache": ".methods",
    "EncoderPropagation": ".methods",
    "FeatureInheritance": ".methods",
    "FrontLoaded": ".reuse.schedule",
    "FullGuidance": ".sampling.guidance",
    "Handle": ".attach.handle",
    "IntervalCache": ".methods",
    "Newton": ".reuse.forecast",
    "NoGuidance": ".sampling.guidance",
    "OneTimeNegative": ".sampling.guidance",
    "Profile": ".methods",
    "Quadratic": ".reuse.schedule",
    "Recipe": ".methods",
    "Report": ".attach.report",
    "ResidualGuidance": ".methods",
    "ScaledSteps": ".reuse.schedule",
    "SelfNegative": ".sampling.guidance",
    "SimilarityFilter": ".stream.similarity",
    "SlotCache": ".stream.slot_cache",
    "Steps": ".reuse.schedule",
    "StreamClosed": ".stream.worker",
    "StreamEngine": ".stream.engine",
    "StreamOutput": ".stream.report",
    "StreamReport": ".stream.report",
    "StreamWorker": ".stream.worker",
    "TGate": ".methods",
    "Taylor": ".reuse.forecast",
    "TextKVCache": ".methods",
    "Threshold": ".reuse.schedule",
    "Uniform": ".reuse.schedule",
    "UnsupportedModelError": ".networks",
    "accelerate": ".attach.handle",
    "calibrate": ".attach.calibrate",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
