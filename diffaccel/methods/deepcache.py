"""DeepCache (arXiv 2312.00858): the deep part of a UNet changes slowly, so compute it only now and then."""

from dataclasses import dataclass

from diffaccel.config import kind
from diffaccel.config.checks import whole
from diffaccel.methods.base import Method, Unread
from diffaccel.methods.companions import embedding
from diffaccel.networks.layout import Layout
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.schedule import Schedule, Uniform
from diffaccel.runtime.act import Part
from diffaccel.runtime.replay_act import Replay


@dataclass(frozen=True)
class DeepCache(Method):
    """Reuse the feature that enters the last layers of a UNet; the shallow path always runs.

    Stores one tensor, the output of the last module below the branch.

    Args:
        interval: compute everything in every `interval`-th network call, unless `schedule` says otherwise; 1 reuses
            nothing, 3 to 5 is usual.
        branch: how much still runs on a call that reuses, from 0 (the least, fastest) up. With n layers in an up block
            the branch is block * n + layer, both counted from the output end (section 3.2 of the paper).
        schedule: when to compute, instead of every `interval`-th call.
        forecast: carries the stored feature forward, such as `Taylor(1)`; None replays it unchanged.
    """

    interval: int = 3
    branch: int = 0
    schedule: Schedule | None = None
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("interval", self.interval, 1)
        whole("branch", self.branch, 0)
        kind("schedule", self.schedule, Schedule)
        kind("forecast", self.forecast, Forecast)

    def parts(self, layout: Layout) -> list[Part]:
        """One part: the branch that was asked for."""
        layout.require("DeepCache", "depths")
        whole(f"branch of {layout.model}", self.branch, 0, len(layout.depths) - 1)
        return [Part(Replay(layout.depths[self.branch]), self.schedule or Uniform(self.interval), self.forecast)]

    def companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:
        """The embedding of a control image that stays the same."""
        return [(embedding(layout), None)]

    def unread(self, companion: Layout, denoiser: Layout) -> list[Unread]:  # noqa: ARG002
        """What lies below the branch."""
        return [Unread(companion.depths[self.branch])]
