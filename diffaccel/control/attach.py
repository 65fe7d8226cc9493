"""Puts control blocks on a PixArt-like transformer: hooks add their output to the input of the blocks that follow.

The control image's latents pass the transformer's own patch embedding. After base block i runs control block k, if
there is one: it takes the hidden states, what the control block before gave, and the base block's other inputs, and
gives what is added before base block i + 1 (RelaCtrl, arXiv 2502.14377; PixArt-delta's ControlNet, arXiv 2401.05252).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn


class ControlBlocks(Protocol):
    """Control blocks in the order in which they run."""

    @property
    def dim(self) -> int:
        """Channels of the hidden states that they take."""

    @property
    def positions(self) -> Sequence[int]:
        """The base block after which each control block runs, rising."""

    def run_block(
        self, index: int, hidden_states: torch.Tensor, control: torch.Tensor, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run control block ``index``.

        Args:
            index: of the control block.
            hidden_states: of the base network, ``(rows, tokens, dim)``.
            control: what the block before gave; at first the embedded control image, ``(rows, tokens, dim)``.
            inputs: the other inputs of the base block, by name.

        Returns:
            The control for the next block, and what is added to the hidden states, of the same shape each.
        """


def attach(transformer: Any, blocks: ControlBlocks) -> "Attached":
    """Put control blocks on a transformer; without a control image it computes as before.

    Args:
        transformer: PixArtTransformer2DModel, or one with its ``pos_embed`` and ``transformer_blocks``, which take
            ``hidden_states`` first.
        blocks: the control blocks.

    Raises:
        ValueError: the transformer is another than the blocks are for, or has others on it already.
    """
    return Attached(transformer, blocks)


class Attached:
    """Control blocks on a transformer.

    Attributes:
        scale: what the blocks' output is multiplied by; at 0 they do not run.
        left_out: indices of control blocks that do not run.
    """

    def __init__(self, transformer: Any, blocks: ControlBlocks) -> None:
        base = getattr(transformer, "transformer_blocks", None)
        if base is None or not hasattr(transformer, "pos_embed"):
            raise ValueError(
                f"{type(transformer).__name__} has no transformer_blocks and pos_embed: control blocks go on "
                "PixArt-like transformers"
            )
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        if blocks.dim != width:
            raise ValueError(
                f"these control blocks are for a transformer of {blocks.dim} channels, not {width}: give the adapter "
                "of this network"
            )
        if blocks.positions[-1] + 1 >= len(base):
            raise ValueError(
                f"a control block after base block {blocks.positions[-1]} needs {blocks.positions[-1] + 2} base "
                f"blocks; this {type(transformer).__name__} has {len(base)}: give the adapter of this network"
            )
        if any(_is_ours(hook) for hook in transformer._forward_pre_hooks.values()):
            raise ValueError("this transformer has control blocks on it already: call detach() on their handle first")
        self.scale = 1.0
        self._transformer = transformer
        self.left_out: frozenset[int] = frozenset()
        self._embed: Any = transformer.pos_embed
        self._blocks = blocks
        self._latents: torch.Tensor | None = None
        self._control: torch.Tensor | None = None
        self._hooks = [transformer.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for index, position in enumerate(blocks.positions):
            hook = _Before(self, index)
            self._hooks.append(base[position + 1].register_forward_pre_hook(hook, with_kwargs=True))

    def set_control(self, latents: torch.Tensor | None, scale: float = 1.0) -> None:
        """Say what the next calls follow.

        Args:
            latents: encoded control image as the denoiser's latents are scaled, ``(rows, C, h, w)``; calls may have
                several times as many rows, as with classifier-free guidance. None for calls without control.
            scale: how strongly.
        """
        self._latents, self.scale = latents, scale

    def require_on(self, transformer: Any) -> None:
        """Raise RuntimeError where they work on another transformer, or on none since `detach`."""
        if not self._hooks or getattr(transformer, "_orig_mod", transformer) is not self._transformer:
            raise RuntimeError(
                f"these control blocks are not on this {type(transformer).__name__}, which was replaced, or they were "
                "taken off through a copy of the pipeline: load the adapter again"
            )

    def detach(self) -> None:
        """Take the control blocks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Embed the control image for the rows of this call."""
        self._control = None
        if self._latents is None or self.scale == 0:
            return
        hidden_states = args[0] if args else kwargs["hidden_states"]
        rows, given = len(hidden_states), len(self._latents)
        if rows % given or self._latents.shape[1:] != hidden_states.shape[1:]:
            raise ValueError(
                f"control latents {tuple(self._latents.shape)} do not fit latents {tuple(hidden_states.shape)}: "
                "encode a control image of the picture's size for each row, or one for all"
            )
        repeated = self._latents.to(hidden_states).repeat(rows // given, 1, 1, 1)
        self._control = self._embed(repeated)  # (rows, tokens, dim)

    def _added(
        self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._control is None or index in self.left_out:
            return None
        inputs = dict(kwargs)
        hidden_states = args[0] if args else inputs.pop("hidden_states")
        self._control, added = self._blocks.run_block(index, hidden_states, self._control, inputs)
        changed = hidden_states + self.scale * added
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})


class _Before:
    """The hook before a base block."""

    def __init__(self, attached: Attached, index: int) -> None:
        self._attached, self._index = attached, index

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._attached._added(self._index, args, kwargs)


def _is_ours(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), Attached)
