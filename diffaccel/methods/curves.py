"""What MagCache and TeaCache know of a network beforehand: measured by `calibrate`, or published by their authors."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from diffaccel.config import StoredConfig
from diffaccel.config.checks import check, number
from diffaccel.config.words import did_you_mean
from diffaccel.networks.layout import Layout

PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class _Curve(StoredConfig):
    """What was measured of one network.

    Args:
        model: class name of the network.
        fingerprint: hash of its configuration; empty for published values, which hold for one checkpoint of that class.
        source: where the values come from.
    """

    model: str
    fingerprint: str
    source: str


@dataclass(frozen=True)
class MagCurve(_Curve):
    """How the magnitude of the residual of all blocks changes from call to call.

    Args:
        ratios: for each network call of a run the mean over tokens of ||r_t|| / ||r_(t-1)||; 1 for the first call.
    """

    _origin: ClassVar[str] = "a curve for MagCache written by diffaccel.calibrate"

    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        check(len(self.ratios) > 0, "ratios of a curve must have one number per network call; got none")
        for ratio in self.ratios:
            number("each of ratios", ratio, 0.0)


@dataclass(frozen=True)
class TeaCurve(_Curve):
    """How much the output changes for a change of the modulated input.

    Args:
        coefficients: of a polynomial, highest power first, from the relative change of the modulated input between two
            calls in a row to that of the output.
    """

    _origin: ClassVar[str] = "coefficients for TeaCache written by diffaccel.calibrate"

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        check(len(self.coefficients) > 0, "coefficients must have at least one number; got none")
        for value in self.coefficients:
            number("each of coefficients", value, float("-inf"))


C = TypeVar("C", MagCurve, TeaCurve)


def published(kind: type[C]) -> dict[str, C]:
    """The published curves of one kind, by name."""
    values: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {name: kind.from_dict(value) for name, value in values[kind.__name__].items()}


def curve_for(given: str | C, kind: type[C], layout: Layout) -> C:
    """The curve that was asked for, by itself, by its published name or by its path.

    Raises:
        ValueError: if it is of another network, or there is none of that name.
    """
    curve = given if not isinstance(given, str) else _named(given, kind)
    if curve.fingerprint or curve.model != layout.model:
        of = curve.fingerprint or "as published"
        layout.require_made_for(curve.model, of, f"this {kind.__name__} is of", "run diffaccel.calibrate on it")
    return curve


def read_curve(given: str | C, kind: type[C]) -> str | C:
    """A curve in place of the path of its file; published names and curves stay as they are."""
    return given if not isinstance(given, str) or given in published(kind) else kind.load(given)


def _named(name: str, kind: type[C]) -> C:
    known = published(kind)
    if name in known:
        return known[name]
    if not Path(name).suffix and not Path(name).exists():
        hint = did_you_mean(name, known)
        raise ValueError(
            f"there is no published {kind.__name__} {name!r}{hint}, and no such file: known are {', '.join(known)}; "
            "for another network run diffaccel.calibrate"
        )
    return kind.load(name)
