"""What is remembered of each row for a part that stores residuals, and the decision which rows compute."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from diffaccel.networks.inputs import WITHOUT_ROWS, Inputs
from diffaccel.reuse.branch import Part
from diffaccel.reuse.residual import Residual, RowSchedule, relative_changes
from diffaccel.runtime.state import CacheState, Context

Place = tuple[int, int]  # index of a range, and of a segment in it


@dataclass
class Row:
    """One row of the network's input.

    Attributes:
        residuals: what each segment of blocks added, or the history of a forecast of it.
        reference: residual of the front blocks at the last computed call.
        age: reused calls since then.
    """

    residuals: dict[Place, Any] = field(default_factory=dict)
    reference: torch.Tensor | None = None
    age: int = 0


class RowState(CacheState):
    """Residuals by row.

    Attributes:
        rows: one entry per row; a single one for all rows where they do not stay apart.
        open: whether the rows of this call are still to be decided.
        late: rows that must compute after a call in which others reuse.
        entering: hidden states at the start of the segment that is running.
        arriving: main hidden states at the first of the front blocks.
    """

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        assert isinstance(part.branch, Residual)
        self.branch = part.branch
        self.places = [
            [(r, s) for s, _ in enumerate(self.branch.segments(r))] for r, _ in enumerate(self.branch.ranges)
        ]
        self.rows: list[Row] = []
        self.open = False
        self.late: tuple[int, ...] = ()
        self.entering: dict[str, Any] = {}
        self.arriving: Any = None
        self._current: tuple[int, ...] = ()

    def clear(self) -> None:
        """Forget all rows."""
        self.rows = [Row() for _ in self.rows]

    def halve(self) -> None:
        """Keep the positive half of the rows."""
        self.rows = self.rows[len(self.rows) // 2 :]

    def nbytes(self) -> int:
        """Bytes of the storage that residuals and references hold."""
        kept = [leaf for row in self.rows for leaf in (*tree_leaves(row.residuals), row.reference)]
        tensors = [leaf for leaf in kept if isinstance(leaf, torch.Tensor)]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    def begin(self, count: int | None, selected: tuple[int, ...] | None, decided: bool, total: int | None) -> None:
        """Prepare for a call, with all rows or with some that must compute."""
        super().begin(count, selected, decided, total)
        rows = count if count is not None and self.branch.rows_apart else 1
        if selected is None and len(self.rows) != rows:
            self.rows = [Row() for _ in range(rows)]
        self._current = selected or tuple(range(rows))
        self.range = self.branch.in_force(self.step, total)
        known = all(place in row.residuals for row in self.rows for place in self.places[self.range])
        self.compute = self.compute or selected is not None or not known
        self.open = isinstance(self.part.schedule, RowSchedule) and not decided and not self.compute
        self.late, self.entering, self.arriving = (), {}, None

    def measure(self, front: torch.Tensor) -> None:
        """Decide which rows compute, given what the front blocks added, (rows, ...)."""
        if self.open:
            self._choose(front)
        for j, part in zip(self._current, self._split(front), strict=True):
            row = self.rows[j]
            row.age = 0 if self.compute else row.age + 1
            row.reference = part if self.compute else row.reference

    def write(self, segment: int, features: list[torch.Tensor]) -> None:
        """Store what a segment added to each stream, for the rows of this call."""
        place = self.range, segment
        by_stream = [self._split(feature) for feature in features]
        for index, j in enumerate(self._current):
            added: Any = [parts[index] for parts in by_stream]
            row = self.rows[j]
            if self.part.forecast is not None:
                added = self.part.forecast.update(row.residuals.get(place), added, self.step)
            row.residuals = {at: kept for at, kept in row.residuals.items() if at[0] == self.range} | {place: added}

    def read(self, segment: int) -> list[torch.Tensor]:
        """What a segment is taken to add to each stream now, all rows together."""
        kept = [row.residuals[self.range, segment] for row in self.rows]
        if self.part.forecast is not None:
            kept = [self.part.forecast.predict(history, self.step) for history in kept]
        return kept[0] if len(kept) == 1 else [torch.cat(parts) for parts in zip(*kept, strict=True)]

    def _choose(self, front: torch.Tensor) -> None:
        """Which of all rows compute."""
        schedule = self.part.schedule
        assert isinstance(schedule, RowSchedule)
        self.open = False
        references = [row.reference for row in self.rows if row.reference is not None]
        if len(references) < len(self.rows):
            self.compute = True
            return
        changes = relative_changes(front, torch.cat(references), len(self.rows))
        ages = [row.age for row in self.rows]
        late = tuple(
            j for j, (change, age) in enumerate(zip(changes, ages, strict=True)) if schedule.row_computes(change, age)
        )
        self.compute = len(late) == len(self.rows)
        self.late = () if self.compute else late

    def _split(self, feature: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A tensor by rows of this call; a network may have folded frames into them, (rows * frames, ...)."""
        count = len(self._current)
        if feature.shape[0] % count:
            raise RuntimeError(
                f"hidden states of shape {tuple(feature.shape)} cannot belong to {count} rows: this network does not "
                "keep its rows apart"
            )
        return torch.split(feature, feature.shape[0] // count)


def new_state(part: Part) -> CacheState:
    """An empty state for a part."""
    return RowState(part) if isinstance(part.branch, Residual) else CacheState(part)


def rows_of(tree: Any, selected: tuple[int, ...], count: int) -> Any:
    """`tree` with only some of `count` rows of its tensors, (rows * anything, ...) each."""

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0 or leaf.shape[0] % count:
            return leaf
        chunks = torch.split(leaf, leaf.shape[0] // count)
        return torch.cat([chunks[j] for j in selected])

    return tree_map(take, tree)


def with_late_rows(context: Context, network: Callable[[Inputs], Any], inputs: Inputs) -> Any:
    """One network call, after which the network runs again on the rows that must compute where others reused.

    Their rows are gathered from the inputs of the network and scattered into its output; the front blocks run a second
    time for them.
    """
    output = network(inputs)
    late = next((state.late for state in context.states if isinstance(state, RowState) and state.late), ())
    return scatter(output, network(gather(inputs, late)), late) if late else output


def gather(inputs: Inputs, rows: tuple[int, ...]) -> Inputs:
    """Some rows of the inputs: of tensors whose first dimension is that of the sample, of lists as long."""
    count = inputs.sample.shape[0]
    values = {name: v if name in WITHOUT_ROWS else _gather(v, rows, count) for name, v in inputs.values.items()}
    return replace(inputs, values=values, rows=rows)


def scatter(output: Any, part: Any, rows: tuple[int, ...]) -> Any:
    """A network's output with some of its rows replaced by those of `part`, which has no others."""
    if isinstance(output, torch.Tensor):
        index = torch.tensor(rows, device=output.device)
        return output.index_copy(0, index, part)
    if isinstance(output, tuple):
        return (scatter(output[0], part[0], rows), *output[1:])
    first = next(iter(output))
    return type(output)(**{**output, first: scatter(output[first], part[first], rows)})


def _gather(value: Any, rows: tuple[int, ...], count: int) -> Any:
    """Some rows of one input."""
    if isinstance(value, torch.Tensor):
        has_rows = value.dim() > 0 and value.shape[0] == count
        return value.index_select(0, torch.tensor(rows, device=value.device)) if has_rows else value
    if isinstance(value, Mapping):
        return {key: _gather(item, rows, count) for key, item in value.items()}
    if isinstance(value, list) and len(value) == count and not any(isinstance(x, torch.Tensor) for x in value):
        return [value[row] for row in rows]
    if isinstance(value, list | tuple):
        return type(value)(_gather(item, rows, count) for item in value)
    return value
