"""Routers as a picture: network calls across, units down, dark where a unit computes, lighter the less its weight."""

from html import escape

from diffaccel.methods.routers import Routers

_CELL, _LEFT, _TOP = 16, 10, 26
_KINDS = {"attn1": "self-attention", "attn2": "cross-attention", "ff": "feed-forward"}


def to_svg(routers: Routers) -> str:
    """A drawing for a page: filled cells compute, hollow ones reuse; the shade is the weight."""
    names = [_short(name) for name in routers.units]
    left = _LEFT + 7 * max(map(len, names))
    width, height = left + routers.total * _CELL + 10, _TOP + len(names) * _CELL + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><title>Which unit computes in which network call</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    ]
    parts += [_label(left + (call + 0.5) * _CELL - 1, 18, 9, "middle", str(call)) for call in range(routers.total)]
    computed = routers.computed()
    for row, (unit, name) in enumerate(zip(routers.units, names, strict=True)):
        y = _TOP + row * _CELL
        parts.append(_label(left - 8, y + 11, 10, "end", name))
        for call in range(routers.total):
            weight = routers.weights[call][row]
            parts.append(_cell(left + call * _CELL, y, weight, call in computed[unit], f"call {call}, {name}"))
    shares = sum(len(calls) for calls in computed.values()) / (routers.total * len(names))
    legend = f"dark: computes ({shares:.0%}); light: reuses; shade: weight; threshold {routers.threshold:g}"
    parts.append(_label(left + routers.total * _CELL - 2, _TOP + len(names) * _CELL + 20, 10, "end", legend))
    return "".join([*parts, "</svg>"])


def _cell(x: float, y: float, weight: float, computes: bool, title: str) -> str:
    """One unit in one call."""
    light = 58 - 30 * weight if computes else 95 - 20 * weight
    size = _CELL - 2
    return (
        f'<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="2" fill="hsl(221 {75 if computes else 45}% '
        f'{light:.0f}%)"><title>{escape(title)}: {weight:.2f}</title></rect>'
    )


def _label(x: float, y: float, size: int, anchor: str, text: str) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-family="sans-serif" font-size="{size}" text-anchor="{anchor}" fill="#334155">'
        f"{escape(text)}</text>"
    )


def _short(name: str) -> str:
    """ "block 3 cross-attention" of "transformer_blocks.3.attn2"; other names as they are."""
    *_, number, last = ["", *name.split(".")]
    return f"block {number} {_KINDS.get(last, last)}" if number.isdecimal() else name
