"""What caching changed: the plain picture, the cached one and their difference, side by side with the figures."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

AMPLIFICATION = 8
MIN_PANEL = 256
_GAP, _STRIP = 8, 40
_PAPER, _INK, _FAINT = (250, 250, 249), (28, 28, 30), (110, 110, 115)


@dataclass(frozen=True)
class Comparison:
    """Two renderings of one job at the same seed, and the seconds that each took."""

    plain: Image.Image
    cached: Image.Image
    plain_seconds: float
    cached_seconds: float

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB, to two decimals wherever it is told; equal pictures have 100."""
        from diffaccel.measure.quality import psnr

        return round(float(psnr([self.plain], [self.cached])), 2)


def difference(one: Image.Image, other: Image.Image) -> Image.Image:
    """Absolute difference, amplified by `AMPLIFICATION` so that an eye can see it; white where the pictures agree."""
    distance = np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16))
    return Image.fromarray((255 - np.minimum(distance * AMPLIFICATION, 255)).astype(np.uint8))


def side_by_side(comparison: Comparison, cache: str) -> Image.Image:
    """One picture of three panels, each with its name and its figure underneath."""
    change = difference(comparison.plain, comparison.cached)
    panels = (
        (comparison.plain, "plain", f"{comparison.plain_seconds:.2f} s"),
        (comparison.cached, cache, f"{comparison.cached_seconds:.2f} s"),
        (change, f"difference x {AMPLIFICATION}", f"PSNR {comparison.psnr:.1f} dB"),
    )
    scale = max(1, math.ceil(MIN_PANEL / comparison.plain.width))
    width, height = comparison.plain.width * scale, comparison.plain.height * scale
    sheet = Image.new("RGB", (3 * width + 4 * _GAP, height + 2 * _GAP + _STRIP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (picture, name, figure) in enumerate(panels):
        left = _GAP + index * (width + _GAP)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, _GAP))
        _label(draw, (left, height + 2 * _GAP), width, name, figure)
    return sheet


def _label(draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, name: str, figure: str) -> None:
    font = ImageFont.load_default(15)
    while len(name) > 1 and draw.textlength(name, font) > width:
        name = name[:-2] + "…"
    draw.text(corner, name, _INK, font)
    draw.text((corner[0], corner[1] + 18), figure, _FAINT, font)
