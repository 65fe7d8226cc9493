"""Compute some rows of a network call alone, and put them in their places among the others."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from diffaccel.row_state import RowState
from diffaccel.signature import WITHOUT_ROWS, Inputs
from diffaccel.state import Context


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
