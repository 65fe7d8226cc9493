"""Whose memory a row of a network call uses: lanes, what is kept for them, and rows gathered and scattered.

A *lane* is a name. Rows of later calls that carry it find what was stored under it, in whatever order and company they
come: half of a guided batch, a frame that moved on to its next stage, some rows that compute while others reuse.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from diffaccel.networks.inputs import SECOND_ROWS, WITHOUT_ROWS, Inputs
from diffaccel.runtime.trees import map_tensors, same_leaves, tensors_in


class Lane(NamedTuple):
    """Name of what one row stores.

    Attributes:
        group: lanes of one group compute or reuse together, unless an act decides row by row.
        place: the lane within its group.
    """

    group: Hashable
    place: Hashable


Lanes = tuple[Lane, ...]


class Span(NamedTuple):
    """Frames of a video that one row shows.

    Attributes:
        first: number of the first one, counted from the start of the video.
        frames: how many.
        commits: whether later calls shall see them as they are in this one.
        also: lanes besides the row's own that shall, in place of what they saw of these frames before.
    """

    first: int
    frames: int
    commits: bool = False
    also: tuple[Lane, ...] = ()


@dataclass(eq=False)
class Block:
    """What some lanes stored together.

    Attributes:
        lanes: one per row.
        entries: one per slot of the act: tensors ``(lanes * anything, ...)`` in any structure, or None.
    """

    lanes: Lanes
    entries: list[Any]

    def rows(self, wanted: Sequence[int]) -> "Block":
        """The block of some of its lanes."""
        count = len(self.lanes)
        return Block(tuple(self.lanes[i] for i in wanted), [take_rows(e, wanted, count) for e in self.entries])


class LaneMemory:
    """What one part stored, by lane."""

    def __init__(self) -> None:
        self._places: dict[Lane, tuple[Block, int]] = {}
        self.steps: dict[Lane, int] = {}

    def copy(self) -> "LaneMemory":
        """The same for calls that shall leave no trace here; tensors are shared."""
        copy = LaneMemory()
        blocks = {id(block): Block(block.lanes, list(block.entries)) for block, _ in self._places.values()}
        copy._places = {lane: (blocks[id(block)], index) for lane, (block, index) in self._places.items()}
        copy.steps = dict(self.steps)
        return copy

    def has(self, lanes: Lanes) -> bool:
        """Whether something is stored for every lane."""
        return all(lane in self._places for lane in lanes)

    def block_of(self, lane: Lane) -> Block | None:
        """The block that a lane lies in; None where nothing is stored for it."""
        return self._places.get(lane, (None, 0))[0]

    def is_before(self, lanes: Lanes, step: int) -> bool:
        """Whether all that lanes stored is from calls before this one; else their count has begun anew."""
        return all(self.steps.get(lane, -1) < step for lane in lanes)

    def take(self, lanes: Lanes) -> list[Block]:
        """Blocks whose lanes, one after the other, are those asked for; a lane without memory is a block of no entries.

        Where lanes were stored together and in this order, it is their block itself.
        """
        found = [self.block_of(lane) for lane in lanes]
        if found[0] is not None and found[0].lanes == lanes and all(block is found[0] for block in found):
            return [found[0]]
        blocks = join(list(self._pieces(lanes)))
        if len(blocks) == 1 and self.has(lanes):
            self._place(blocks[0])  # the next call finds them together
        return blocks

    def _pieces(self, lanes: Lanes) -> Iterator[Block]:
        """The longest stretches of lanes that lie in one block, each as a block; those without memory, as one."""
        for block, stretch in groupby(lanes, self.block_of):
            own = tuple(stretch)
            if block is None:
                yield Block(own, [])
            else:
                wanted = [self._places[lane][1] for lane in own]
                yield block if wanted == list(range(len(block.lanes))) else block.rows(wanted)

    def put(self, blocks: Sequence[Block], step: int) -> None:
        """Store blocks that were computed at a call; what their lanes stored before is forgotten."""
        for block in blocks:
            self._place(block)
            for lane in block.lanes:
                self.steps[lane] = step

    def _place(self, block: Block) -> None:
        for index, lane in enumerate(block.lanes):
            self._places[lane] = block, index

    def merge(
        self, lanes: Lanes, others: Lanes, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        """Replace what lanes stored by a function of it and of what others stored, and forget the others.

        What only some stored, as where a guider skips layers for one prompt, stays as it is.
        """
        if not (self.has(lanes) and self.has(others)):
            return
        (own,), (other,) = self.take(lanes), self.take(others)
        pairs = zip(own.entries, other.entries, strict=True)
        merged = [a if a is None or b is None else _zipped(lambda x: function(x[0], x[1]), (a, b)) for a, b in pairs]
        self._place(Block(lanes, merged))
        self.drop(others)

    def drop(self, lanes: Sequence[Lane]) -> None:
        """Forget some lanes."""
        for lane in lanes:
            self._places.pop(lane, None)
            self.steps.pop(lane, None)

    def keep(self, lanes: Sequence[Lane]) -> None:
        """Forget all lanes but these."""
        kept = set(lanes)
        self.drop([lane for lane in self._places if lane not in kept])

    def touch(self, lanes: Sequence[Lane]) -> None:
        """Take note that lanes are in use: they come last from now on."""
        for lane in lanes:
            if lane in self._places:
                self._places[lane] = self._places.pop(lane)

    @property
    def lanes(self) -> list[Lane]:
        """All lanes that stored something, those that were stored or touched longest ago first."""
        return list(self._places)

    def nbytes(self) -> int:
        """Bytes of the storage that is held."""
        blocks = {id(block): block for block, _ in self._places.values()}
        return stored_nbytes([block.entries for block in blocks.values()])


def stored_nbytes(tree: Any) -> int:
    """Bytes of the storages of all tensors in `tree`, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(tree)}.values())


def join(blocks: list[Block]) -> list[Block]:
    """Neighbouring blocks as one where their entries differ in tensors alone: not in the calls they were made at."""
    joined: list[Block] = []
    for block in blocks:
        if joined and (entries := _joined(joined[-1].entries, block.entries)) is not None:
            joined[-1] = Block(joined[-1].lanes + block.lanes, entries)
        else:
            joined.append(block)
    return joined


def _joined(one: list[Any], other: list[Any]) -> list[Any] | None:
    (leaves, form), (others, form_of_others) = tree_flatten(one), tree_flatten(other)
    if form != form_of_others:
        return None
    found = []
    for a, b in zip(leaves, others, strict=True):
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if not tensors and (isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor) or a != b):
            return None
        found.append(cat_rows((a, b)) if tensors else a)
    entries: list[Any] = tree_unflatten(found, form)
    return entries


def take_rows(tree: Any, wanted: Sequence[int], count: int) -> Any:
    """Some of ``count`` rows of every tensor ``(count * anything, ...)``; a tensor without rows is shared by all."""

    def take(leaf: torch.Tensor) -> torch.Tensor:
        if leaf.dim() == 0 or leaf.shape[0] % count:
            return leaf
        each = leaf.shape[0] // count
        if leaf.stride(0) == 0:  # all rows are one, as those of a placeholder
            return leaf[:1].expand(len(wanted) * each, *leaf.shape[1:])
        if list(wanted) == list(range(wanted[0], wanted[0] + len(wanted))):
            return leaf[wanted[0] * each : (wanted[-1] + 1) * each]
        return torch.cat([leaf[i * each : (i + 1) * each] for i in wanted])

    return map_tensors(take, tree)


def pieces_of(value: Any, sizes: Sequence[int]) -> list[Any]:
    """A value of all rows, cut into the rows of each block."""
    total, start, pieces = sum(sizes), 0, []
    for size in sizes:
        pieces.append(take_rows(value, range(start, start + size), total))
        start += size
    return pieces


def cat_rows(parts: Sequence[Any]) -> Any:
    """Trees of tensors with their rows one after the other; those of placeholders take no storage."""
    return parts[0] if len(parts) == 1 else _zipped(_cat, parts)


def _cat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    rows = sum(t.shape[0] for t in tensors)
    if all(not any(t.stride()) for t in tensors):  # placeholders, zero everywhere
        return tensors[0].new_zeros(()).expand(rows, *tensors[0].shape[1:])
    return torch.cat(list(tensors))


def _zipped(function: Callable[[Sequence[torch.Tensor]], torch.Tensor], trees: Sequence[Any]) -> Any:
    """A tree whose tensors are made of those in the same places of some trees."""
    if isinstance(trees[0], torch.Tensor):
        return function(trees)
    flat, form = tree_flatten(trees[0])
    columns = list(zip(flat, *(tree_leaves(tree) for tree in trees[1:]), strict=True))
    zipped = [function(c) if isinstance(c[0], torch.Tensor) else c[0] for c in columns]
    places = zip(*(same_leaves(column) for column in zip(*columns, strict=True)), strict=True)
    return tree_unflatten([zipped[own[0] if len(set(own)) == 1 else i] for i, own in enumerate(places)], form)


def select(inputs: Inputs, rows: Sequence[int], count: int) -> Inputs:
    """Some of ``count`` rows of a network's inputs: of tensors whose first dimension they are, of lists as long.

    A prompt ``(rows * frames, tokens, features)`` is repeated for each frame of a row, as AnimateDiff's is, and so are
    the residuals of its ControlNets.

    Raises:
        ValueError: for a network that keeps keys and values of all its rows between calls, as AnyFlow-FAR's does.
    """
    if inputs.values.get("kv_cache"):
        raise ValueError(
            "this network writes keys and values of all its rows into kv_cache, so it cannot be called with some of "
            "them: leave out methods that drop or split rows, such as TGate, ResidualGuidance and PerPrompt"
        )
    values = {name: _named(name, v, rows, count, folded="residual" in name) for name, v in inputs.values.items()}
    name, prompt = inputs.names[2], inputs.conditioning
    if name is not None and isinstance(prompt, torch.Tensor) and prompt.dim() > 2 and prompt.shape[0] % count == 0:
        values[name] = take_rows(prompt, rows, count)
    return replace(inputs, values=values)


def _named(name: str, value: Any, rows: Sequence[int], count: int, *, folded: bool) -> Any:
    if name in SECOND_ROWS:
        return _selected(value.transpose(0, 1), rows, count).transpose(0, 1)
    return value if name in WITHOUT_ROWS else _selected(value, rows, count, folded=folded)


def _selected(value: Any, rows: Sequence[int], count: int, *, folded: bool = False) -> Any:
    if isinstance(value, torch.Tensor):
        has_rows = value.dim() > 0 and (value.shape[0] == count or (folded and value.shape[0] % count == 0))
        return take_rows(value, rows, count) if has_rows else value
    if isinstance(value, Mapping):
        return {key: _named(key, item, rows, count, folded=folded) for key, item in value.items()}
    listed = isinstance(value, list) and len(value) == count and not folded
    if listed and not any(_has_rows(x, count) for x in value):
        return [value[row] for row in rows]
    if isinstance(value, list | tuple):
        return type(value)(_selected(item, rows, count, folded=folded) for item in value)
    return value


def _has_rows(value: Any, count: int) -> bool:
    """Whether an item of a list has rows of its own, as each residual of a ControlNet does."""
    return isinstance(value, torch.Tensor) and value.dim() > 2 and value.shape[0] == count


def gather(output: Any, rows: Sequence[int], count: int) -> Any:
    """A network's output of some of ``count`` rows; what is no tensor of rows, nor holds some, stays."""
    if isinstance(output, torch.Tensor):
        return output[list(rows)] if output.dim() and output.shape[0] == count else output
    if isinstance(output, list | tuple):
        return type(output)(gather(item, rows, count) for item in output)
    if isinstance(output, Mapping):
        return type(output)(**{name: gather(item, rows, count) for name, item in output.items()})
    return output


def scatter(outputs: Sequence[tuple[Any, Sequence[int]]]) -> Any:
    """A network's output of all rows, from outputs of some rows each, given with their places among all.

    What is no tensor of those rows, nor holds some, is taken from the first output.
    """
    first, places = outputs[0][0], [i for _, rows in outputs for i in rows]
    if isinstance(first, torch.Tensor):
        if any(output.dim() == 0 or output.shape[0] != len(rows) for output, rows in outputs):
            return first
        order = torch.tensor(sorted(range(len(places)), key=places.__getitem__), device=first.device)
        return torch.cat([output for output, _ in outputs]).index_select(0, order)
    if isinstance(first, list | tuple):
        return type(first)(scatter([(output[i], rows) for output, rows in outputs]) for i, _ in enumerate(first))
    if not isinstance(first, Mapping):
        return first
    return type(first)(**{name: scatter([(output[name], rows) for output, rows in outputs]) for name in first})
