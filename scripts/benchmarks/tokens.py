"""Fewer tokens in attention: multiply-accumulates and time on the shape of SD 1.5 beside tomesd, and likeness."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import tomesd
import torch
from benchmarks.peers import Attach
from benchmarks.tables import FLOOR, Tables, markdown
from diffusers import PixArtTransformer2DModel

from benchmarks import shapes
from diffaccel import PTDiTTransformer2DModel, TokenReduction, accelerate
from diffaccel.attach.macs import count_macs
from diffaccel.measure import interleaved, machine
from diffaccel.measure.quality import compare
from diffaccel.measure.workload import Workload, other_seeds
from diffaccel.models import load

RATIO = 0.5
CLOCK = time.perf_counter if torch.accelerator.is_available() else time.process_time  # processors may be busy
KIND = "of the wall" if torch.accelerator.is_available() else "that processors worked, whatever else they did"
PROMPTS = ("red heart", "dog", "rocket")
METHODS = {
    "merge 0.25": TokenReduction(ratio=0.25),
    "merge 0.5": TokenReduction(ratio=RATIO),
    "merge 0.5, matched every 4th call": TokenReduction(ratio=RATIO, interval=4),
    "pool 2 x 2": TokenReduction("pool", ratio=RATIO),
}


class Tomesd:
    """The authors' package on a network, at the two finest resolutions, while it is entered."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet

    def __enter__(self) -> None:
        tomesd.apply_patch(self.unet, ratio=RATIO, max_downsample=2)

    def __exit__(self, *_: object) -> None:
        tomesd.remove_patch(self.unet)


def unet_call(unet: Any, size: int) -> Callable[[], None]:
    """One row through the network, always at another timestep, so that a bare network sees steps of a run."""
    generator, times = torch.Generator().manual_seed(0), iter(range(10**9, 0, -1))
    sample = torch.randn(1, 4, size, size, generator=generator, dtype=torch.float32).to(unet.dtype)
    prompt = torch.randn(shapes.PROMPT, generator=generator).to(unet.dtype)

    def call() -> None:
        unet(sample, next(times), prompt)

    return call


def macs_saved(unet: Any, method: TokenReduction, size: int) -> float:
    """Share of a call's multiply-accumulates, counted on tensors without storage."""
    with torch.device("meta"):
        meta = type(unet).from_config(unet.config)
    sample, prompt = torch.empty(1, 4, size, size, device="meta"), torch.empty(shapes.PROMPT, device="meta")
    with accelerate(meta, method) as handle:
        for step in range(method.interval):  # of one prompt: another tensor would be another one
            meta(sample, 900 - step, prompt)
        return handle.report().macs_saved


def sd15(rounds: int, dtype: torch.dtype, size: int) -> Tables:
    """Shares of a call that are saved, of multiply-accumulates and of time, at latents of a size."""
    unet = shapes.sd15_unet().to(dtype)
    call = unet_call(unet, size)
    ways: dict[str, Attach] = {"plain": nullcontext, "tomesd 0.5": partial(Tomesd, unet)}
    ways |= {name: partial(accelerate, unet, method) for name, method in METHODS.items()}
    times = interleaved(dict.fromkeys(ways, call), rounds, 0, around=ways, clock=CLOCK)
    rows: dict[str, dict[str, float]] = {}
    for name, timing in times.items():
        rows[name] = {"s": timing.median, "time saved": 1 - 1 / timing.speedup(times["plain"])}
        if name in METHODS:
            rows[name] |= _reached(rows[name]["time saved"], macs_saved(unet, METHODS[name], size))
    return {f"One call of the Stable Diffusion 1.5 shape, {size} x {size} latents, {_name(dtype)}": rows}


def _reached(time_saved: float, macs: float) -> dict[str, float]:
    """The share of multiply-accumulates that is saved, and how much of that is reached in time."""
    return {"MACs saved": macs, "reached": time_saved / macs}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def ptdit(rounds: int, dtype: torch.dtype, size: int) -> Tables:
    """Blocks of PixArt-alpha's shape, with full and with proxy attention, at latents of a size.

    A block is timed, and a whole network of 28 counted; what is not in blocks is less than a thousandth.
    """
    rows: dict[str, dict[str, float]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, kind in (("full attention", PixArtTransformer2DModel), ("PT-DiT", PTDiTTransformer2DModel)):
        config = {"caption_channels": 4096, "sample_size": 128}
        with torch.device("meta"):
            whole = kind(**config)
            macs = count_macs(partial(whole, **_pixart_inputs(size, torch.float32)))
        torch.manual_seed(0)
        calls[name] = partial(kind(**config, num_layers=1).eval().to(dtype), **_pixart_inputs(size, dtype))
        rows[name] = {"GMAC": macs / 1e9}
    times = interleaved(calls, rounds, 0, clock=CLOCK)
    for name, timing in times.items():
        rows[name]["s a block"] = timing.median
    saved = 1 - rows["PT-DiT"]["GMAC"] / rows["full attention"]["GMAC"]
    time_saved = 1 - 1 / times["PT-DiT"].speedup(times["full attention"])
    rows["PT-DiT"] |= {"time saved": time_saved, **_reached(time_saved, saved)}
    return {f"PixArt-alpha's shape at {8 * size} x {8 * size} pixels, {_name(dtype)}": rows}


def _pixart_inputs(size: int, dtype: torch.dtype) -> dict[str, Any]:
    """One row of latents of a size, and a prompt of 120 tokens."""
    picture = {"resolution": torch.full((1, 2), 8.0 * size, dtype=dtype), "aspect_ratio": torch.ones(1, 1, dtype=dtype)}
    return {
        "hidden_states": torch.ones(1, 4, size, size, dtype=dtype),
        "encoder_hidden_states": torch.ones(1, 120, 4096, dtype=dtype),
        "timestep": torch.tensor([500]),
        "added_cond_kwargs": picture,
    }


def emoji_work() -> tuple[Any, Workload]:
    """emoji-sd, and the pictures that it draws."""
    pipe = load("emoji-sd")
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 20, "guidance_scale": 2.0, "height": 256, "width": 256}
    return pipe, Workload(PROMPTS, settings=settings)


def emoji(rounds: int, dtype: torch.dtype) -> Tables:  # noqa: ARG001
    """Likeness to the plain pictures of emoji-sd at 256 x 256 pixels, for each way to choose what is merged."""
    pipe, work = emoji_work()
    plain = work.pictures(pipe)
    rows = {FLOOR: likeness(other_seeds(work).pictures(pipe), plain)}
    for method in (
        TokenReduction(ratio=0.5, min_tokens=256),
        *(TokenReduction(ratio=0.5, score="informativity", alpha=alpha, min_tokens=256) for alpha in (0.02, 0.1, 0.5)),
        TokenReduction(ratio=0.5, min_tokens=256, interval=4),
        TokenReduction(min_tokens=256, calls=(0.5, 1.0)),
        TokenReduction("pool", min_tokens=256),
        TokenReduction("pool", min_tokens=256, calls=(0.5, 1.0)),
    ):
        rows[method.to_text()] = _likeness(pipe, work, plain, method)
    return {f"emoji-sd at 256 x 256 pixels, {len(PROMPTS)} pictures, 20 steps": rows}


def _likeness(pipe: Any, work: Workload, plain: torch.Tensor, method: TokenReduction) -> dict[str, float]:
    with accelerate(pipe, method) as handle:
        pictures = work.pictures(pipe)
        return {"MACs saved": handle.report().macs_saved, **likeness(pictures, plain)}


def likeness(pictures: torch.Tensor, plain: torch.Tensor) -> dict[str, float]:
    """How like the plain ones pictures are."""
    quality = compare(pictures, plain)
    return {"PSNR": quality.psnr, "SSIM": quality.ssim}


PARTS: dict[str, Callable[[int, torch.dtype], Tables]] = {
    "sd15-64": partial(sd15, size=64),
    "sd15-128": partial(sd15, size=128),
    "emoji-sd": emoji,
    "ptdit-1024": partial(ptdit, size=128),
    "ptdit-2048": partial(ptdit, size=256),
}


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only these; all by default.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds of each measurement of time.")
@click.option("--dtype", default="float32", type=click.Choice(["float32", "bfloat16"]), help="Of the SD 1.5 shape.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here, and a table beside it.")
def command(parts: tuple[str, ...], rounds: int, dtype: str, file: Path | None) -> None:
    """What fewer tokens save, and what they cost in likeness."""
    torch.set_grad_enabled(False)
    figures: dict[str, Any] = {"machine": asdict(machine())}
    text = f"# Fewer tokens, measured\n\n`python {' '.join(sys.argv)}`, seconds {KIND}\n\n"
    for part in parts or PARTS:
        figures[part] = PARTS[part](rounds, getattr(torch, dtype))
        text += markdown(figures[part]) + "\n"
        click.echo(markdown(figures[part]))
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(text, encoding="utf-8")
