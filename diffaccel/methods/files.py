"""Methods out of JSON files, whoever wrote them: what `calibrate` measured, or methods as `to_dict` gives them."""

from pathlib import Path
from typing import Any

from diffaccel.config import Config
from diffaccel.config.checks import check
from diffaccel.config.files import read_json
from diffaccel.methods.base import Method
from diffaccel.methods.calibrated_cache import CalibratedCache, Calibration
from diffaccel.methods.curves import MagCurve, TeaCurve
from diffaccel.methods.learned_cache import LearnedCache
from diffaccel.methods.mag_cache import MagCache
from diffaccel.methods.profile import Profile
from diffaccel.methods.recipe import Recipe
from diffaccel.methods.routers import Routers
from diffaccel.methods.tea_cache import TeaCache


def load_methods(path: str | Path) -> tuple[Method, ...]:
    """The methods that a JSON file asks for.

    The file holds a calibration or a curve that `diffaccel.calibrate` wrote, a profile, routers, or one method, or
    several: as a list, or under `"methods"`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else; the message names the file.
    """
    try:
        values = read_json(path)
        named = isinstance(values, dict) and "type" not in values  # methods of a `Staged` are its own
        listed = values.get("methods", values) if named else values
        found = tuple(_method(value) for value in (listed if isinstance(listed, list) else [listed]))
        check(bool(found), "its list of methods is empty: leave the file out to reuse nothing")
        return found
    except ValueError as error:
        raise ValueError(f"{path} holds neither a calibration nor methods: {error}") from error


def _method(values: Any) -> Method:
    if not isinstance(values, dict) or not isinstance(values.get("type"), str):
        raise ValueError(f"expected an object with a type, found {str(values)[:60]}")
    config = Config.from_dict(values)
    if isinstance(config, Calibration):
        return CalibratedCache(config)
    if isinstance(config, Recipe):
        return Profile(config)
    if isinstance(config, Routers):
        return LearnedCache(config)
    if isinstance(config, MagCurve):
        return MagCache(config)
    if isinstance(config, TeaCurve):
        return TeaCache(config)
    if not isinstance(config, Method):
        raise ValueError(f"{values['type']} is not a method; methods are {', '.join(Method.names())}")
    return config
