"""A recipe as a picture: network calls across, depth down, each cell computed or replayed."""

from dataclasses import dataclass
from html import escape

from diffaccel.methods.profile import OUTPUT, Recipe

COMPUTED, REPLAYED = "█", "·"
_CELL, _LEFT, _TOP = 18, 150, 24


@dataclass(frozen=True)
class Row:
    """A portion of the network: its name, and whether it computes at each call."""

    name: str
    computes: tuple[bool, ...]


def rows_of(recipe: Recipe) -> list[Row]:
    """Portions of the network from the deepest up, or transformer blocks from the last down to the first."""
    reused = [{reuse.what for reuse in recipe.reuses if reuse.call == call} for call in range(recipe.total)]
    depths = sorted(int(what.split()[1]) for what in recipe.parts if what.startswith("branch"))
    if depths or not recipe.parts:
        edges = [*(f"branch {depth}" for depth in reversed(depths)), OUTPUT]
        rows = []
        for index, edge in enumerate(edges):
            name = _between(edges[index - 1] if index else None, edge)
            rows.append(Row(name, tuple(not what & set(edges[index:]) for what in reused)))
        return rows
    groups = sorted(recipe.parts, key=lambda what: int(what.split()[1].split("-")[0]), reverse=True)
    inner = [Row(group, tuple(not what & {group, OUTPUT} for what in reused)) for group in groups]
    return [*inner, Row("rest", tuple(OUTPUT not in what for what in reused))]


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
    lines = [f"{row.name:>{width}} {''.join(COMPUTED if c else REPLAYED for c in row.computes)}" for row in rows]
    return "\n".join(
        [f"{'call':>{width}} {numbers}", *lines, f"{'':>{width}} {COMPUTED} computed  {REPLAYED} replayed"]
    )


def to_svg(recipe: Recipe) -> str:
    """For a report: the same as a drawing, whose colours follow the page's `--computed` and `--replayed`."""
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
        for call, computes in enumerate(row.computes):
            fill = "var(--computed, #2563eb)" if computes else "var(--replayed, #e5e7eb)"
            size = _CELL - 2
            parts.append(
                f'<rect x="{_LEFT + call * _CELL}" y="{y}" width="{size}" height="{size}" rx="3" fill="{fill}">'
                f"<title>call {call}, {escape(row.name)}: {'computed' if computes else 'replayed'}</title></rect>"
            )
    return "".join([*parts, "</svg>"])
