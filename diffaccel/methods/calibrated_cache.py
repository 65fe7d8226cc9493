"""SmoothCache (arXiv 2411.10510): a calibration, made once per model, says when each kind of layer may be reused."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from diffaccel.config import Config, StoredConfig, kind, stored
from diffaccel.config.checks import check, number, whole
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout, joined
from diffaccel.reuse.branch import Branch
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.schedule import Steps
from diffaccel.runtime.act import Part
from diffaccel.runtime.replay_act import Replay


@dataclass(frozen=True)
class KindSteps(Config):
    """When one kind of layer computes.

    Args:
        kind: "self_attention", "cross_attention", "feed_forward" or "parallel".
        steps: network calls that compute, ascending, the first of them 0.
    """

    kind: str
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", Steps(self.steps).steps)


@dataclass(frozen=True)
class Calibration(StoredConfig):
    """What `diffaccel.calibrate` measured. Made for one class and configuration of network, and one number of calls.

    Args:
        model: class name of the network.
        fingerprint: hash of its configuration.
        total: network calls of a run.
        alpha: relative L1 error up to which an output may be reused.
        kinds: the computed calls of each kind of layer.
    """

    _origin: ClassVar[str] = "a calibration written by diffaccel.calibrate"

    model: str
    fingerprint: str
    total: int
    alpha: float
    kinds: tuple[KindSteps, ...]

    def __post_init__(self) -> None:
        whole("total", self.total, 1)
        number("alpha", self.alpha, 0.0)
        check(bool(self.kinds), "a calibration needs at least one kind of layer")
        for item in self.kinds:
            check(isinstance(item, KindSteps), f"kinds of a calibration must be KindSteps; got {item!r}")
            check(item.steps[-1] < self.total, f"{item.kind} computes call {item.steps[-1]} of {self.total}")


@dataclass(frozen=True)
class CalibratedCache(Method):
    """Reuse the outputs of attentions and feed-forward networks, each kind when its own errors allow.

    Args:
        calibration: a calibration, or the path of one that `diffaccel.calibrate` wrote.
        forecast: carries the stored outputs forward, such as `Taylor(1)`; None replays them unchanged.
    """

    calibration: str | Calibration
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        stored(self, "calibration", Calibration, "a path or a Calibration")
        kind("forecast", self.forecast, Forecast)

    def written_out(self) -> Self:
        """The same with the calibration itself in place of its file."""
        return replace(self, calibration=Calibration.read(self.calibration))

    def parts(self, layout: Layout) -> list[Part]:
        """One part for each kind of layer."""
        layout.require("CalibratedCache", "units")
        calibration = Calibration.read(self.calibration)
        _require_made_for(calibration, layout)
        return [
            Part(Replay(of_kind(layout, item.kind)), _Calibrated(item.steps, calibration.total), self.forecast)
            for item in calibration.kinds
        ]


@dataclass(frozen=True)
class _Calibrated(Steps):
    """Compute the listed calls of a run of exactly `total`."""

    total: int = 1

    def validate(self, total: int | None) -> None:
        """Raise ValueError if the run has another number of calls."""
        check(
            total in (None, self.total),
            f"this calibration is for {self.total} network calls, and this run has {total}: calibrate again "
            "with these settings",
        )


def of_kind(layout: Layout, kind: str) -> Branch:
    """All units of one kind."""
    return joined(unit for unit in layout.units if unit.kind == kind)


def _require_made_for(calibration: Calibration, layout: Layout) -> None:
    """Refuse a calibration of another network."""
    layout.require_made_for(
        calibration.model, calibration.fingerprint, "this calibration is of", "run diffaccel.calibrate on it"
    )
    known = {unit.kind for unit in layout.units}
    for item in calibration.kinds:
        check(item.kind in known, f"the calibration names {item.kind!r}; {layout.model} has {', '.join(sorted(known))}")
