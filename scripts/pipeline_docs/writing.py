"""Turns a page's example and its figures into Markdown."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import diffaccel.pipelines
from pipeline_docs.pages import Page

HERE = Path(__file__).parent
PICTURES = "../pictures/pipelines"
ARGUMENTS = {"stream_diffusion": "stream", "causal_video": "video", "fast_control": "control"}


def markdown(page: Page, figures: dict[str, Any] | None) -> str:
    """The page; without figures where nothing is compared."""
    home = importlib.import_module(f"diffaccel.pipelines.{page.name}")
    kind = next(k for name, k in vars(home).items() if name in diffaccel.pipelines.__all__ and inspect.isclass(k))
    stock = ", ".join(f"`{s.__name__}`" for s in kind.stock)
    summary = (home.__doc__ or "").splitlines()[0]
    arguments = ARGUMENTS.get(page.name, "fast")
    parts = [
        f"# {kind.__name__}\n\n{summary} It becomes the first of these that the components fit: {stock}.\n",
        f"```python\n{page.code}images = pipe(**call{_example(page)})\n```\n",
        f"`from diffaccel.pipelines import {kind.__name__}` and `{kind.__name__}.from_pretrained(...)` do the same "
        "without `trust_remote_code`. Both read weights from safetensors only.\n",
        "## Arguments\n\n" + (HERE / f"arguments-{arguments}.md").read_text(),
        *([] if figures is None else [f"## Figures\n\n![Pictures of every row below]({PICTURES}/{page.name}.png)\n"]),
        *([page.note + "\n"] if page.note else []),
        *([] if figures is None else [_table(page, figures)]),
        f"## Memory\n\n{page.memory}\n",
        "Written by `python scripts/make_pipeline_docs.py`"
        + (".\n" if figures is None else ", which runs the code above; no figure is typed by hand.\n"),
    ]
    return "\n".join(parts)


def _example(page: Page) -> str:
    """What the shown call adds: the second variant."""
    code = list(page.variants.values())[1] if page.variants else ""
    return f", {code}" if code else ""


def _table(page: Page, figures: dict[str, Any]) -> str:
    """A row per variant."""
    first = next(iter(page.variants))
    where = figures["machine"]
    lines = [
        f"{_rounds(figures['rounds'])} on {where['processor']}; "
        f"torch {where['packages']['torch']}, diffusers {where['packages']['diffusers']}. Likeness is to *{first}*.\n",
        "| call | adds | seconds | times as fast | MACs saved | PSNR, dB | SSIM | cache, MB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in figures["rows"].items():
        cells = (
            name, f"`{page.variants[name]}`" if page.variants[name] else "", f"{row['seconds']:.2f}",
            f"{row['speedup']:.2f}", _number(row["saved"], ".0%"), _number(row["psnr"], ".1f"),
            _number(row["ssim"], ".3f"), _number(row["cache_bytes"], ".2f", 1e6),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    if "floor" in figures:
        alike = figures["floor"]
        lines.append(f"| *different seed (floor)* | | | | | {alike['psnr']:.1f} | {alike['ssim']:.3f} | |")
    return "\n".join(lines) + "\n"


def _rounds(count: int) -> str:
    return "One round" if count == 1 else f"Medians of {count} rounds in turns"


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None else format(value / unit, form)
