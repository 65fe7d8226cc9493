"""What a stream asks a network or an autoencoder to do on its rows; such works of several streams can be one.

Whoever runs a work needs to know no more than that its function keeps rows apart: `joined` puts the rows of several
works one after the other, and `parted` gives each its own rows of what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Rows = Mapping[str, Any]
"""Tensors ``(rows, ...)`` by name, in lists and mappings where there are several; None where there is nothing."""
OPTIONAL = ("down_block_additional_residuals", "mid_block_additional_residual")
"""What is added to the network, so that rows without it have zeros."""
ANY_TYPE = ("timesteps",)


@dataclass(frozen=True, eq=False)
class Work:
    """A function on rows.

    Attributes:
        kind: "network", "controlnet", "encode" or "decode".
        alike: equal for works whose functions do the same.
        function: takes rows and gives a tensor ``(rows, ...)``, or several in lists; it keeps rows apart.
        rows: what it is given.
        count: how many rows.
        ragged: names of lists that hold one tensor a row, each of its own length.
    """

    kind: str
    alike: Hashable
    function: Callable[[Rows], Any]
    rows: Rows
    count: int
    ragged: tuple[str, ...] = ()

    @property
    def shapes(self) -> Hashable:
        """What the rows of works must have in common to be one work: names, and the shape and type of a row."""
        shared = {name: value for name, value in self.rows.items() if name not in (*OPTIONAL, *self.ragged)}
        return tuple((name, _shape(value, name not in ANY_TYPE)) for name, value in sorted(shared.items()))


def _shape(value: Any, typed: bool) -> Hashable:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape[1:]), value.dtype if typed else None)
    if isinstance(value, Mapping):
        return tuple((name, _shape(item, typed)) for name, item in sorted(value.items()))
    return tuple(_shape(item, typed) for item in value) if isinstance(value, list | tuple) else value


def joined(works: Sequence[Work]) -> Rows:
    """The rows of works of one kind and shape, one after the other."""
    if len(works) == 1:
        return works[0].rows
    names = dict.fromkeys(name for work in works for name in work.rows)
    return {name: _joined(name, works) for name in names}


def _joined(name: str, works: Sequence[Work]) -> Any:
    if name in works[0].ragged:
        return [row for work in works for row in work.rows[name]]
    values = [work.rows.get(name) for work in works]
    like, length = next(((v, w.count) for v, w in zip(values, works, strict=True) if v is not None), (None, 1))
    return _cat([_zeros(like, length, w.count) if v is None else v for v, w in zip(values, works, strict=True)])


def _zeros(like: Any, length: int, count: int) -> Any:
    """Zeros for ``count`` rows where ``like`` has ``length``."""
    if isinstance(like, torch.Tensor):
        return like.new_zeros(()).expand(like.shape[0] // length * count, *like.shape[1:])
    return None if like is None else [_zeros(item, length, count) for item in like]


def _cat(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(tuple(values))
    if isinstance(first, Mapping):
        return {name: _cat([value[name] for value in values]) for name in first}
    return [_cat(column) for column in zip(*values, strict=True)] if isinstance(first, list | tuple) else first


def parted(output: Any, works: Sequence[Work]) -> list[Any]:
    """Each work's rows of an output, in storage of their own."""
    if len(works) == 1:
        return [output]
    if not isinstance(output, torch.Tensor):
        return [list(column) for column in zip(*(parted(item, works) for item in output), strict=True)]
    each = output.shape[0] // sum(work.count for work in works)
    return [piece.clone() for piece in torch.split(output, [each * work.count for work in works])]


class WorkRunner:
    """Runs the works of one stream: at once, and alone.

    Attributes:
        deadline: seconds within which a frame should be done; None for no hurry.
    """

    deadline: float | None = None

    def begin(self) -> None:
        """A tick's calls of the network follow."""

    def end(self) -> None:
        """They were made, or a cache did without."""

    def run(self, work: Work) -> Any:
        """What the work's function makes of its rows."""
        return work.function(work.rows)

    @contextmanager
    def room(self, rows: int) -> Iterator[None]:  # noqa: ARG002
        """Have room for so many rows a tick, unless the body raises. Raises ValueError where there is none."""
        yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within, the room that it has is free for a stream that takes its place, unless the body raises."""
        yield

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within, no other stream's work runs on the same weights."""
        yield

    def leave(self) -> None:
        """Be no longer expected, and give back the room."""
