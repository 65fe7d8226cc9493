"""The calls of a run as a drawing (SVG): what each cost, and what was measured there, beside the limit that decided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from diffaccel.attach.call_rows import COMPUTED, PARTLY, REUSED, CallRow
from diffaccel.config.files import write_atomically

WIDTH, LEFT, RIGHT = 860, 64, 20
TITLE, BARS, PLOT, GAP, FOOT, WIDEST = 30, 110, 170, 46, 40, 40
WORDS = {COMPUTED: "computed", PARTLY: "in part", REUSED: "reused"}
STYLE = """<style>
.calls{font:12px system-ui,sans-serif;--ink:#1c1c1e;--faint:#6e6e73;--card:#fff;--line:#e5e5e3}
.calls{--computed:#2563eb;--partly:#93c5fd;--reused:#a9b3c1;--limit:#b42318}
@media (prefers-color-scheme:dark){.calls{--ink:#f2f2f0;--faint:#a1a1a6;--card:#1f1f21;--line:#38383b;
--computed:#6ea0ff;--partly:#3d5a91;--reused:#6b6b72;--limit:#ff8a7a}}
.calls text{fill:var(--faint)}.calls .title{fill:var(--ink);font-weight:600}.calls .paper{fill:var(--card)}
.calls .grid{stroke:var(--line)}.calls .computed{fill:var(--computed)}.calls .partly{fill:var(--partly)}
.calls .reused{fill:var(--reused)}
.calls .limit{stroke:var(--limit);stroke-dasharray:5 4;stroke-width:1.5}
.calls text.over{fill:var(--limit)}.calls circle{stroke:var(--card);stroke-width:1}
</style>"""


@dataclass(frozen=True)
class Drawing:
    """A drawing; notebooks show it by themselves.

    Attributes:
        svg: the drawing.
    """

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Write it as an SVG file, which every browser shows."""
        write_atomically(path, self.svg + "\n")


def draw(rows: Sequence[CallRow]) -> Drawing:
    """One run: for each network a bar for every call, and below it a plot of each quantity that was measured.

    Args:
        rows: the calls of one run, at least one.
    """
    parts, top = [], 12.0
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        across = _Across(len(own))
        parts += _bars(network, own, across, top)
        top += TITLE + BARS + GAP
        for name in dict.fromkeys(item.name for row in own for item in row.measured):
            parts += _plot(name, own, across, top)
            top += TITLE + PLOT + GAP
    height = top + FOOT - 20
    legend = _legend(top, {row.state for row in rows}, measured=any(row.measured for row in rows))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="calls" role="img" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" style="max-width:100%;height:auto"><title>What each call computed '
        f'and measured</title>{STYLE}<rect class="paper" width="{WIDTH}" height="{height:g}"/>'
    )
    return Drawing("".join([head, *parts, *legend, "</svg>"]))


class _Across:
    """Places of calls from left to right."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.width = min(WIDEST, (WIDTH - LEFT - RIGHT) / count)
        self.end = LEFT + self.width * count

    def middle(self, index: int) -> float:
        """Of a call."""
        return LEFT + (index + 0.5) * self.width

    def numbers(self, rows: Sequence[CallRow], y: float) -> list[str]:
        """The calls' indices, as many as there is room for."""
        every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000) if n * self.width >= 22)
        return [
            f'<text x="{self.middle(i):.1f}" y="{y:.1f}" text-anchor="middle">{_number(row, i)}</text>'
            for i, row in enumerate(rows)
            if i % every == 0
        ]


def _bars(network: str, rows: Sequence[CallRow], across: _Across, top: float) -> list[str]:
    """The cost of each call as a share of one that computes everything."""
    counted = all(row.macs is not None for row in rows)
    parts = [_title(f"{network}: {'multiply-accumulates of each call' if counted else 'what each call computed'}", top)]
    base = top + TITLE + BARS
    for share in (0, 0.5, 1) if counted else ():
        parts.append(_line(base - share * BARS, across.end, f"{share:.0%}"))
    for index, row in enumerate(rows):
        height = max(2.0, row.share * BARS)
        title = f"call {_number(row, index)}: {WORDS[row.state]}"
        title += f", {row.share:.1%} of {row.macs_plain / 1e9:.3g} GMAC" if row.macs_plain else ""
        parts.append(
            f'<rect class="{row.state}" x="{across.middle(index) - across.width * 0.4:.1f}" y="{base - height:.1f}" '
            f'width="{across.width * 0.8:.1f}" height="{height:.1f}"><title>{escape(title)}</title></rect>'
        )
    return [*parts, *across.numbers(rows, base + 16)]


def _plot(name: str, rows: Sequence[CallRow], across: _Across, top: float) -> list[str]:
    """What was measured at each call, one dot for each row or group of rows, and the limit that decided."""
    found = [(index, item) for index, row in enumerate(rows) for item in row.measured if item.name == name]
    limits = sorted({item.limit for _, item in found if item.limit is not None})
    values = [value for _, item in found for value in item.values if 0 < value < math.inf]
    down = _Down([*values, *(limit for limit in limits if limit > 0)], top + TITLE)
    parts = [_title(name, top), *(_line(down.y(tick), across.end, f"{tick:g}") for tick in down.ticks)]
    for limit in limits:
        y = down.y(limit)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{across.end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    if limits:
        above = " or ".join(f"{limit:g}" for limit in limits)
        place = f'x="{across.end:.1f}" y="{top + 16:.1f}" text-anchor="end"'
        parts.append(f'<text class="over" {place}>computes above {above} (dashed)</text>')
    for index, item in found:
        for value in item.values:
            parts.append(
                f'<circle class="{rows[index].state}" cx="{across.middle(index):.1f}" cy="{down.y(value):.1f}" r="4.5">'
                f"<title>call {_number(rows[index], index)}: {value:.3g}, "
                f"{WORDS[rows[index].state]}</title></circle>"
            )
    return [*parts, *across.numbers(rows, top + TITLE + PLOT + 16)]


class _Down:
    """Places of positive values from the bottom up, by their logarithms; others are at the edges."""

    def __init__(self, values: Sequence[float], top: float) -> None:
        self.top = top
        logs = [math.log10(value) for value in values] or [0.0]
        self.low, self.high = min(logs) - 0.1, max(logs) + 0.15
        steps = [m * 10.0**e for e in range(math.floor(self.low), math.ceil(self.high) + 1) for m in (1, 2, 5)]
        self.ticks = [tick for tick in steps if self.low <= math.log10(tick) <= self.high]
        if len(self.ticks) > 7:
            self.ticks = [tick for tick in self.ticks if f"{tick:e}"[0] == "1"]

    def y(self, value: float) -> float:
        """Place of a value."""
        log = math.log10(value) if 0 < value < math.inf else -math.inf if value <= 0 else math.inf
        part = (self.high - min(max(log, self.low), self.high)) / (self.high - self.low)
        return self.top + part * PLOT


def _number(row: CallRow, index: int) -> int:
    """Index of a call in its run, or among those that are drawn."""
    return index if row.step is None else row.step


def _title(text: str, top: float) -> str:
    return f'<text class="title" x="{LEFT}" y="{top + 16:.1f}">{escape(text)}</text>'


def _line(y: float, end: float, label: str) -> str:
    """A grid line with its figure."""
    return (
        f'<line class="grid" x1="{LEFT}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _legend(top: float, states: set[str], *, measured: bool) -> list[str]:
    """What the colours say."""
    parts, x = [], float(LEFT)
    for state in (COMPUTED, PARTLY, REUSED):
        if state in states:
            parts.append(f'<rect class="{state}" x="{x}" y="{top - 10:.1f}" width="12" height="12"/>')
            parts.append(f'<text x="{x + 18}" y="{top:.1f}">{WORDS[state]}</text>')
            x += 100
    told = "a dot: one row, or rows that decide together" if measured else "nothing was measured to decide"
    return [*parts, f'<text x="{x}" y="{top:.1f}">{told}</text>']
