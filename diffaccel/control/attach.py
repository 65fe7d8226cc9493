"""Puts control blocks on a PixArt-like transformer: hooks add their output to the input of the blocks that follow.

The control image's latents pass the transformer's own patch embedding. After base block i runs control block k, if
there is one: it takes the hidden states, what the control block before gave, and the base block's other inputs, and
gives what is added before base block i + 1 (RelaCtrl, arXiv 2502.14377; PixArt-delta's ControlNet, arXiv 2401.05252).

A call may go through the transformer in parts, as where some rows reuse features and others do not. So the latents of
its control images travel with its rows, among the additional conditions of its timestep, and are taken out there.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

CONTROL = "control"
"""Name of the control images' latents, ``(rows, C, h, w)``, among a transformer's `added_cond_kwargs`."""


class ControlBlocks(Protocol):
    """Control blocks in the order in which they run."""

    @property
    def dim(self) -> int:
        """Channels of the hidden states that they take."""

    @property
    def num_layers(self) -> int:
        """Blocks of the transformer that they are for."""

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
        transformer: PixArtTransformer2DModel, or one with its ``pos_embed``, ``adaln_single`` and
            ``transformer_blocks``, which take ``hidden_states`` first.
        blocks: the control blocks.

    Raises:
        ValueError: the transformer is another than the blocks are for, or has others on it already.
    """
    return Attached(transformer, blocks)


class Attached:
    """Control blocks on a transformer.

    Attributes:
        blocks: the control blocks.
        scale: what the blocks' output is multiplied by; at 0 they do not run.
        left_out: indices of control blocks that do not run.
    """

    def __init__(self, transformer: Any, blocks: ControlBlocks) -> None:
        _require_fit(transformer, blocks)
        self.blocks = blocks
        self.scale = 1.0
        self.left_out: frozenset[int] = frozenset()
        self._transformer, self._embed = transformer, transformer.pos_embed
        self._latents: torch.Tensor | None = None
        self._repeated: tuple[tuple[Any, ...], torch.Tensor] | None = None
        self._control: torch.Tensor | None = None
        begin = transformer.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._hooks = [begin, transformer.adaln_single.register_forward_pre_hook(self._take, with_kwargs=True)]
        for index, position in enumerate(blocks.positions):
            hook = _Before(self, index)
            following = transformer.transformer_blocks[position + 1]
            self._hooks.append(following.register_forward_pre_hook(hook, with_kwargs=True))

    def set_control(self, latents: torch.Tensor | None, scale: float = 1.0) -> None:
        """Say what the next calls follow.

        Args:
            latents: encoded control image as the denoiser's latents are scaled, ``(rows, C, h, w)``; calls may have
                several times as many rows, as with classifier-free guidance. None for calls without control.
            scale: how strongly.
        """
        self._latents, self._repeated, self.scale = latents, None, scale

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

    def _begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give each row of a call the latents of its control image."""
        self._control = None
        if self._latents is None or self.scale == 0:
            return None
        if torch.is_grad_enabled() and getattr(module, "gradient_checkpointing", False):
            raise RuntimeError(
                "gradient checkpointing runs blocks again in the backward pass, where they have no control any more: "
                "call disable_gradient_checkpointing() on the transformer"
            )
        given = _by_name(module, args, kwargs)
        latents = self._latents_for(given["hidden_states"])
        added = given.get("added_cond_kwargs") or {"resolution": None, "aspect_ratio": None}
        return (), {**given, "added_cond_kwargs": {**added, CONTROL: latents}}

    def _latents_for(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Those of all rows of a call: one tensor for calls that are alike, which so have the same inputs."""
        latents = self._latents
        assert latents is not None
        rows, given = len(hidden_states), len(latents)
        if rows % given or latents.shape[1:] != hidden_states.shape[1:]:
            raise ValueError(
                f"control latents {tuple(latents.shape)} do not fit latents {tuple(hidden_states.shape)}: encode a "
                "control image of the picture's size for each row, or one for all"
            )
        version = None if latents.is_inference() else latents._version
        state = (rows, hidden_states.dtype, hidden_states.device, version)
        if version is None or self._repeated is None or self._repeated[0] != state:
            self._repeated = state, latents.to(hidden_states).repeat(rows // given, 1, 1, 1)
        return self._repeated[1]

    def _take(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Embed the control images of the rows that go through the blocks now."""
        given = _by_name(module, args, kwargs)
        added = dict(given.get("added_cond_kwargs") or {})
        latents = added.pop(CONTROL, None)
        self._control = None if latents is None else self._embed(latents)  # (rows, tokens, dim)
        return None if latents is None else ((), {**given, "added_cond_kwargs": added})

    def _added(
        self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._control is None or index in self.left_out:
            return None
        inputs = dict(kwargs)
        hidden_states = args[0] if args else inputs.pop("hidden_states")
        self._control, added = self.blocks.run_block(index, hidden_states, self._control, inputs)
        changed = hidden_states + self.scale * added
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})


def attached_to(transformer: nn.Module) -> Attached | None:
    """The control blocks on a transformer, if there are any."""
    owners = (getattr(hook, "__self__", None) for hook in transformer._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Attached)), None)


def _require_fit(transformer: Any, blocks: ControlBlocks) -> None:
    """Raise ValueError where control blocks cannot go on a transformer."""
    kind, base = type(transformer).__name__, getattr(transformer, "transformer_blocks", None)
    if base is None or not hasattr(transformer, "pos_embed") or not hasattr(transformer, "adaln_single"):
        raise ValueError(
            f"{kind} has no transformer_blocks, pos_embed and adaln_single: control blocks go on PixArt-like "
            "transformers"
        )
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    if blocks.dim != width:
        raise ValueError(
            f"these control blocks are for a transformer of {blocks.dim} channels, not {width}: give the adapter of "
            "this network"
        )
    if blocks.num_layers != len(base):
        raise ValueError(
            f"these control blocks are for a transformer of {blocks.num_layers} blocks, and this {kind} has "
            f"{len(base)}: give the adapter of this network"
        )
    if attached_to(transformer) is not None:
        raise ValueError("this transformer has control blocks on it already: call detach() on their handle first")


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a module is given, by name."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


class _Before:
    """The hook before a base block."""

    def __init__(self, attached: Attached, index: int) -> None:
        self._attached, self._index = attached, index

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._attached._added(self._index, args, kwargs)
