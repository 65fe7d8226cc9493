"""Published methods, one file each: a method is a choice of what to reuse, and when.

`__all__` is the list of public methods and of what they are given: the package's root has the same names.
"""

import re

from diffaccel.methods.base import Method as Method
from diffaccel.methods.block_cache import BlockCache
from diffaccel.methods.calibrated_cache import CalibratedCache, Calibration
from diffaccel.methods.calibrated_cache import KindSteps as KindSteps
from diffaccel.methods.control_cache import ControlCache
from diffaccel.methods.control_relevance import Loss as Loss
from diffaccel.methods.control_relevance import Relevance
from diffaccel.methods.curves import MagCurve, TeaCurve
from diffaccel.methods.deepcache import DeepCache
from diffaccel.methods.delta_cache import DeltaCache
from diffaccel.methods.easy_cache import EasyCache
from diffaccel.methods.encoder_propagation import EncoderPropagation
from diffaccel.methods.feature_inheritance import FeatureInheritance
from diffaccel.methods.files import load_methods as load_methods
from diffaccel.methods.interval_cache import IntervalCache
from diffaccel.methods.learned_cache import LearnedCache
from diffaccel.methods.mag_cache import MagCache
from diffaccel.methods.network_switch import NetworkSwitch
from diffaccel.methods.profile import Profile
from diffaccel.methods.recipe import Evidence as Evidence
from diffaccel.methods.recipe import Recipe
from diffaccel.methods.recipe import Reuse as Reuse
from diffaccel.methods.residual_guidance import ResidualGuidance
from diffaccel.methods.routers import Routers, RouterTraining
from diffaccel.methods.speca import SpeCa
from diffaccel.methods.staged import Staged
from diffaccel.methods.tea_cache import TeaCache
from diffaccel.methods.text_kv_cache import TextKVCache
from diffaccel.methods.tgate import TGate
from diffaccel.methods.token_reduction import TokenReduction
from diffaccel.reuse.per_prompt import PerPrompt as PerPrompt  # whose text methods are to know

__all__ = [
    "BlockCache",
    "CalibratedCache",
    "Calibration",
    "ControlCache",
    "DeepCache",
    "DeltaCache",
    "EasyCache",
    "EncoderPropagation",
    "FeatureInheritance",
    "IntervalCache",
    "LearnedCache",
    "MagCache",
    "MagCurve",
    "NetworkSwitch",
    "Profile",
    "Recipe",
    "Relevance",
    "ResidualGuidance",
    "RouterTraining",
    "Routers",
    "SpeCa",
    "Staged",
    "TGate",
    "TeaCache",
    "TeaCurve",
    "TextKVCache",
    "TokenReduction",
]

_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""


def parse(text: str) -> Method:
    """The method written as a short string, such as `deepcache:interval=3,branch=0,schedule=steps(0,4,9)`.

    Raises:
        ValueError: if there is no such method or field, or a value is invalid; the message names what is valid.
    """
    return Method.parse(text)


def parse_all(text: str) -> tuple[Method, ...]:
    """The methods joined by plus signs in a string, as in `"deepcache:interval=3 + tgate"`; none for `"none"`.

    Raises:
        ValueError: as `parse`.
    """
    if text.strip() == "none":
        return ()
    bare = re.sub(_QUOTED, lambda found: "'" * len(found[0]), text)  # a plus sign within quotes joins nothing
    ends = [found.start() for found in re.finditer(r"\+(?=\s*[A-Za-z]\w*\s*(?:[:+]|$))", bare)]
    starts = [0, *(end + 1 for end in ends)]
    return tuple(parse(text[start:end]) for start, end in zip(starts, [*ends, None], strict=True))
