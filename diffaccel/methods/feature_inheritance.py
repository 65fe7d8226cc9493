"""Feature inheritance (A-SDM, arXiv 2406.00210): each part of a network inherits its feature from an earlier step."""

from dataclasses import dataclass

from diffaccel.config import kind
from diffaccel.config.checks import one_of, whole
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout, UnsupportedModelError
from diffaccel.reuse.branch import Branch
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.schedule import Schedule, Uniform
from diffaccel.runtime.act import Part
from diffaccel.runtime.replay_act import Replay

LEVELS = ("block", "layer", "unit")


@dataclass(frozen=True)
class FeatureInheritance(Method):
    """Replay the outputs of blocks, layers or units in place, while all that lies between them runs.

    The paper inherits features at three levels, block, layer and unit, with several ways to sample the time steps that
    compute. Its abstract alone was at hand: which modules make up a level, the depth from which they inherit, and the
    samplings (`Uniform`, `FrontLoaded`, `BackLoaded`, `Quadratic`, or `Steps` as an explicit mask) are our reading.

    Args:
        level: "block" (whole down, middle and up blocks), "layer" (residual layers and transformers) or "unit"
            (attentions and feed-forward networks within transformers).
        depth: modules at levels shallower than this, counted from the output, always run.
        interval: compute in every `interval`-th network call, unless `schedule` says otherwise.
        schedule: when to compute.
        forecast: carries the stored features forward; None replays them unchanged.
    """

    level: str = "layer"
    depth: int = 1
    interval: int = 2
    schedule: Schedule | None = None
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("level", self.level, LEVELS)
        whole("depth", self.depth, 0)
        whole("interval", self.interval, 1)
        kind("schedule", self.schedule, Schedule)
        kind("forecast", self.forecast, Forecast)

    def parts(self, layout: Layout) -> list[Part]:
        """One part: all modules of the level that are deep enough."""
        layout.require("FeatureInheritance", "levels")
        whole(f"depth of {layout.model}", self.depth, 0, len(layout.levels) - 1)
        names = [name for level in layout.levels[self.depth :] for name in getattr(level, f"{self.level}s")]
        if not names:
            raise UnsupportedModelError(
                f"{layout.model} has no {self.level}s to inherit at depth {self.depth} or below"
            )
        return [Part(Replay(Branch(tuple(names))), self.schedule or Uniform(self.interval), self.forecast)]
