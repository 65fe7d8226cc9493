"""How well a picture follows the lines that it was to follow: F1 of thinned edges within a few pixels."""

import torch
import torch.nn.functional as F

from diffaccel.config.checks import check

STRONG = 0.25  # of an edge image's range: a step of an eighth of the range of brightness
TOLERANCE = 2


def edge_agreement(
    edges: torch.Tensor, lines: torch.Tensor, *, tolerance: int = TOLERANCE, threshold: float = STRONG
) -> torch.Tensor:
    """F1 of the edges of pictures and the lines that they were to follow, (n,), from 0 to 1.

    Both are thinned to one pixel. Precision is the share of edge pixels that have a line within ``tolerance`` pixels,
    recall the share of line pixels that have an edge so near. Pictures without edges agree with images without lines.

    Args:
        edges: edge images of the pictures, ``(n, 1 or 3, height, width)`` in [0, 1], white on black.
        lines: control images of the same shape.
        tolerance: distance in pixels, Euclidean.
        threshold: what is brighter counts as an edge or a line.

    Raises:
        ValueError: for images of different shapes, or a negative tolerance.
    """
    check(edges.shape == lines.shape, f"edges {tuple(edges.shape)} and lines {tuple(lines.shape)} differ in shape")
    check(edges.dim() == 4, f"edge images must be (n, channels, height, width); got {tuple(edges.shape)}")
    check(tolerance >= 0, f"tolerance must be at least 0 pixels, not {tolerance}")
    found, asked = (thinned(image.float().mean(1, keepdim=True) > threshold) for image in (edges, lines))
    precision, recall = _share_near(found, asked, tolerance), _share_near(asked, found, tolerance)
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    both_empty = ~(found.flatten(1).any(1) | asked.flatten(1).any(1))
    return torch.where(both_empty, torch.ones_like(f1), f1)


def thinned(lines: torch.Tensor) -> torch.Tensor:
    """Lines (n, 1, height, width), bool, thinned to about one pixel, connected as before (Zhang and Suen 1984)."""
    lines = lines.clone()
    while True:
        before = lines
        for first in (True, False):
            lines = lines & ~_removable(lines, first)
        if torch.equal(before, lines):
            return lines


def _removable(lines: torch.Tensor, first: bool) -> torch.Tensor:
    """Pixels that one of the two sub-iterations takes away: border pixels that are no end and no bridge."""
    height, width = lines.shape[-2:]
    padded = F.pad(lines, (1, 1, 1, 1))
    places = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))  # clockwise from the north
    around = torch.stack([padded[..., y : y + height, x : x + width] for y, x in places])  # (8, n, 1, height, width)
    neighbours = around.sum(0, dtype=torch.uint8)
    crossings = (~around & around.roll(-1, 0)).sum(0, dtype=torch.uint8)
    north, east, south, west = around[0], around[2], around[4], around[6]
    open_side = ~(east & south & (north | west)) if first else ~(north & west & (east | south))
    return lines & (neighbours >= 2) & (neighbours <= 6) & (crossings == 1) & open_side


def _share_near(points: torch.Tensor, targets: torch.Tensor, tolerance: int) -> torch.Tensor:
    """Share of points (n, 1, height, width) with a target within the tolerance, (n,); 0 where there is no point."""
    offsets = torch.arange(-tolerance, tolerance + 1)
    disc = (offsets[:, None] ** 2 + offsets[None] ** 2 <= tolerance**2).float()[None, None]
    near = F.conv2d(targets.float(), disc.to(targets.device), padding=tolerance) > 0.5
    hits = (points & near).flatten(1).sum(1)
    return hits / points.flatten(1).sum(1).clamp_min(1)
