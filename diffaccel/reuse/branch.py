"""What to reuse: modules that are skipped or replayed, named by their path in the network.

On a call that reuses, a *skipped* module returns a placeholder of its recorded shape, because something downstream
reads no more than that, and a *replayed* module returns its stored output. DeepCache skips everything below a boundary
and replays the boundary alone; an inheritance of features skips nothing and replays in place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.schedule import Schedule


@dataclass(frozen=True)
class Branch:
    """A reusable portion of a network.

    Attributes:
        replayed: names of the modules whose outputs are stored and returned again.
        skipped: names of the modules whose outputs are never read on a call that reuses.
    """

    replayed: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules of the branch."""
        return self.skipped + self.replayed


def positive_half(feature: torch.Tensor) -> torch.Tensor:
    """The second half of the rows, (2 * rows, ...) -> (rows, ...)."""
    return feature[feature.shape[0] // 2 :]


def mean_of_halves(feature: torch.Tensor) -> torch.Tensor:
    """The mean of negative and positive rows, (2 * rows, ...) -> (rows, ...)."""
    negative, positive = feature.chunk(2)
    return (negative + positive) / 2


@dataclass(frozen=True)
class Part:
    """A branch that is reused, and when.

    Attributes:
        branch: what is reused.
        schedule: when it computes.
        forecast: how stored features are carried to later calls; None leaves them unchanged.
        halve: what remains of a stored tensor when the negative half of the rows is dropped in the middle of a run.
    """

    branch: Branch
    schedule: Schedule
    forecast: Forecast | None = None
    halve: Callable[[torch.Tensor], torch.Tensor] = positive_half
