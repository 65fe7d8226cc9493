"""Pool tokens before the projections to keys and values of self-attention; queries stay (arXiv 2402.13573)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch

from diffaccel.reuse.tokens import Pooling, RotaryAngles, TokenGrid, pool, pool_rotary, rotate
from diffaccel.runtime.act import PartState, Place
from diffaccel.runtime.token_act import ReduceTokens, ReductionState, hidden_states_of, last_tokens, masked

PROJECTIONS = ("to_k", "to_v")
ROTARY = "image_rotary_emb"  # the angles, as attentions are given them
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")  # what queries and keys go through before they are turned
ROTATING = ("FluxAttnProcessor",)  # processors that turn neighbouring pairs of features behind the norms


@dataclass(frozen=True)
class PoolTokens(ReduceTokens):
    """Pool tokens before the projections to keys and values.

    Attributes:
        side: of the windows, in tokens.
        how: see `reuse.tokens.pool`.
        rotary: whether queries and keys are turned by the positions of their tokens. Keys are pooled before, and turned
            by the pooled positions.
    """

    side: int
    how: Pooling
    rotary: bool

    def places(self, state: PartState, model: torch.nn.Module) -> Iterator[tuple[str, Place]]:
        """For each attention one at itself, where tokens are known, at its two projections, and at what is rotated."""
        for name in self.attentions:
            pooling = _Pooling(self, cast(ReductionState, state), model.get_submodule(name))
            yield name, pooling
            for projection in PROJECTIONS:
                yield f"{name}.{projection}", _Pooled(self, pooling)
            if self.rotary:
                there = dict(pooling.attention.named_children())
                for norm in (norm for norm in NORMS if norm in there):
                    yield f"{name}.{norm}", _Rotated(pooling, keys=norm.endswith("k"), prompt="added" in norm)


class _Pooling(Place):
    """Finds the picture's tokens among those of an attention, and takes its rotation over.

    Attributes:
        grid: of the tokens, while the attention runs.
        rotary: angles of all tokens, those of a prompt first, and of all pooled tokens.
    """

    def __init__(self, act: PoolTokens, state: ReductionState, attention: torch.nn.Module) -> None:
        self.act, self.state, self.attention = act, state, attention
        self._hooked = [getattr(attention, name) for name in PROJECTIONS]
        self.grid: TokenGrid | None = None
        self.rotary: tuple[RotaryAngles, RotaryAngles] | None = None

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Find them; the attention is told of no angles."""
        self.grid = self.state.grid(hidden_states_of(args, kwargs).shape[1], self._hindrance(kwargs))
        rotary = kwargs.get(ROTARY)
        if self.grid is None or rotary is None:
            return args, kwargs
        first = rotary[0].shape[0] - self.grid.tokens
        picture = pool_rotary((rotary[0][first:], rotary[1][first:]), self.grid, self.act.side, self.act.how)
        pooled = [torch.cat([whole[:first], part]) for whole, part in zip(rotary, picture, strict=True)]
        self.rotary = rotary, (pooled[0], pooled[1])
        return args, {**kwargs, ROTARY: None}

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """The output as it is."""
        self.grid = self.rotary = None
        return output

    @property
    def apart(self) -> bool:
        """Where keys are fewer."""
        return self.grid is not None

    def _hindrance(self, kwargs: dict[str, Any]) -> str:
        if getattr(self.attention, "fused_projections", False):
            return "pools no fused projections: call unfuse_qkv_projections()"
        if any(map(self._is_added_to, PROJECTIONS, self._hooked)):
            return "pools no keys and values to which an adapter adds that came since: detach() and accelerate() again"
        processor = type(getattr(self.attention, "processor", None)).__name__
        if self.act.rotary and processor not in ROTATING:
            return f"does not know how {processor} turns queries and keys"
        if processor.startswith("PAG"):
            return f"leaves attentions with {processor} alone, which passes values on in place of attention"
        return masked(kwargs)

    def _is_added_to(self, name: str, hooked: torch.nn.Module) -> bool:
        """Whether an adapter that lies around a hooked projection now adds what it makes of all tokens."""
        adapter = getattr(self.attention, name)
        unmerged = getattr(adapter, "active_adapters", ()) and not getattr(adapter, "merged", False)
        return adapter is not hooked and bool(unmerged) and not getattr(adapter, "disable_adapters", False)


class _Rotated(Place):
    """Turns queries or keys where they are normed, as the attention does behind that."""

    def __init__(self, pooling: _Pooling, *, keys: bool, prompt: bool) -> None:
        self.pooling, self.keys, self.prompt = pooling, keys, prompt

    def leave(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ARG002
        """Turn ``(rows, tokens, heads, features)``; a prompt's tokens are the first, a picture's the last."""
        if self.pooling.rotary is None:
            return output
        cos, sin = self.pooling.rotary[self.keys]
        own = slice(output.shape[1]) if self.prompt else slice(cos.shape[0] - output.shape[1], None)
        return rotate(output, (cos[own], sin[own]))


class _Pooled(Place):
    """Gives a projection fewer tokens."""

    def __init__(self, act: PoolTokens, pooling: _Pooling) -> None:
        self.act, self.pooling = act, pooling

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The pooled tokens; a mean of tokens is projected to the mean of their projections."""
        grid = self.pooling.grid
        if grid is None:
            return args, kwargs
        pooled = last_tokens(args[0], grid.tokens, lambda x: pool(x, grid, self.act.side, self.act.how))
        return (pooled, *args[1:]), kwargs
