"""Relevance as an SVG: a bar for each part's score, and beside it what picture and control lose without it."""

from html import escape

from diffaccel.methods.control_relevance import Loss, Relevance, scores_of

WIDTH, LINE, LEFT, BARS = 860, 24, 270, 250
COLUMNS = (("PSNR, dB", 620), ("SSIM", 710), ("agreement", 810))
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.head{font-weight:600}.name,.figure{text-anchor:end}"
    ".bar{fill:#2a6fbb}.all{fill:#e8eef5}"
)


def chart(found: Relevance) -> str:
    """The chart of all parts, and of leaving out everything from a part on, whose bars say what control is left."""
    groups = (
        ("left out alone", "relevance, 0 to 1", found.each, scores_of(found.each)),
        ("block left out", "relevance, 0 to 1", found.blocks, scores_of(found.blocks)),
        ("left out with all behind", "agreement left, 0 to 1", found.cuts, tuple(cut.agreement for cut in found.cuts)),
    )
    parts: list[str] = []
    y = 28
    for title, bars, losses, values in groups:
        if losses:
            parts += _head(title, bars, y)
            for row, (loss, value) in enumerate(zip(losses, values, strict=True), start=1):
                parts += _row(loss, value, y + LINE * row)
            y += LINE * (len(losses) + 2)
    lines = f"agreement with all {found.agreement:.3f}, without any {found.without:.3f}"
    parts.append(f'<text x="16" y="{y}">{escape(found.model)}: {lines}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {y + 16}">'
    return (
        f'{head}<title>Relevance of control</title><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        + ("".join(parts) + "</svg>\n")
    )


def _head(title: str, bars: str, y: int) -> list[str]:
    """Titles of the columns."""
    score = f'<text class="head" x="{LEFT}" y="{y}">{bars}</text>'
    figures = [f'<text class="head figure" x="{x}" y="{y}">{name}</text>' for name, x in COLUMNS]
    return [f'<text class="head name" x="{LEFT - 12}" y="{y}">{title}</text>', score, *figures]


def _row(loss: Loss, value: float, y: int) -> list[str]:
    """A part: its name, its bar, and its figures."""
    name = loss.name.removesuffix(" and all behind it")
    bars = [
        f'<rect class="{kind}" x="{LEFT}" y="{y - 13}" width="{width:.1f}" height="16"/>'
        for kind, width in (("all", BARS), ("bar", BARS * value))
    ]
    figures = (f"{loss.psnr:.1f}", f"{loss.ssim:.3f}", f"{loss.agreement:.3f}")
    shown = [
        f'<text class="figure" x="{x}" y="{y}">{text}</text>' for text, (_, x) in zip(figures, COLUMNS, strict=True)
    ]
    return [f'<text class="name" x="{LEFT - 12}" y="{y}">{escape(name)}</text>', *bars, *shown]
