"""RelaCtrl (arXiv 2502.14377): light control blocks where they matter, each a two-dimensional shuffle mixer.

A copied transformer block is replaced by a mixer (the paper's TDSM, section 3.3): channels are shuffled into groups, in
each group tokens and channels are flattened together, shuffled, cut into four segments, attended to within each, and
put back. More relevant places get fewer, wider groups. The paper's implementation draws the permutations anew in every
call; here they are drawn once from a seed, so that equal inputs give equal pictures.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import nn

HEADS = SEGMENTS = 4
GROUPS = (2, 4, 6)  # of the most relevant third of the control blocks, the next, and the rest
PEAK = 0.18  # of the depth: the mean of blocks 0 and 2-9 of 28, most of those that the paper takes in PixArt-alpha


def channel_groups(dim: int, groups: int) -> tuple[int, ...]:
    """Widths of the groups of ``dim`` channels, as equal as multiples of the attention heads can be.

    Raises:
        ValueError: there are too few channels, or they do not divide by the heads.
    """
    units, rest = divmod(dim, HEADS)
    if rest or units < groups or groups < 1:
        raise ValueError(f"{dim} channels cannot be cut into {groups} groups of multiples of {HEADS}")
    return tuple(HEADS * (units // groups + (i < units % groups)) for i in range(groups))


def default_relevance(layers: int) -> tuple[float, ...]:
    """Relevance of a control block after each base block where none was measured: shallow to middle ones lead."""
    return tuple(1 - abs(i / max(1, layers - 1) - PEAK) for i in range(layers - 1))


def placed_blocks(relevance: Sequence[float], blocks: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where control blocks go and how many groups each has: the most relevant places, the more relevant the wider.

    Args:
        relevance: of a control block after each base block but the last.
        blocks: how many control blocks.

    Returns:
        Base blocks after which they run, rising, and their numbers of groups.

    Raises:
        ValueError: there are fewer places than blocks, or a relevance is no finite number.
    """
    if not 1 <= blocks <= len(relevance):
        raise ValueError(f"blocks must be from 1 to {len(relevance)}, the places there are, not {blocks}")
    if not all(map(isfinite, relevance)):
        raise ValueError(f"relevance must be finite numbers, not {list(relevance)}: measure it again")
    ranked = sorted(range(len(relevance)), key=lambda i: (-relevance[i], i))[:blocks]
    third = max(1, blocks // 3)
    groups = {place: GROUPS[min(rank // third, 2)] for rank, place in enumerate(ranked)}
    return tuple(sorted(groups)), tuple(groups[place] for place in sorted(groups))


class ShuffleAttention(nn.Module):
    """Attention within four segments of the shuffled elements of one group of channels.

    Args:
        dim: channels of the group.
        seed: of the permutation.
    """

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        self.attn = Attention(dim, heads=HEADS, dim_head=dim // HEADS, bias=True)
        self._seed = seed
        self._known: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def permutation(self, elements: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The order of the elements and its inverse, ``(elements,)`` each."""
        if (elements, device) not in self._known:
            order = torch.randperm(elements, generator=torch.Generator().manual_seed(self._seed))
            self._known[elements, device] = (order.to(device), order.argsort().to(device))
        return self._known[elements, device]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(rows, tokens, dim)`` to the same. Raises `ValueError` where the tokens do not divide into segments."""
        rows, tokens, dim = x.shape
        if tokens % SEGMENTS:
            raise ValueError(f"{tokens} tokens cannot be cut into {SEGMENTS} segments: use another picture size")
        order, inverse = self.permutation(tokens * dim, x.device)
        shuffled = x.reshape(rows, -1)[:, order]
        segments = shuffled.view(rows * SEGMENTS, tokens // SEGMENTS, dim)
        attended: torch.Tensor = self.attn(segments)
        return attended.reshape(rows, -1)[:, inverse].view(rows, tokens, dim)


class ShuffleMixer(nn.Module):
    """Two-dimensional shuffle mixer with the adaptive layer norm of PixArt: shift, scale and gate from the timestep.

    Args:
        dim: channels.
        groups: of channels.
        seed: of the permutations.
    """

    channels: torch.Tensor
    places: torch.Tensor

    def __init__(self, dim: int, groups: int, seed: int) -> None:
        super().__init__()
        self._widths = channel_groups(dim, groups)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.scale_shift_table = nn.Parameter(torch.randn(3, dim) / dim**0.5)
        order = torch.randperm(dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("channels", order, persistent=False)
        self.register_buffer("places", order.argsort(), persistent=False)
        self.attentions = nn.ModuleList(
            ShuffleAttention(width, seed + 1 + group) for group, width in enumerate(self._widths)
        )

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Mix ``(rows, tokens, dim)`` under the six modulations of a timestep, ``(rows, 6 dim)``."""
        modulation = timestep.view(len(x), 6, -1)[:, :3] + self.scale_shift_table
        shift, scale, gate = modulation.chunk(3, dim=1)  # (rows, 1, dim)
        shuffled = (self.norm(x) * (1 + scale) + shift)[..., self.channels]
        parts = shuffled.split(self._widths, dim=-1)
        mixed = torch.cat([attention(part) for attention, part in zip(self.attentions, parts, strict=True)], dim=-1)
        return x + gate * mixed[..., self.places]


class ControlBlock(nn.Module):
    """One control block: a projection that starts at zero, a mixer, and a projection that starts at zero.

    The first projects the control image, the others the base network's hidden states.
    """

    def __init__(self, dim: int, groups: int, first: bool, seed: int) -> None:
        super().__init__()
        self._first = first
        self.before, self.mixer, self.after = nn.Linear(dim, dim), ShuffleMixer(dim, groups, seed), nn.Linear(dim, dim)
        for layer in (self.before, self.after):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, hidden_states: torch.Tensor, control: torch.Tensor, timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The control for the next block, and what is added to the hidden states, ``(rows, tokens, dim)`` each."""
        projected, kept = (control, hidden_states) if self._first else (hidden_states, control)
        control = self.mixer(kept + self.before(projected), timestep)
        return control, self.after(control)


class RelaCtrlAdapter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Control blocks for one PixArt-like transformer; put them on it with `diffaccel.control.attach`.

    Args:
        dim: channels of the transformer.
        num_layers: its blocks.
        positions: base blocks after which a control block runs, rising.
        groups: of channels of each control block.
        seed: of the permutations.

    Raises:
        ValueError: positions and groups do not fit each other or the transformer.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, dim: int, num_layers: int, positions: Sequence[int], groups: Sequence[int], seed: int = 0
    ) -> None:
        super().__init__()
        if len(positions) != len(groups) or not positions:
            raise ValueError(f"{len(positions)} positions need as many groups, not {len(groups)}")
        if list(positions) != sorted(set(positions)) or positions[0] < 0 or positions[-1] > num_layers - 2:
            raise ValueError(f"positions must rise, from 0 to {num_layers - 2} at most, not {list(positions)}")
        self.dim, self.num_layers, self.positions = dim, num_layers, tuple(positions)
        self.blocks = nn.ModuleList(
            ControlBlock(dim, count, place == 0, seed + 100 * place) for place, count in enumerate(groups)
        )

    @classmethod
    def from_transformer(
        cls, transformer: Any, relevance: Sequence[float] | None = None, blocks: int | None = None, seed: int = 0
    ) -> Self:
        """New control blocks for a transformer, which change nothing before they are trained.

        Args:
            transformer: a PixArtTransformer2DModel.
            relevance: of a control block after each of its blocks but the last; None for `default_relevance`.
            blocks: how many control blocks; None for two in five of the transformer's, as in the paper.
            seed: of the permutations.

        Raises:
            ValueError: relevance is of another network, or there are fewer places than blocks.
        """
        layers = len(transformer.transformer_blocks)
        scores = default_relevance(layers) if relevance is None else tuple(relevance)
        if len(scores) != layers - 1:
            raise ValueError(
                f"relevance has {len(scores)} scores; this transformer of {layers} blocks needs {layers - 1}: "
                "measure it on this network"
            )
        count = max(1, round(0.4 * layers)) if blocks is None else blocks
        positions, groups = placed_blocks(scores, count)
        config = transformer.config
        dim = config.num_attention_heads * config.attention_head_dim
        made: Self = cls(dim=dim, num_layers=layers, positions=positions, groups=groups, seed=seed)
        return made

    def run_block(
        self, index: int, hidden_states: torch.Tensor, control: torch.Tensor, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one control block; see `diffaccel.control.attach.ControlBlocks`."""
        added: tuple[torch.Tensor, torch.Tensor] = self.blocks[index](hidden_states, control, inputs["timestep"])
        return added
