"""LeMiCa's choice of computed calls (arXiv 2511.00090): the path through a run whose worst segment is the least bad.

Nodes are network calls. An edge from i to j stands for computing i and j and reusing everything between; it weighs what
that alone costs in the final picture. Of all paths with a number of computed calls the lexicographic minimax one is
taken: the largest weight is as small as can be, of those paths the second largest, and so on.
"""

from collections.abc import Mapping

CallPath = tuple[tuple[float, ...], tuple[int, ...]]  # weights of its edges, the largest first; its computed calls


def minimax_steps(weights: Mapping[tuple[int, int], float], total: int) -> dict[int, tuple[int, ...]]:
    """For each number of computed calls the calls to compute, the first of them 0.

    Args:
        weights: of the edge from each call i to each later j <= total; `total` stands for the end of the run.
        total: network calls of the run.
    """
    paths: dict[int, dict[int, CallPath]] = {
        1: {0: ((), (0,))}
    }  # by the number of computed calls, and by the last of them
    for count in range(2, total + 1):
        paths[count] = {
            last: min(_longer(before, last, weights) for end, before in paths[count - 1].items() if end < last)
            for last in range(count - 1, total)
        }
    return {
        count: min((_grown(path, weights[last, total]), path[1]) for last, path in ends.items())[1]
        for count, ends in paths.items()
    }


def _longer(path: CallPath, step: int, weights: Mapping[tuple[int, int], float]) -> CallPath:
    """A path with one more computed call."""
    return _grown(path, weights[path[1][-1], step]), (*path[1], step)


def _grown(path: CallPath, weight: float) -> tuple[float, ...]:
    """Weights of a path with one more edge, the largest first."""
    return tuple(sorted((*path[0], weight), reverse=True))
