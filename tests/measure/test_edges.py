"""Agreement of edges with lines against shapes whose answer is known, and thinning against what it promises."""

import pytest
import torch

from diffaccel.measure import edge_agreement, thinned

SIDE = 64


def ring(radius: float, width: float = 3.0, x: float = 32.0) -> torch.Tensor:
    """A white ring on black, ``(1, 3, 64, 64)``."""
    place = torch.arange(SIDE, dtype=torch.float32)
    distance = torch.hypot(place[None] - x, place[:, None] - 32.0)
    return ((distance - radius).abs() <= width / 2).float().expand(1, 3, -1, -1)


EIGHT = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
FOUR = [(i, j) for i, j in EIGHT if i == 0 or j == 0]


def pieces(lines: torch.Tensor, neighbours: list[tuple[int, int]]) -> int:
    """Number of connected pieces of a (1, 1, h, w) mask, by flooding from one pixel after another."""
    left = {(int(y), int(x)) for _, _, y, x in lines.nonzero()}
    count = 0
    while left:
        count += 1
        frontier = [left.pop()]
        while frontier:
            y, x = frontier.pop()
            near = {(y + i, x + j) for i, j in neighbours} & left
            left -= near
            frontier += near
    return count


def test_a_thick_ring_thins_to_one_closed_line() -> None:
    thick = ring(20, 6)[:, :1] > 0
    line = thinned(thick)
    assert (line & ~thick).sum() == 0
    circle = 4 * 2**0.5 * 20  # pixels of a digital circle whose steps go to any of eight neighbours
    assert int(line.sum()) == pytest.approx(circle, rel=0.15)
    assert pieces(line, EIGHT) == 1
    assert pieces(~line, FOUR) == 2, "inside and outside are no longer apart"
    assert torch.equal(thinned(line), line)


def test_thinning_of_a_batch_is_that_of_each_image() -> None:
    masks = torch.rand((4, 1, 24, 24), generator=torch.Generator().manual_seed(0)) > 0.4
    assert torch.equal(thinned(masks), torch.cat([thinned(mask[None]) for mask in masks]))


def test_equal_lines_agree_whatever_their_width() -> None:
    assert edge_agreement(ring(20, 3), ring(20, 3)).tolist() == [1.0]
    assert float(edge_agreement(ring(20, 3), ring(20, 7))) == 1.0


@pytest.mark.parametrize(("shift", "least", "most"), [(2, 0.99, 1.0), (5, 0.0, 0.7), (28, 0.0, 0.3)])
def test_lines_farther_than_the_tolerance_count_less(shift: int, least: float, most: float) -> None:
    assert least <= float(edge_agreement(ring(20, x=32.0 - shift), ring(20))) <= most


def test_the_score_is_f1_of_precision_and_recall() -> None:
    lines = torch.zeros(1, 1, SIDE, SIDE)
    lines[..., 16, 10:50] = 1
    edges = lines.clone()
    edges[..., 48, 10:50] = 1  # all 40 that were asked for, and 40 more: precision 1/2, recall 1
    assert float(edge_agreement(edges, lines)) == pytest.approx(2 / 3)
    assert float(edge_agreement(lines, edges)) == pytest.approx(2 / 3)


def test_nothing_agrees_with_nothing_alone() -> None:
    nothing = torch.zeros(1, 3, SIDE, SIDE)
    assert edge_agreement(nothing, nothing).tolist() == [1.0]
    assert edge_agreement(nothing, ring(20)).tolist() == [0.0]
    assert edge_agreement(ring(20), nothing).tolist() == [0.0]


def test_faint_edges_are_none() -> None:
    assert float(edge_agreement(ring(20) * 0.2, ring(20))) == 0.0
    assert float(edge_agreement(ring(20) * 0.2, ring(20), threshold=0.1)) == 1.0


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        edge_agreement(ring(20), ring(20)[..., 1:])
    with pytest.raises(ValueError, match="must be \\(n, channels"):
        edge_agreement(ring(20)[0], ring(20)[0])
    with pytest.raises(ValueError, match="not -1"):
        edge_agreement(ring(20), ring(20), tolerance=-1)
