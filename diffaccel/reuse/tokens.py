"""Fewer tokens in attention, as pure functions: tokens merged and unmerged again, and keys and values pooled.

*Merging* is Token Merging for Stable Diffusion (arXiv 2303.17604): in every window of 2 x 2 tokens one is drawn as a
destination; each other token is compared with all destinations, and the r that lose least go into the one most like
them, by the mean. A matching is one map, from each token to its place in the short sequence, so that to merge is a mean
over places and to unmerge a look-up. *Pooling* is ToDo (arXiv 2402.13573): queries stay, keys and values become fewer.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

Pooling = Literal["mean", "nearest"]
TokenMap = Callable[[torch.Tensor], torch.Tensor]
WINDOW = 2  # tokens along each side of a window with one destination
QUERIES = 16, 4  # rows of a picture, and tokens in each, from which the attention that tokens receive is told


class TokenGrid(NamedTuple):
    """Tokens of a picture, row by row."""

    height: int
    width: int

    @property
    def tokens(self) -> int:
        """How many."""
        return self.height * self.width


class Matching(NamedTuple):
    """Where each token goes.

    Attributes:
        place: ``(rows, tokens)``, in the short sequence.
        length: of the short sequence.
    """

    place: torch.Tensor
    length: int


def draw_destinations(grid: TokenGrid, seed: int) -> torch.Tensor:
    """Which token of each whole window is a destination, ``(height // 2, width // 2)`` of 0..3, row by row."""
    size = grid.height // WINDOW, grid.width // WINDOW
    return torch.randint(WINDOW * WINDOW, size, generator=torch.Generator().manual_seed(seed))


def match(
    x: torch.Tensor, grid: TokenGrid, drawn: torch.Tensor, ratio: float, value: torch.Tensor | None = None
) -> Matching:
    """Which tokens go together.

    Args:
        x: what is compared, ``(rows, tokens, channels)``, by cosine.
        grid: of the tokens.
        drawn: destinations, from `draw_destinations`.
        ratio: share of the tokens that are merged into others; at most all that are no destinations are, and none of
            a single row of tokens.
        value: subtracted from how alike a token and its destination are before tokens are ranked, ``(rows, tokens)``:
            what matters stays. None ranks by likeness alone.
    """
    rows, tokens = x.shape[:2]
    if not drawn.numel():  # a single row or column of tokens has no window
        return Matching(torch.arange(tokens, device=x.device).expand(rows, -1), tokens)
    source, destination = _parted(grid, drawn.to(x.device))
    unit = F.normalize(x, dim=-1)
    likeness, nearest = (unit[:, source] @ unit[:, destination].transpose(1, 2)).max(-1)  # (rows, sources)
    if value is not None:
        likeness = likeness - value[:, source]
    order = likeness.argsort(dim=-1, descending=True)
    merged = min(int(tokens * ratio), len(source))
    gone, kept = order[:, :merged], order[:, merged:]
    place = torch.empty(rows, tokens, dtype=torch.long, device=x.device)
    places = torch.arange(tokens - merged, device=x.device).expand(rows, -1)
    unmerged = kept.shape[1]
    place.scatter_(1, source[kept], places[:, :unmerged])
    place.scatter_(1, destination.expand(rows, -1), places[:, unmerged:])
    place.scatter_(1, source[gone], unmerged + nearest.gather(1, gone))
    return Matching(place, tokens - merged)


def _parted(grid: TokenGrid, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of sources and of destinations, ``(sources,)`` and ``(destinations,)``, each in rising order."""
    down, right = (torch.arange(size, device=drawn.device) * WINDOW for size in drawn.shape)
    position = (down[:, None] + drawn // WINDOW) * grid.width + right + drawn % WINDOW
    is_source = torch.ones(grid.tokens, device=drawn.device).scatter_(0, position.flatten(), 0.0)
    order = is_source.argsort(stable=True)  # destinations first; sorted, as a mask's size is not known on the host
    return order[position.numel() :], order[: position.numel()]


def any_matching(x: torch.Tensor, ratio: float) -> Matching:
    """A matching of the right form that compares no tokens ``(rows, tokens, channels)``, to count costs with."""
    rows, tokens = x.shape[:2]
    merged = min(int(tokens * ratio), tokens - tokens // WINDOW**2)
    return Matching(torch.zeros(rows, tokens, dtype=torch.long, device=x.device), tokens - merged)


def merging(matching: Matching) -> tuple[TokenMap, TokenMap]:
    """Functions that merge ``(rows, tokens, channels)`` to ``(rows, length, channels)``, and back."""
    place, length = matching
    rows, tokens = place.shape
    flat = (place + torch.arange(rows, device=place.device)[:, None] * length).flatten()

    def merge(x: torch.Tensor) -> torch.Tensor:
        index = flat[:, None].expand(-1, x.shape[-1])
        means = x.new_zeros(rows * length, x.shape[-1])
        means = means.scatter_reduce(0, index, x.reshape(rows * tokens, -1), "mean", include_self=False)
        return means.view(rows, length, -1)

    def unmerge(x: torch.Tensor) -> torch.Tensor:
        long: torch.Tensor = x.reshape(rows * length, -1).index_select(0, flat)
        return long.view(rows, tokens, -1)

    return merge, unmerge


def spread(x: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """Some tokens, evenly spaced over the whole picture, of ``(rows, tokens, channels)``."""
    down, right = (max(1, size // count) for size, count in zip(grid, QUERIES, strict=True))
    some: torch.Tensor = x.reshape(len(x), *grid, -1)[:, ::down, ::right].flatten(1, 2)
    return some


def attention_received(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention that each key receives, the mean over queries and heads, times the keys: 1 is as much as any.

    Args:
        query: ``(rows, heads, queries, features)``, those of some tokens.
        key: ``(rows, heads, tokens, features)``.
        scale: of their products.

    Returns:
        ``(rows, tokens)``.
    """
    weights = (query.float() @ key.float().transpose(-1, -2) * scale).softmax(-1)
    return weights.mean((1, 2)) * key.shape[2]


def pool(x: torch.Tensor, grid: TokenGrid, side: int, how: Pooling) -> torch.Tensor:
    """One token for each window of ``side`` x ``side``, ``(rows, tokens, channels)`` to fewer tokens.

    Args:
        x: the tokens.
        grid: of them.
        side: of a window, in tokens.
        how: their mean, in which those at the far edges may be smaller; or the middle one of each whole window, and of
            a grid that is narrower than one.
    """
    picture = x.reshape(len(x), grid.height, grid.width, -1)
    if how == "nearest":
        down, right = (min(side, size) // 2 for size in grid)  # a grid narrower than a window is one window
        return picture[:, down::side, right::side].flatten(1, 2)
    pooled = F.avg_pool2d(picture.permute(0, 3, 1, 2), side, ceil_mode=True)  # (rows, channels, height, width)
    tokens: torch.Tensor = pooled.permute(0, 2, 3, 1).flatten(1, 2)
    return tokens


RotaryAngles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the angles by which neighbouring pairs of features are turned, ``(tokens, features)`` each."""


def pool_rotary(rotary: RotaryAngles, grid: TokenGrid, side: int, how: Pooling) -> RotaryAngles:
    """The angles of pooled tokens: those of the mean position of each window, or of its middle token.

    A mean of turned vectors points to the mean angle where they lie within half a turn of each other, as neighbours do:
    of wide windows the two tokens next to the middle are taken, which is where their mean position is.
    """
    if how == "nearest":
        cos, sin = (pool(x[None], grid, side, how)[0] for x in rotary)
        return cos, sin
    down, right = (_middles(size, side, rotary[0].device) for size in grid)
    pictures = (x.reshape(*grid, -1) for x in rotary)
    cos, sin = (sum(x[y][:, z] for y in down for z in right).flatten(0, 1) for x in pictures)  # type: ignore[union-attr]
    length = (cos.square() + sin.square()).sqrt()
    return cos / length, sin / length


def _middles(size: int, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the last token before the middle of each window along a side of a grid, and of the first behind it."""
    first = torch.arange(0, size, side, device=device)
    length = (size - first).clamp(max=side)  # of those at the far edge it may be less
    return first + (length - 1) // 2, first + length // 2


def rotate(x: torch.Tensor, rotary: RotaryAngles) -> torch.Tensor:
    """Turn neighbouring pairs of features of ``(rows, tokens, heads, features)``."""
    cos, sin = (part[:, None].to(x.device) for part in rotary)  # (tokens, 1, features)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)
