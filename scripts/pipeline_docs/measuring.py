"""Runs a page's example: pictures of every variant, its seconds, its likeness to the first, and what it stores."""

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from diffaccel.measure import compare
from diffaccel.measure.machine import machine
from diffaccel.measure.memory import watch_cache
from diffaccel.measure.timing import interleaved
from pipeline_docs.pages import Page

LABEL, SHOWN = 18, 4


def examine(page: Page, rounds: int) -> tuple[dict[str, Any], Image.Image]:
    """Figures of every variant, and a sheet of their pictures."""
    names: dict[str, Any] = {}
    exec(page.code, names)  # the very code that the page shows
    pipe, call = names["pipe"], names["call"]
    pipe.set_progress_bar_config(disable=True)
    added = {name: eval(f"dict({code})", names) for name, code in page.variants.items()}
    pictures: dict[str, list[Image.Image]] = {}

    def work(name: str) -> None:
        pictures[name] = _draw(pipe, call | added[name])

    runs = {name: partial(work, name) for name in added}
    times = interleaved(runs, rounds, warmup=1 if rounds > 1 else 0)
    first = next(iter(added))
    rows = {}
    for name, more in added.items():
        quality = compare(pictures[name], pictures[first])
        rows[name] = {
            "seconds": times[name].median,
            "speedup": times[name].speedup(times[first]),
            "psnr": None if name == first else quality.psnr,
            "ssim": None if name == first else quality.ssim,
        } | _cost(pipe, call, more)
    alike = floor(pipe, call, pictures[first])
    step = 4 if "frames" in names else 1
    shown = {"input": names["inputs"]} if "inputs" in names else {}
    shown |= {name: pictures[name][::step][:SHOWN] for name in added}
    return {"machine": asdict(machine()), "rounds": rounds, "rows": rows, "floor": alike}, _sheet(shown)


def floor(pipe: Any, call: dict[str, Any], pictures: list[Image.Image]) -> dict[str, float]:
    """How far pictures of another seed are from those of a page's first variant."""
    quality = compare(_draw(pipe, call, seed=1), pictures)
    return {"psnr": quality.psnr, "ssim": quality.ssim}


def floor_alone(page: Page) -> dict[str, float]:
    """The same, of a page whose other figures are known."""
    names: dict[str, Any] = {}
    exec(page.code, names)
    pipe, call = names["pipe"], names["call"] | eval(f"dict({next(iter(page.variants.values()))})", names)
    pipe.set_progress_bar_config(disable=True)
    return floor(pipe, call, _draw(pipe, call))


def _draw(pipe: Any, call: dict[str, Any], seed: int = 0) -> list[Image.Image]:
    """Pictures from the noise of a seed; frames of a video."""
    if hasattr(pipe, "stream"):  # whose calls name a seed
        call = call | {"seed": call["seed"] + seed}
    else:
        call = call | {"generator": torch.Generator().manual_seed(seed)}
    output = pipe(**call)
    return list(output.frames[0] if "frames" in output else output.images)


def _cost(pipe: Any, call: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Multiply-accumulates that a variant saves, and the most bytes that it stores."""
    if hasattr(pipe, "stream") or not more:
        return {"saved": None, "cache_bytes": None}
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    handle = pipe.enable_feature_cache(more.get("cache"), guidance=more.get("guidance"), gate=more.get("gate"))
    try:
        with watch_cache(handle, denoiser) as memory:
            _draw(pipe, call)
        return {"saved": handle.report().macs_saved, "cache_bytes": memory.peak}
    finally:
        pipe.disable_feature_cache()


def _sheet(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """A row of pictures under its name for each variant."""
    size = rows[next(iter(rows))][0].width
    columns = max(len(images) for images in rows.values())
    sheet = Image.new("RGB", (max(columns, 2) * size, len(rows) * (size + LABEL)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for k, (name, images) in enumerate(rows.items()):
        pen.text((4, k * (size + LABEL) + 1), name, fill="black", font=font)
        for i, image in enumerate(images):
            sheet.paste(image, (i * size, k * (size + LABEL) + LABEL))
    return sheet
