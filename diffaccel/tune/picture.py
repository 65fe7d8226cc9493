"""A recipe as a picture: network calls across, depth down, each cell computed, replayed within, or replayed."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from diffaccel.methods.recipe import BLOCKS, BRANCH, OUTPUT, UNIT, UNITS, Recipe, Reuse

COMPUTED, WITHIN, REPLAYED = "█", "▒", "·"
WORDS = {COMPUTED: "computed", WITHIN: "attentions and feed-forward networks replayed", REPLAYED: "replayed"}
COLOURS = {COMPUTED: "--computed, #2563eb", WITHIN: "--within, #93c5fd", REPLAYED: "--replayed, #e5e7eb"}
_CELL, _LEFT, _TOP = 18, 150, 24


@dataclass(frozen=True)
class PictureRow:
    """A portion of the network: its name, and for each call one of `COMPUTED`, `WITHIN`, `REPLAYED`."""

    name: str
    cells: tuple[str, ...]


def rows_of(recipe: Recipe) -> list[PictureRow]:
    """Portions of the network from the deepest up, or transformer blocks from the last down to the first."""
    reused = [{reuse.what for reuse in recipe.reuses if reuse.call == call} for call in range(recipe.total)]
    depths = sorted(int(what.split()[1]) for what in recipe.parts if what.startswith(BRANCH))
    if depths or not recipe.parts:
        edges = [*(f"{BRANCH} {depth}" for depth in reversed(depths)), OUTPUT]
        rows = []
        for index, edge in enumerate(edges):
            name = _between(edges[index - 1] if index else None, edge)
            rows.append(PictureRow(name, tuple(REPLAYED if what & set(edges[index:]) else COMPUTED for what in reused)))
        return rows
    inner = [
        PictureRow(f"{BLOCKS} {first}-{last}", tuple(_cell(what, first) for what in reused))
        for first, last in reversed(_pieces(recipe.parts))
    ]
    return [*inner, PictureRow("rest", tuple(REPLAYED if OUTPUT in what else COMPUTED for what in reused))]


def _pieces(parts: Sequence[str]) -> list[tuple[int, int]]:
    """First and last blocks of the longest runs of blocks that every range has in it, or not, as a whole."""
    numbers = [Reuse(1, part).target[1] for part in parts]
    ranges = [(own[0], own[-1]) for own in numbers]
    edges = sorted({edge for first, last in ranges for edge in (first, last + 1)})
    return [(a, b - 1) for a, b in pairwise(edges) if any(first <= a <= last for first, last in ranges)]


def _cell(reused: set[str], block: int) -> str:
    """What a call does with a block."""
    targets = [Reuse(1, what).target for what in reused]
    kinds = {kind for kind, numbers in targets if not numbers or numbers[0] <= block <= numbers[-1]}
    if kinds & {OUTPUT, BLOCKS}:
        return REPLAYED
    return WITHIN if kinds & {UNITS, UNIT} else COMPUTED


def _between(deeper: str | None, edge: str) -> str:
    """Name of the portion between two branches, or between a branch and an end of the network."""
    if deeper is None:
        return "network" if edge == OUTPUT else f"below {edge}"
    return f"above {deeper}" if edge == OUTPUT else f"{deeper} to {edge.split()[1]}"


def to_text(recipe: Recipe) -> str:
    """For a terminal: one line per portion of the network."""
    rows = rows_of(recipe)
    width = max(len(row.name) for row in rows)
    numbers = "".join(str(call % 10) for call in range(recipe.total))
    lines = [f"{row.name:>{width}} {''.join(row.cells)}" for row in rows]
    shown = {cell for row in rows for cell in row.cells} | {COMPUTED, REPLAYED}
    legend = "  ".join(f"{cell} {word}" for cell, word in WORDS.items() if cell in shown)
    return "\n".join([f"{'call':>{width}} {numbers}", *lines, f"{'':>{width}} {legend}"])


def to_svg(recipe: Recipe) -> str:
    """For a report: the same as a drawing; the page may set the colours `--computed`, `--within` and `--replayed`."""
    rows = rows_of(recipe)
    width, height = _LEFT + recipe.total * _CELL + 8, _TOP + len(rows) * _CELL + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="recipe" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><title>What each network call computes</title>'
    ]
    for call in range(recipe.total):
        parts.append(
            f'<text x="{_LEFT + (call + 0.5) * _CELL:g}" y="16" text-anchor="middle" font-size="10">{call}</text>'
        )
    for place, row in enumerate(rows):
        y = _TOP + place * _CELL
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end" font-size="12">{escape(row.name)}</text>')
        for call, cell in enumerate(row.cells):
            size = _CELL - 2
            parts.append(
                f'<rect x="{_LEFT + call * _CELL}" y="{y}" width="{size}" height="{size}" rx="3" '
                f'fill="var({COLOURS[cell]})"><title>call {call}, {escape(row.name)}: {WORDS[cell]}</title></rect>'
            )
    return "".join([*parts, "</svg>"])
