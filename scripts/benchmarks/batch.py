"""Batch generation against a bare loop over the stock pipeline: speed, prompt accuracy, and time to the first step."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch

from diffaccel.batch.jobs import Job, batches
from diffaccel.batch.render import Renderer
from diffaccel.batch.run import BatchRun
from diffaccel.batch.store import OutputFolder
from diffaccel.measure import Judge, captions, interleaved, machine
from diffaccel.models import defaults, load

CACHE, GUIDANCE = "deepcache:interval=3,branch=0,forecast=taylor(1)", "one-time:renew=3,held=difference"
BARS = {"plain ratio": 0.97, "cached ratio": 2.0, "accuracy lost": 0.01, "start-up seconds": 6.0}
PARTS = ("speed", "accuracy", "startup")
FIRST_STEP = """
import os, sys
from torch.nn.modules.module import register_module_forward_pre_hook
def first(module, _args):
    if type(module).__name__ == "UNet2DConditionModel":
        print("first step", flush=True)
        os._exit(0)
register_module_forward_pre_hook(first)
from diffaccel.cli import main
main(["generate", "a red heart", "--output", sys.argv[1]])
"""


def jobs_of(model: str, prompts: Sequence[str], seed: int, **settings: Any) -> list[Job]:
    """One job for each prompt, with the model's own settings but without caching."""
    fixed = {**defaults(model), "cache": "none", **settings}
    return [
        Job(id=f"{seed}-{index}", prompt=prompt, seed=1000 * seed + index, model=model, dtype="float32", **fixed)
        for index, prompt in enumerate(prompts)
    ]


def bare_loop(pipe: Any, jobs: Sequence[Job], batch_size: int, folder: Path) -> None:
    """What a user writes who has diffusers alone: call the pipeline on batches, save the pictures."""
    for batch in batches(jobs, batch_size):
        first = batch[0]
        images = pipe(
            [job.prompt for job in batch],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            width=first.width,
            height=first.height,
            generator=[torch.Generator().manual_seed(job.seed) for job in batch],
        ).images
        for job, image in zip(batch, images, strict=True):
            image.save(folder / f"{job.id}.png")


def work(
    model: str, count: int, rounds: int, batch_size: int, place: Path, stack: ExitStack
) -> dict[str, Callable[[], None]]:
    """The candidates. Each round has prompts that none has seen before; each candidate has a pipeline of its own."""

    def rows() -> Iterator[Sequence[Job]]:
        things = captions()
        for number in range(rounds + 1):
            yield jobs_of(model, [things[(number * count + index) % len(things)] for index in range(count)], number)

    def bare(pipe: Any, place: Path, turns: Iterator[Sequence[Job]]) -> Callable[[], None]:
        place.mkdir()
        return lambda: bare_loop(pipe, next(turns), batch_size, place)

    def ours(turns: Iterator[Sequence[Job]], name: str, dtype: str = "float32", **settings: str) -> Callable[[], None]:
        renderer = stack.enter_context(Renderer(load(model, dtype=dtype, device="cpu")))
        folder = stack.enter_context(OutputFolder(place / name))
        settings["dtype"] = dtype
        return lambda: (
            BatchRun(renderer, folder, batch_size=batch_size)([replace(job, **settings) for job in next(turns)])
            and None
        )

    stock = load(model, dtype="float32", device="cpu")
    stock.set_progress_bar_config(disable=True)
    return {
        "bare loop": bare(stock, place / "bare", rows()),
        "plain": ours(rows(), "plain"),
        "DeepCache": ours(rows(), "deepcache", cache=CACHE),
        "cached": ours(rows(), "cached", cache=CACHE, guidance=GUIDANCE),
        "bfloat16": ours(rows(), "bfloat16", "bfloat16"),
        "cached bfloat16": ours(rows(), "cached-bfloat16", "bfloat16", cache=CACHE, guidance=GUIDANCE),
    }


def speed(model: str, count: int, rounds: int, batch_size: int) -> dict[str, float]:
    """Seconds a picture, and how many times as fast as the bare loop: medians over rounds that take turns."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        timings = interleaved(work(model, count, rounds, batch_size, Path(place), stack), rounds)
    figures = {f"{name} seconds": timing.median / count for name, timing in timings.items()}
    ratios = {f"{name} ratio": timing.speedup(timings["bare loop"]) for name, timing in timings.items()}
    return {**figures, **{name: ratio for name, ratio in ratios.items() if name != "bare loop ratio"}}


def accuracy(model: str, prompts: int, seeds: int, batch_size: int) -> dict[str, float]:
    """Share of pictures whose caption is the nearest of all to emoji-clip, in each way, at the same seeds."""
    judge, chosen = Judge(captions()), captions()[:: max(1, len(captions()) // prompts)][:prompts]
    jobs = [job for seed in range(seeds) for job in jobs_of(model, chosen, seed)]
    cached = {"cache": CACHE, "guidance": GUIDANCE}
    ways: dict[str, tuple[str, dict[str, str]]] = {
        "plain": ("float32", {}),
        "cached": ("float32", cached),
        "bfloat16": ("bfloat16", {}),
        "cached bfloat16": ("bfloat16", cached),
    }
    figures = {}
    for name, (dtype, settings) in ways.items():
        asked = [replace(job, dtype=dtype, **settings) for job in jobs]
        with Renderer(load(model, dtype=dtype, device="cpu")) as renderer:
            pictures = [image for batch in batches(asked, batch_size) for image in renderer.render(batch).images]
        found = judge.accuracy(as_tensor(pictures), [job.prompt for job in asked])
        figures |= {f"{name} top-1": found.top1, f"{name} top-5": found.top5}
    return {**figures, "pictures": float(len(jobs)), "accuracy lost": figures["plain top-1"] - figures["cached top-1"]}


def as_tensor(pictures: Sequence[Any]) -> torch.Tensor:
    """Pictures as (n, 3, height, width) in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255


def startup(rounds: int) -> dict[str, float]:
    """Median seconds from the start of the process to the first call of the network, as the command line does it."""
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as place:
            start = time.perf_counter()
            command = [sys.executable, "-c", FIRST_STEP, place]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds.append(time.perf_counter() - start)
            assert "first step" in done.stdout, done.stderr
    return {"start-up seconds": median(seconds)}


@click.command()
@click.option("--model", default="emoji-sd", show_default=True, help="Bundled model, local folder or Hub id.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only these.")
@click.option("--batch-size", default=8, show_default=True, help="Of all candidates.")
@click.option("--pictures", default=16, show_default=True, help="A round, in the measurement of speed.")
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds.")
@click.option("--prompts", default=248, show_default=True, help="Captions that accuracy is measured on.")
@click.option("--seeds", default=1, show_default=True, help="Pictures of each caption.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures to this file, too.")
def command(
    model: str,
    parts: tuple[str, ...],
    batch_size: int,
    pictures: int,
    rounds: int,
    prompts: int,
    seeds: int,
    file: Path | None,
) -> None:
    """Batch generation against a bare loop over the stock pipeline."""
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "speed": lambda: speed(model, pictures, rounds, batch_size),
        "accuracy": lambda: accuracy(model, prompts, seeds, batch_size),
        "startup": lambda: startup(rounds),
    }
    figures: dict[str, float] = {}
    for part in parts or PARTS:
        figures |= measures[part]()
    missed = [name for name, value in figures.items() if name in BARS and not holds(name, value)]
    for name, value in figures.items():
        bar = f"  bar {BARS[name]:g}: {'MISSED' if name in missed else 'holds'}" if name in BARS else ""
        click.echo(f"{name:20} {value:.4f}{bar}")
    if file:
        file.write_text(json.dumps({"machine": vars(machine()), "settings": [CACHE, GUIDANCE], **figures}, indent=1))
    raise SystemExit(1 if missed else 0)


def holds(name: str, value: float) -> bool:
    """Whether a figure reaches its bar; of ratios, more is better, of everything else less."""
    return value >= BARS[name] if name.endswith("ratio") else value <= BARS[name]
