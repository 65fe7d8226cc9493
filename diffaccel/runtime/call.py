"""One network call, as a customer hands it to a session: inputs, and whose rows they are."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from diffaccel.networks.inputs import Inputs
from diffaccel.runtime.act import Lifetime
from diffaccel.runtime.lanes import Lanes, Span, select
from diffaccel.sampling.noise_levels import NoiseLevels

Forced = bool | tuple[bool, ...] | None
"""What computes, whatever the schedules say: all, nothing, or each part as told; None lets the schedules decide."""


@dataclass(frozen=True)
class Measured:
    """What a method measured to decide about a call.

    Attributes:
        name: of the quantity, in the field's words, such as "relative change of the input".
        values: one for each group of rows or each row that was decided about, in no particular order.
        limit: what a value above it made compute; None where there is no fixed one.
    """

    name: str
    values: tuple[float, ...]
    limit: float | None = None


class Disturbed(RuntimeError):
    """Other rows broke a run of the network that they shared: nothing is known of one's own, which must go again."""


@dataclass(frozen=True, eq=False)
class Call:
    """One network call.

    Attributes:
        inputs: what the network is given.
        lanes: for each lifetime the lanes of the rows, as many as rows.
        step: index of the call within its run, from 0; None has every group count its own calls.
        total: network calls of the run, None if unknown or without end.
        places: for each row its own (step, total) where rows are runs of their own, as frames at different stages are;
            empty where all rows are at the same place.
        forced: see `Forced`.
        roles: for each row whether it sees the negative prompt ("negative") or the positive one ("positive"); empty
            where there is no guidance, or it is not known.
        run: the run of a pipeline that the call belongs to, if any.
        view: which of several such calls beside each other in one step; both calls of guidance share it.
        partners: for each row the lane of the negative row beside it that a method has dropped; empty if none was.
        levels: for each row how much signal and noise is in its sample, where whoever makes the call knows.
        measured: what methods measure to decide about it, which they add here for the report; calls of some of its rows
            share the list.
        spans: for each row the frames of a video that it shows; empty where a row is no part of one.
    """

    inputs: Inputs
    lanes: Mapping[Lifetime, Lanes]
    step: int | None = None
    total: int | None = None
    places: tuple[tuple[int, int], ...] = ()
    forced: Forced = None
    roles: tuple[str, ...] = ()
    run: Any = None
    view: Hashable = None
    partners: Lanes = ()
    levels: tuple[tuple[float, float], ...] = ()
    measured: list[Measured] = field(default_factory=list)
    spans: tuple[Span, ...] = ()

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.lanes["run"])

    def place(self, row: int) -> tuple[int | None, int | None]:
        """Step and total of a row."""
        return self.places[row] if self.places else (self.step, self.total)

    def select(self, rows: Sequence[int]) -> "Call":
        """The call of some of its rows."""
        if list(rows) == list(range(self.count)):
            return self
        return replace(
            self,
            inputs=select(self.inputs, rows, self.count),
            lanes={lifetime: tuple(lanes[row] for row in rows) for lifetime, lanes in self.lanes.items()},
            places=tuple(self.places[row] for row in rows) if self.places else (),
            roles=tuple(self.roles[row] for row in rows) if self.roles else (),
            partners=tuple(self.partners[row] for row in rows) if self.partners else (),
            spans=tuple(self.spans[row] for row in rows) if self.spans else (),
            levels=tuple(self.levels[row] for row in rows) if self.levels else (),
        )

    def noise_levels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """How much signal and how much noise is in the sample, of each row or of all, ``(rows or 1, 1, ...)``.

        Raises:
            ValueError: if nothing tells.
        """
        sample = self.inputs.sample
        if self.levels:
            levels = torch.tensor(self.levels, device=sample.device).reshape(-1, 2, *[1] * (sample.dim() - 1))
            return levels[:, 0], levels[:, 1]
        scheduler = None if self.run is None else self.run.host.scheduler
        if scheduler is None:
            raise ValueError(
                "the noise level of this network call is not known: pass the pipeline, not its network, to "
                "accelerate(), or leave the measure out"
            )
        return NoiseLevels(scheduler).at(self.run.timestep_of(self.inputs.timestep), sample.float())

    @property
    def is_negative(self) -> bool:
        """Whether its first row sees the negative prompt; where schedules ask, all rows that decide together do."""
        return self.roles[:1] == ("negative",)

    def rows_of(self, role: str) -> list[int]:
        """Places of the rows that have a role."""
        return [row for row, own in enumerate(self.roles) if own == role]

    def positive(self) -> "Call":
        """The positive rows alone, each with the negative row beside it as partner."""
        positive, negative = self.rows_of("positive"), self.rows_of("negative")
        lanes = self.lanes["run"]
        return replace(self.select(positive), partners=tuple(lanes[row] for row in negative))
