"""Reduce tokens: in some calls self-attentions read fewer tokens of the picture than there are.

Unlike other acts these have nothing to reuse but, where merging is told so, which tokens went together in an earlier
call. A call that *computes* is one whose attentions read all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from diffaccel.networks.inputs import Inputs
from diffaccel.networks.tokens import picture_size, token_grid
from diffaccel.reuse.tokens import TokenGrid, TokenMap
from diffaccel.runtime.act import Act, Part, PartState
from diffaccel.runtime.lanes import LaneMemory, Lanes


@dataclass(frozen=True)
class ReduceTokens(Act):
    """Let self-attentions read fewer tokens.

    Attributes:
        attentions: the self-attentions; each lies directly in a transformer block.
        patch: side of a token in the sample, None where it depends on the depth.
        min_tokens: attentions of a smaller picture are left alone.
        name: of the method, for messages.
    """

    exclusive: ClassVar[bool] = False
    rests: ClassVar[bool] = False
    from_first: ClassVar[bool] = True

    attentions: tuple[str, ...]
    patch: int | None
    min_tokens: int
    name: str

    @property
    def modules(self) -> tuple[str, ...]:
        """The attentions."""
        return self.attentions

    def state(self, part: Part) -> ReductionState:
        """Of its own kind: it finds the tokens of the picture."""
        return ReductionState(part, self)


class ReductionState(PartState):
    """Which tokens of a call belong to the picture.

    Attributes:
        act: the act.
        active: whether attentions are to read fewer tokens in this call; `compute` says whether all of them read all.
        hindered: why an attention read all its tokens nevertheless.
    """

    def __init__(self, part: Part, act: ReduceTokens) -> None:
        super().__init__(part)
        self.act = act
        self.active = False
        self.hindered = ""
        self._size: tuple[int, int] | None = None

    def prepare(self, own: Lanes, kept: LaneMemory, *, compute: bool, inputs: Inputs, **told: Any) -> None:
        """Prepare for a call; it computes until an attention reads fewer tokens."""
        super().prepare(own, kept, compute=compute, inputs=inputs, **told)
        self.active, self.compute = not compute, True
        self.hindered = ""
        self._size = picture_size(inputs)

    def commit(self, kept: LaneMemory) -> None:
        """There is nothing to store."""

    def why_full(self) -> str:
        """Where no attention read fewer tokens, why the first of them did not."""
        return f"{self.act.name} {self.hindered}" if self.active and self.compute else ""

    def grid(self, tokens: int, hindrance: str) -> TokenGrid | None:
        """The grid of tokens that an attention shall read fewer of; None for all of them.

        Args:
            tokens: that it is given.
            hindrance: why it must read all, if it must.
        """
        if not self.active:
            return None
        found = None if self._size is None else token_grid(self._size, tokens, self.act.patch)
        if found is None:
            hindrance = f"found no picture in the {tokens:,} tokens of an attention"
        elif found.tokens < self.act.min_tokens:
            hindrance = (
                f"did nothing, as attention reads {found.tokens:,} tokens: min_tokens is {self.act.min_tokens:,}"
            )
        if hindrance:
            self.hindered = self.hindered or hindrance
            return None
        self.compute = False
        return found


def hidden_states_of(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    """What an attention is given, ``(rows, tokens, channels)``."""
    x: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return x


def with_hidden_states(
    args: tuple[Any, ...], kwargs: dict[str, Any], x: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of an attention with other hidden states."""
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})


def masked(kwargs: dict[str, Any]) -> str:
    """What hinders where an attention is told by a mask which tokens to read."""
    return "" if kwargs.get("attention_mask") is None else "leaves attentions with a mask of tokens alone"


def last_tokens(x: torch.Tensor, tokens: int, function: TokenMap) -> torch.Tensor:
    """A function of the last tokens of ``(rows, tokens, channels)``; those before, a prompt's, stay."""
    before = x.shape[1] - tokens
    return torch.cat([x[:, :before], function(x[:, before:])], dim=1) if before else function(x)
