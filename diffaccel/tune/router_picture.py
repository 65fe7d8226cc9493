"""Routers as a picture: network calls across, units down, dark where a unit computes, lighter the less its weight.

Below it the course of their training: the objective, and how much computes.
"""

import math
from collections.abc import Sequence
from html import escape

from diffaccel.methods.routers import Routers

_CELL, _LEFT, _TOP, _COURSE = 16, 10, 26, 84
_SHARE, _OBJECTIVE = "hsl(221 75% 45%)", "hsl(24 85% 45%)"
_KINDS = {"attn1": "self-attention", "attn2": "cross-attention", "ff": "feed-forward"}


def to_svg(routers: Routers) -> str:
    """A drawing for a page: filled cells compute, hollow ones reuse; the shade is the weight."""
    names = [_short(name) for name in routers.units]
    left = _LEFT + 7 * max(map(len, names))
    computed = routers.computed()
    shares = sum(len(calls) for calls in computed.values()) / (routers.total * len(names))
    legend = f"dark: computes ({shares:.0%}); light: reuses; shade: weight; threshold {routers.threshold:g}"
    across = max(routers.total * _CELL, 6 * len(legend) + _LEFT - left)  # few calls leave the legend its room
    width, height = left + across + 10, _TOP + len(names) * _CELL + 34
    course = _course(routers.curve, left, height + 4, across - 2)
    height += _COURSE + 30 if course else 0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><title>Which unit computes in which network call</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    ]
    parts += [_label(left + (call + 0.5) * _CELL - 1, 18, 9, "middle", str(call)) for call in range(routers.total)]
    for row, (unit, name) in enumerate(zip(routers.units, names, strict=True)):
        y = _TOP + row * _CELL
        parts.append(_label(left - 8, y + 11, 10, "end", name))
        for call in range(routers.total):
            weight = routers.weights[call][row]
            parts.append(_cell(left + call * _CELL, y, weight, call in computed[unit], f"call {call}, {name}"))
    parts.append(_label(left + across - 2, _TOP + len(names) * _CELL + 20, 10, "end", legend))
    return "".join([*parts, *course, "</svg>"])


def _course(curve: Sequence[tuple[float, ...]], left: int, top: int, width: int) -> list[str]:
    """Two lines over runs: the share that computes, from 0 to 1, and the objective, in logarithms between its ends."""
    if len(curve) < 2:
        return []
    runs, objectives, shares = zip(*curve, strict=True)
    logs = [math.log10(max(value, 1e-30)) for value in objectives]
    least, span = min(logs), max(logs) - min(logs) or 1.0
    bottom, per_run = top + _COURSE, width / (runs[-1] - runs[0] or 1.0)
    across = [left + (run - runs[0]) * per_run for run in runs]
    ends = f"{10**least:.0e} to {10 ** max(logs):.0e}"
    return [
        f'<path d="M{left} {top}V{bottom}H{left + width}" fill="none" stroke="#cbd5e1"/>',
        _line(across, [bottom - share * _COURSE for share in shares], _SHARE),
        _line(across, [bottom - (log - least) / span * _COURSE for log in logs], _OBJECTIVE),
        _label(left - 8, top + 12, 10, "end", "computes", _SHARE),
        _label(left - 8, top + 25, 9, "end", "0 to 100%", _SHARE),
        _label(left - 8, top + 46, 10, "end", "objective", _OBJECTIVE),
        _label(left - 8, top + 59, 9, "end", ends, _OBJECTIVE),
        _label(left, bottom + 14, 9, "start", f"run {runs[0]:g}"),
        _label(left + width, bottom + 14, 9, "end", f"run {runs[-1]:g}"),
    ]


def _line(across: Sequence[float], down: Sequence[float], colour: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _cell(x: float, y: float, weight: float, computes: bool, title: str) -> str:
    """One unit in one call."""
    light = 58 - 30 * weight if computes else 95 - 20 * weight
    size = _CELL - 2
    return (
        f'<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="2" fill="hsl(221 {75 if computes else 45}% '
        f'{light:.0f}%)"><title>{escape(title)}: {weight:.2f}</title></rect>'
    )


def _label(x: float, y: float, size: int, anchor: str, text: str, colour: str = "#334155") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-family="sans-serif" font-size="{size}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )


def _short(name: str) -> str:
    """ "block 3 cross-attention" of "transformer_blocks.3.attn2"; other names as they are."""
    *_, number, last = ["", *name.split(".")]
    return f"block {number} {_KINDS.get(last, last)}" if number.isdecimal() else name
