"""Merge tokens before self-attention, and copy what comes out to all that were merged (arXiv 2303.17604)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from diffaccel.networks.block_io import Streams
from diffaccel.networks.inputs import Inputs
from diffaccel.reuse.tokens import (
    Matching,
    TokenGrid,
    TokenMap,
    any_matching,
    attention_received,
    draw_destinations,
    match,
    merging,
    spread,
)
from diffaccel.runtime.act import Part, PartState, Place
from diffaccel.runtime.lanes import Block, LaneMemory, Lanes
from diffaccel.runtime.token_act import (
    ReduceTokens,
    ReductionState,
    hidden_states_of,
    last_tokens,
    masked,
    with_hidden_states,
)

MergeScore = Literal["similarity", "informativity"]
FRESH, KEPT = 0, 1  # ways to work: tokens are matched anew, or as in an earlier call


@dataclass(frozen=True)
class MergeTokens(ReduceTokens):
    """Merge tokens before the attentions, and copy what comes out to all that were merged.

    Attributes:
        ratio: share of the tokens that are merged into others.
        score: what ranks them; see `TokenReduction`.
        alpha: weight of the attention that a token receives.
        interval: tokens are matched in every `interval`-th call, and go together as before otherwise.
        seed: of the destinations.
        unmatched: whether nothing is compared, to count what calls cost that match as before.
    """

    ratio: float
    score: MergeScore
    alpha: float
    interval: int
    seed: int
    unmatched: bool = False

    @property
    def slots(self) -> int:
        """A matching for each attention, if it is used again."""
        return len(self.attentions) if self.interval > 1 else 0

    def state(self, part: Part) -> MergingState:
        """Of its own kind: it keeps matchings."""
        return MergingState(part, self)

    def variant(self, step: int, total: int | None) -> int:  # noqa: ARG002
        """Whether tokens are matched anew."""
        return KEPT if step % self.interval else FRESH

    def fixed(self, variant: int) -> MergeTokens:
        """The same with tokens matched anew always, or never."""
        return replace(self, interval=1, unmatched=variant == KEPT)

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """Two for each attention: one at its block, whose input is compared, and one at itself."""
        assert isinstance(state, MergingState)
        for slot, name in enumerate(self.attentions):
            block = name.rpartition(".")[0]
            before = _BlockInput(Streams(model.get_submodule(block)))
            yield block, before
            yield name, _Merging(self, state, slot, before, model.get_submodule(name))


class MergingState(ReductionState):
    """Which tokens go together in a call, and what is known of it from earlier ones."""

    def __init__(self, part: Part, act: MergeTokens) -> None:
        super().__init__(part, act)
        self._wrote = self._again = False

    def prepare(self, own: Lanes, kept: LaneMemory, *, compute: bool, inputs: Inputs, **told: Any) -> None:
        """Prepare for a call."""
        super().prepare(own, kept, compute=compute, inputs=inputs, **told)
        self._wrote, self._again = False, self.variant == KEPT

    def commit(self, kept: LaneMemory) -> None:
        """Store new matchings."""
        for block, step in zip(self.blocks, self.steps, strict=True) if self._wrote else ():
            kept.put([block], step)

    def matching(self, slot: int, rows: int, make: Callable[[int, slice], Matching]) -> Matching:
        """The matching of an attention, of an earlier call where that is wanted and known.

        Args:
            slot: of the attention.
            rows: of the attention.
            make: makes one, given the index of the call and some rows of the attention.
        """
        each, start, found = rows // sum(self.sizes), 0, []
        for index, (step, size) in enumerate(zip(self.steps, self.sizes, strict=True)):
            own = slice(start, start + each * size)
            found.append(self._kept(index, slot) or self._store(index, slot, make(step, own)))
            start = own.stop
        return found[0] if len(found) == 1 else Matching(torch.cat([one.place for one in found]), found[0].length)

    def _kept(self, index: int, slot: int) -> Matching | None:
        """What the lanes of a block stored in an earlier call, where it is in force."""
        if slot >= self.act.slots or not self._again:
            return None
        kept: Matching | None = self.blocks[index].entries[slot]
        return kept

    def _store(self, index: int, slot: int, matching: Matching) -> Matching:
        """Keep a matching for later calls, if there is a place for it, in a block that no other call holds."""
        self.variant = FRESH  # whatever was to be, tokens were matched
        if slot < self.act.slots:
            if not self._wrote:
                self.blocks = [Block(block.lanes, list(block.entries)) for block in self.blocks]
                self._wrote = True
            self.blocks[index].entries[slot] = matching
        return matching


class _BlockInput(Place):
    """Takes note of the hidden states that enter a transformer block."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.seen: Any = None

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Keep them until the attention runs."""
        self.seen = self.streams.entering(args, kwargs)
        return args, kwargs

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Forget them."""
        self.seen = None
        return output


class _Merging(Place):
    """Merges what enters an attention, and unmerges what leaves it."""

    def __init__(
        self, act: MergeTokens, state: MergingState, slot: int, before: _BlockInput, attention: torch.nn.Module
    ) -> None:
        self.act, self.state, self.slot, self.before, self.attention = act, state, slot, before, attention
        self._unmerge: tuple[int, TokenMap] | None = None

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The short sequence."""
        x = hidden_states_of(args, kwargs)
        grid, self._unmerge = self.state.grid(x.shape[1], masked(kwargs)), None
        if grid is None:
            return args, kwargs
        matching = self.state.matching(self.slot, x.shape[0], lambda step, rows: self._match(x[rows], grid, step, rows))
        merge, unmerge = merging(matching)
        self._unmerge = matching.length, unmerge
        return with_hidden_states(args, kwargs, last_tokens(x, grid.tokens, merge))

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """All tokens again; those of a prompt stay as they are."""
        if self._unmerge is None:
            return output
        if isinstance(output, tuple):
            return (last_tokens(output[0], *self._unmerge), *output[1:])
        return last_tokens(output, *self._unmerge)

    @property
    def apart(self) -> bool:
        """Where tokens are fewer."""
        return self._unmerge is not None

    def _match(self, x: torch.Tensor, grid: TokenGrid, step: int, rows: slice) -> Matching:
        """Which tokens go together, by what entered the block, ``(rows, tokens, channels)``."""
        act, picture = self.act, x[:, -grid.tokens :]
        if act.unmatched:
            return any_matching(picture, act.ratio)
        compared = self.before.seen[rows, -grid.tokens :]
        drawn = draw_destinations(grid, (act.seed << 40) + (step << 16) + self.slot)
        value = act.alpha * self._received(picture, grid) if act.score == "informativity" else None
        return match(compared, grid, drawn, act.ratio, value)

    def _received(self, x: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
        """Attention that tokens receive from some of them, evenly spaced, ``(rows, tokens)``."""
        query, key = self._heads("q", spread(x, grid)), self._heads("k", x)
        return attention_received(query, key, query.shape[-1] ** -0.5)

    def _heads(self, kind: str, x: torch.Tensor) -> torch.Tensor:
        """A projection, ``(rows, heads, tokens, features)``."""
        heads: int = self.attention.heads  # type: ignore[assignment]
        projected = getattr(self.attention, f"to_{kind}")(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        norm = getattr(self.attention, f"norm_{kind}", None)
        result: torch.Tensor = projected if norm is None else norm(projected)
        return result
