"""Pool tokens before the projections to keys and values of self-attention; queries stay (arXiv 2402.13573)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.reuse.tokens import Pooling, TokenGrid, pool
from diffaccel.runtime.act import PartState, Place
from diffaccel.runtime.token_act import ReduceTokens, ReductionState, hidden_states_of, last_tokens, masked


@dataclass(frozen=True)
class PoolTokens(ReduceTokens):
    """Pool tokens before the projections to keys and values.

    Attributes:
        side: of the windows, in tokens.
        how: see `reuse.tokens.pool`.
    """

    side: int
    how: Pooling

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """Three for each attention: at itself, where the tokens are known, and at its two projections."""
        assert isinstance(state, ReductionState)
        for name in self.attentions:
            around = _Pooling(state, model.get_submodule(name))
            yield name, around
            for projection in ("to_k", "to_v"):
                yield f"{name}.{projection}", _Pooled(self, around)


class _Pooling(Place):
    """Finds the picture's tokens among those of an attention, for its projections.

    Attributes:
        grid: of the tokens, while the attention runs.
    """

    def __init__(self, state: ReductionState, attention: torch.nn.Module) -> None:
        self.state, self.attention = state, attention
        self.grid: TokenGrid | None = None

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Find them."""
        fused = getattr(self.attention, "fused_projections", False)
        hindrance = "pools no fused projections: call unfuse_qkv_projections()" if fused else masked(kwargs)
        self.grid = self.state.grid(hidden_states_of(args, kwargs).shape[1], hindrance)
        return args, kwargs

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """The output as it is."""
        self.grid = None
        return output


class _Pooled(Place):
    """Gives a projection fewer tokens."""

    def __init__(self, act: PoolTokens, around: _Pooling) -> None:
        self.act, self.around = act, around

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The pooled tokens; a mean of tokens is projected to the mean of their projections."""
        grid = self.around.grid
        if grid is None:
            return args, kwargs
        pooled = last_tokens(args[0], grid.tokens, lambda x: pool(x, grid, self.act.side, self.act.how))
        return (pooled, *args[1:]), kwargs
