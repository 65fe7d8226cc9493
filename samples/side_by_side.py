"""What the caching samples share: draw twice with the same noise, and put plain, cached and difference side by side."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont

from diffaccel import Report, accelerate
from diffaccel.measure import compare as likeness
from diffaccel.methods import Method

SCALE, ROUNDS = 2, 3


@dataclass(frozen=True)
class Result:
    """Two pictures of one prompt and one noise, the seconds that each took, and what was computed."""

    plain: Image.Image
    cached: Image.Image
    seconds: tuple[float, float]
    report: Report

    @property
    def figures(self) -> str:
        """Speed and likeness in one line."""
        quality = likeness([self.cached], [self.plain])
        return f"{self.seconds[0] / self.seconds[1]:.2f}x as fast, PSNR {quality.psnr:.1f} dB, SSIM {quality.ssim:.3f}"


def compare(pipe: Any, methods: Sequence[Method], **settings: Any) -> Result:
    """Draw in turns without and with some methods; seconds are medians."""
    pipe.set_progress_bar_config(disable=True)
    seconds: dict[str, list[float]] = {"plain": [], "cached": []}
    for _ in range(ROUNDS):
        plain, took = draw(pipe, settings)
        seconds["plain"].append(took)
        with accelerate(pipe, *methods) as handle:
            cached, took = draw(pipe, settings)
        seconds["cached"].append(took)
    return Result(plain, cached, tuple(map(statistics.median, seconds.values())), handle.report())


def draw(pipe: Any, settings: dict[str, Any]) -> tuple[Image.Image, float]:
    """A picture from the same noise each time, and the seconds that it took."""
    start = time.perf_counter()
    picture = pipe(generator=torch.Generator().manual_seed(0), **settings).images[0]
    return picture, time.perf_counter() - start


def side_by_side(result: Result) -> Image.Image:
    """The plain picture, the cached one, and ten times their difference, under captions."""
    difference = ImageChops.difference(result.plain, result.cached).point(lambda value: 10 * value)
    width, height, margin = SCALE * result.plain.width, SCALE * result.plain.height, 24
    sheet = Image.new("RGB", (3 * width, height + 2 * margin), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    names = (f"plain, {result.seconds[0]:.2f} s", f"cached, {result.seconds[1]:.2f} s", "difference x 10")
    for i, (name, picture) in enumerate(zip(names, (result.plain, result.cached, difference), strict=True)):
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (i * width, margin))
        pen.text((i * width + 6, 3), name, fill="black", font=font)
    saved = f"{result.report.macs_saved:.0%} of multiply-accumulates saved"
    pen.text((6, margin + height + 3), f"{result.figures}, {saved}", fill="black", font=font)
    return sheet
