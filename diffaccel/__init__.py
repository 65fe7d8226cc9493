"""Faster diffusers pipelines, with the price in quality measured.

Names are loaded on first use, so that `import diffaccel` and `diffaccel --help` do not wait for torch and diffusers.
To add one, put it into `__all__`, into `_HOME` and, for type checkers, into the block below.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accelerate import Handle, accelerate
    from .calibrate import calibrate
    from .families import UnsupportedModelError
    from .forecast import Taylor
    from .guidance import FullGuidance, NoGuidance, OneTimeNegative, SelfNegative
    from .methods import (
        BlockCache,
        CalibratedCache,
        Calibration,
        DeepCache,
        DeltaCache,
        EncoderPropagation,
        FeatureInheritance,
        IntervalCache,
        Profile,
        Recipe,
        ResidualGuidance,
        TextKVCache,
        TGate,
    )
    from .report import Report
    from .schedule import Always, BackLoaded, FrontLoaded, Quadratic, ScaledSteps, Steps, Threshold, Uniform
    from .similarity import SimilarityFilter
    from .stream.engine import StreamEngine
    from .stream.report import StreamOutput, StreamReport
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
    "EncoderPropagation",
    "FeatureInheritance",
    "FrontLoaded",
    "FullGuidance",
    "Handle",
    "IntervalCache",
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
    "Always": ".schedule",
    "BackLoaded": ".schedule",
    "BlockCache": ".methods",
    "CalibratedCache": ".methods",
    "Calibration": ".methods",
    "DeepCache": ".methods",
    "DeltaCache": ".methods",
    "EncoderPropagation": ".methods",
    "FeatureInheritance": ".methods",
    "FrontLoaded": ".schedule",
    "FullGuidance": ".guidance",
    "Handle": ".accelerate",
    "IntervalCache": ".methods",
    "NoGuidance": ".guidance",
    "OneTimeNegative": ".guidance",
    "Profile": ".methods",
    "Quadratic": ".schedule",
    "Recipe": ".methods",
    "Report": ".report",
    "ResidualGuidance": ".methods",
    "ScaledSteps": ".schedule",
    "SelfNegative": ".guidance",
    "SimilarityFilter": ".similarity",
    "SlotCache": ".stream.slot_cache",
    "Steps": ".schedule",
    "StreamClosed": ".stream.worker",
    "StreamEngine": ".stream.engine",
    "StreamOutput": ".stream.report",
    "StreamReport": ".stream.report",
    "StreamWorker": ".stream.worker",
    "TGate": ".methods",
    "Taylor": ".forecast",
    "TextKVCache": ".methods",
    "Threshold": ".schedule",
    "Uniform": ".schedule",
    "UnsupportedModelError": ".families",
    "accelerate": ".accelerate",
    "calibrate": ".calibrate",
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


class _Package(ModuleType):
    """Keeps `diffaccel.accelerate` the function: importing the module of the same name would otherwise shadow it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
