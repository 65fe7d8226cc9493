"""Write a benchmark down: one page for people that needs nothing else, and JSON and CSV for programs."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffaccel.config.files import write_atomically
from diffaccel.config.pages import filled
from diffaccel.config.words import counted
from diffaccel.measure.bench import SHOWN, Benchmark, BenchRow
from diffaccel.measure.chart import SHAPES, Point, front, pareto
from diffaccel.measure.machine import MachineInfo
from diffaccel.measure.quality import CEILING

AMPLIFICATION = 4  # of differences, so that an eye can see them
MANY = 50  # pictures from which on a share of them is told in percent
PIXELS = 256  # most per side
COLUMNS = (
    *("name", "kind", "seconds", "spread", "speedup", "ceiling", "gmacs"),
    *("psnr", "worst_psnr", "ssim", "ms_ssim", "top1", "peak_bytes", "cache_bytes", "joules"),
)


@dataclass(frozen=True)
class Setting:
    """What was measured where.

    Attributes:
        title: of the page.
        command: the exact command line.
        machine: where it ran.
        settings: of the run, for the page.
        drawings: SVG pictures of tuned profiles, by candidate.
    """

    title: str
    command: str
    machine: MachineInfo
    settings: dict[str, Any]
    drawings: dict[str, str]


def write_report(folder: Path, benchmark: Benchmark, setting: Setting) -> None:
    """Write report.html, report.json and report.csv into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.html", page(benchmark, setting))
    write_atomically(folder / "report.json", json.dumps(as_json(benchmark, setting), indent=1) + "\n")
    write_atomically(folder / "report.csv", as_csv(benchmark))


def as_json(benchmark: Benchmark, setting: Setting) -> dict[str, Any]:
    """All figures, JSON-ready."""
    return {
        "command": setting.command,
        "machine": asdict(setting.machine),
        "settings": setting.settings,
        "different_seed_floor": asdict(benchmark.floor),
        "front": [point.name for point in front(points(benchmark))],
        "rows": [{**asdict(row), "timing": row.timing.to_dict()} for row in benchmark.rows],
        "failures": benchmark.failures,
    }


def as_csv(benchmark: Benchmark) -> str:
    """One line per candidate."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in benchmark.rows:
        quality, judged = row.quality, row.accuracy.top1 if row.accuracy else None
        figures = (
            *(row.timing.median, row.timing.spread, row.speedup, row.ceiling, row.macs / 1e9),
            *(quality.psnr, quality.worst, quality.ssim, quality.ms_ssim, judged),
        )
        numbers = ["" if figure is None else f"{figure:.5g}" for figure in figures]
        rest = ["" if figure is None else figure for figure in (row.peak_bytes, row.cache_bytes, row.joules)]
        writer.writerow([row.name, row.kind, *numbers, *rest])
    return stream.getvalue()


def page(benchmark: Benchmark, setting: Setting) -> str:
    """The page."""
    leading = {point.name for point in front(points(benchmark))}
    return filled(
        "diffaccel.measure",
        "report.html",
        {"share": share, "megabytes": _megabytes, "counted": counted},
        setting=setting,
        rows=benchmark.rows,
        judged=any(row.accuracy for row in benchmark.rows),
        metered=any(row.joules is not None for row in benchmark.rows),
        plain=benchmark.rows[0],
        failures=benchmark.failures,
        chart=pareto(points(benchmark)),
        shapes=SHAPES,
        leading=leading,
        panels=[_panel(benchmark, row) for row in benchmark.rows[1:]],
        originals=[_address(picture) for picture in benchmark.pictures[benchmark.rows[0].name]],
        truth=benchmark.truth[:SHOWN],
        amplification=AMPLIFICATION,
        verdict=_verdict(benchmark.rows),
        floor=benchmark.floor,
        calls=benchmark.calls,
        pictures=len(benchmark.truth),
    )


def share(fraction: float, count: int) -> str:
    """A share of pictures: in percent of many, as "2 of 3" of few, which say no more than that."""
    return f"{fraction:.0%}" if count >= MANY else f"{round(fraction * count)} of {count}"


def _megabytes(size: int | None) -> str:
    if size is None:
        return "not available"
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 or not size else f"{size / 1e3:.1f} kB"


def points(benchmark: Benchmark) -> list[Point]:
    """Each candidate as a point; the plain pipeline, which nothing slower beats, is one at 1.0."""
    plain, *others = benchmark.rows
    rest = [Point(row.name, row.kind, row.speedup, row.quality.psnr) for row in others]
    return [Point(plain.name, plain.kind, 1.0, CEILING), *rest]


def _verdict(rows: Sequence[BenchRow]) -> str:
    """The page's first sentence."""
    good = [row for row in rows[1:] if row.quality.psnr >= 30 and row.speedup > 1]
    if not good:
        return "Nothing that is faster reaches 30 dB to the plain pipeline's pictures."
    best = max(good, key=lambda row: row.speedup)
    return (
        f"The fastest whose pictures stay at 30 dB or more to the plain pipeline's is {best.name}: {best.speedup:.2f} "
        f"times as fast, at {best.quality.psnr:.1f} dB."
    )


def _panel(benchmark: Benchmark, row: BenchRow) -> dict[str, Any]:
    """A candidate's pictures and their differences to the plain pipeline's."""
    plain, own = benchmark.pictures[benchmark.rows[0].name], benchmark.pictures[row.name]
    differences = 1 - ((own - plain).abs() * AMPLIFICATION).clamp(0, 1)
    return {
        "name": row.name,
        "row": row,
        "pictures": [_address(picture) for picture in own],
        "differences": [_address(picture) for picture in differences],
    }


def _address(picture: torch.Tensor) -> str:
    """A picture (3, height, width) as an address that holds it."""
    pixels = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((PIXELS, PIXELS))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=92, method=6)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
