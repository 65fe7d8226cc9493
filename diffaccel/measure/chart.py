"""The Pareto plot of a benchmark as SVG: likeness against speed, and the front of what nothing else beats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 18, 48
SPACINGS, TICKS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200), 12  # of figures across, and how many at most
TALLEST = 60.0  # dB; what is more alike, lossless methods among them, is drawn at the top
SHAPES = {
    "plain": "plain pipeline, at the upper edge",
    "diffaccel": "diffaccel",
    "steps": "fewer steps",
    "peer": "other packages",
}


@dataclass(frozen=True)
class Point:
    """One candidate: speed-up and PSNR in dB."""

    name: str
    kind: str
    speedup: float
    psnr: float


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one equals or beats in both speed and likeness, the slowest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.psnr)):
        if not best or point.psnr > best[-1].psnr:
            best.append(point)
    return best[::-1]


def pareto(points: Sequence[Point]) -> str:
    """The plot; the plain pipeline, which has no finite PSNR to itself, is at its upper edge."""
    shown = [point for point in points if point.kind != "plain"]
    if not shown:
        return ""
    scale = _Scale(shown)
    leading = front(points)
    line = " ".join(f"{scale.x(p.speedup):.1f},{scale.y(p.psnr):.1f}" for p in leading)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}">'
        "<title>Likeness to the plain pipeline against speed</title>",
        *scale.axes(),
        f'<polyline class="front" fill="none" points="{line}"/>',
        *(_mark(point, scale.x(point.speedup), scale.y(point.psnr)) for point in points),
        *_labels(leading, scale),
        "</svg>",
    ]
    return "".join(parts)


class _Scale:
    """From figures to places in the drawing."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.right = max(1.2, max(p.speedup for p in points)) * 1.08
        self.left = min(0.9, min(p.speedup for p in points) * 0.95)
        low, high = (min(TALLEST, extreme(p.psnr for p in points)) for extreme in (min, max))
        self.low, self.high = math.floor((low - 1) / 5) * 5, min(TALLEST, math.ceil((high + 1) / 5) * 5)

    def x(self, speedup: float) -> float:
        """Place across."""
        return LEFT + (speedup - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, psnr: float) -> float:
        """Place down."""
        return TOP + (self.high - min(psnr, self.high)) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> list[str]:
        """Grid lines with their figures, and what they count."""
        parts = []
        step = 5 if self.high - self.low <= 50 else 10
        for decibels in range(math.ceil(self.low / step) * step, int(self.high) + 1, step):
            y = self.y(decibels)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            more = "≥ " if decibels == TALLEST else ""
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{more}{decibels}</text>')
        spacing = next(each for each in SPACINGS if (self.right - self.left) / each <= TICKS)
        for index in range(math.ceil(self.left / spacing), math.floor(self.right / spacing) + 1):
            x = self.x(index * spacing)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{index * spacing:g}x</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">times as fast</text>')
        parts.append(f'<text class="name" transform="translate(14 {HEIGHT / 2}) rotate(-90)">PSNR, dB</text>')
        return parts


def _mark(point: Point, x: float, y: float) -> str:
    """A circle for ours, a square for fewer steps, a diamond for others; the pointer shows its figures."""
    likeness = "the reference" if point.kind == "plain" else f"{point.psnr:.1f} dB"
    title = f"<title>{escape(point.name)}: {point.speedup:.2f}x, {likeness}</title>"
    if point.kind == "diffaccel":
        return f'<circle class="diffaccel" cx="{x:.1f}" cy="{y:.1f}" r="6">{title}</circle>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if point.kind == "peer" else ""
    return f'<rect class="{point.kind}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"{turn}>{title}</rect>'


def _labels(leading: Sequence[Point], scale: _Scale) -> list[str]:
    """Names of the points of the front, right above the falling line or left below it, unless they cover another's."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for point in reversed(leading):
        x, y = scale.x(point.speedup), scale.y(point.psnr)
        if any(abs(x - other) < 150 and abs(y - beside) < 16 for other, beside in taken):
            continue
        taken.append((x, y))
        left = x > WIDTH * 0.72
        name = point.name if len(point.name) <= 34 else f"{point.name[:33]}…"
        place = f'x="{x - 10:.1f}" y="{y + 17:.1f}"' if left else f'x="{x + 10:.1f}" y="{y - 8:.1f}"'
        parts.append(f'<text class="label" {place} text-anchor="{"end" if left else "start"}">{escape(name)}</text>')
    return parts
