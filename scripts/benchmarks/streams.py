"""Many streams in one host, beside as many engines that take turns: total frame rate, latency, rows a call.

All candidates paint the same moving drawings at two stages, each stream with a prompt and a seed of its own. Engines
that take turns are pushed one after another on one thread; streams of a host each on their own, two calls at a time.
Rounds are interleaved.
"""

import json
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from benchmarks.engines import GUIDANCES, STAGES
from benchmarks.movies import SIZE, movie
from benchmarks.shapes import sd15_unet, stream_pipeline
from benchmarks.stream import show

from diffaccel import DeepCache, StreamEngine, StreamHost, Taylor, Threshold
from diffaccel.attach.macs import count_macs
from diffaccel.models import load, load_lora, load_vae

PROMPTS = ("a red heart", "a green apple", "a cat", "a sunflower", "a burger", "a rainbow", "a ladybug", "a blue star")
CLOCK = time.perf_counter if torch.accelerator.is_available() else time.thread_time  # processors may be busy
CACHE = DeepCache(schedule=Threshold(0.15, max_reuse=3), branch=3, forecast=Taylor(2))
"""What `diffaccel live` uses."""
Push = Callable[[], list[float]]
"""Paints one frame of every stream and gives the seconds that each took."""


def settings(k: int, cache: Any, size: int) -> dict[str, Any]:
    """Of the k-th stream."""
    common = {"timestep_indices": STAGES[2], "guidance": GUIDANCES["self"], "height": size, "width": size}
    return {**common, "prompt": PROMPTS[k % len(PROMPTS)], "seed": k, "cache": cache, "output_type": "pt"}


def turns(pipe: Any, count: int, cache: Any, size: int) -> Push:
    """Engines that take turns."""
    engines = [StreamEngine(pipe, **settings(k, cache, size)) for k in range(count)]
    frames = films(count, size)
    position = iter(range(10**9))

    def push() -> list[float]:
        step, begin, took = next(position), time.perf_counter(), []
        for engine, film in zip(engines, frames, strict=True):
            engine.push(film[step % len(film)])
            took.append(time.perf_counter() - begin)  # all frames came at once
        return took

    return push


def hosted(host: StreamHost, count: int, cache: Any, size: int) -> Push:
    """Streams of one host, each on a thread of its own."""
    engines = [host.open(**settings(k, cache, size)) for k in range(count)]
    frames = films(count, size)
    position = iter(range(10**9))

    def push() -> list[float]:
        step, begin = next(position), time.perf_counter()
        took = [0.0] * count

        def paint(k: int) -> None:
            engines[k].push(frames[k][step % len(frames[k])])
            took[k] = time.perf_counter() - begin

        threads = [threading.Thread(target=paint, args=(k,)) for k in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return took

    return push


def films(count: int, size: int) -> list[list[torch.Tensor]]:
    """A moving drawing for each stream, ``(3, size, size)`` a frame."""
    kinds = [{"shape": shape, "speed": speed} for speed in (1.0, 2.0, 3.0, 4.0) for shape in ("heart", "star")]
    made = []
    for k in range(count):
        pictures = [picture.resize((size, size)) for picture in movie(frames=24, **kinds[k % len(kinds)])]
        made.append([torch.from_numpy(_array(picture)).movedim(-1, 0) / 255 for picture in pictures])
    return made


def _array(picture: Any) -> Any:
    import numpy as np

    return np.array(picture)


def compared(candidates: Mapping[str, Push], streams: int, rounds: int, ticks: int) -> dict[str, dict[str, float]]:
    """Total frames a second and p95 latency of each, relative to the first; `ticks` ticks of each in every round."""
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    ages: dict[str, list[float]] = {name: [] for name in candidates}
    for push in candidates.values():
        for _ in range(3):
            push()
    for _ in range(rounds):
        for name, push in candidates.items():
            begin = time.perf_counter()
            for _ in range(ticks):
                ages[name] += push()
            rates[name].append(ticks * streams / (time.perf_counter() - begin))
    first = statistics.median(rates[next(iter(candidates))])
    return {
        name: {
            "frames/s": statistics.median(rates[name]),
            "ratio": statistics.median(rates[name]) / first,
            "p95 ms": 1000 * statistics.quantiles(ages[name], n=20, method="inclusive")[-1],
        }
        for name in candidates
    }


def bundled(pipe: Any, streams: int, rounds: int) -> dict[str, Any]:
    """Engines in turn and streams of a host, plain and with the cache of `diffaccel live`."""
    result: dict[str, Any] = {}
    rows = 2 * streams
    hosts = {
        "plain": StreamHost(pipe, rows),
        "single": StreamHost(pipe, rows, concurrency=1),
        "cached": StreamHost(pipe, rows),
    }
    with hosts["plain"], hosts["single"], hosts["cached"]:
        candidates = {
            "engines in turn": turns(pipe, streams, None, SIZE),
            "one host, one call at a time": hosted(hosts["single"], streams, None, SIZE),
            "one host": hosted(hosts["plain"], streams, None, SIZE),
            "engines in turn, cached": turns(pipe, streams, CACHE, SIZE),
            "one host, cached": hosted(hosts["cached"], streams, CACHE, SIZE),
        }
        result[f"{streams} streams"] = compared(candidates, streams, rounds, ticks=8)
        result["rows a call"] = {name: host.report().rows_per_call["network"] for name, host in hosts.items()}
    return result


def batches(pipe: Any, rounds: int, size: int, sizes: Sequence[int], text: tuple[int, ...]) -> dict[str, Any]:
    """Rows per second of the network alone against batch size, and what share of a large matrix product's rate.

    On one thread, so that the share is one of a core, in that thread's processor time: others may be at work beside it.
    """
    torch.set_num_threads(1)
    unet, channels = pipe.unet, pipe.unet.config.in_channels
    side, dtype = size // 8, unet.dtype
    ceiling = matrix_rate(dtype)
    result = {}
    for n in sizes:
        x, prompt = torch.randn(n, channels, side, side, dtype=dtype), torch.randn(n, *text, dtype=dtype)

        def call(x: torch.Tensor = x, prompt: torch.Tensor = prompt) -> Any:
            with torch.no_grad():
                return unet(x, 500, encoder_hidden_states=prompt, return_dict=False)

        macs = count_macs(call)
        times = []
        for _ in range(rounds):
            begin = CLOCK()
            call()
            times.append(CLOCK() - begin)
        seconds = statistics.median(times)
        rates = {"rows/s": n / seconds, "ms a row": 1000 * seconds / n}
        result[f"{n} rows"] = {**rates, "of ceiling": macs / seconds / ceiling}
    return result


def matrix_rate(dtype: torch.dtype, size: int = 1536) -> float:
    """Multiply-accumulates a second of a large matrix product."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    times = []
    for _ in range(5):
        begin = CLOCK()
        a @ b
        times.append(CLOCK() - begin)
    return size**3 / min(times)


@click.command(help=__doc__)
@click.option("--part", "parts", multiple=True, type=click.Choice(["bundled", "batches", "sd15"]),
              default=("bundled", "batches"), show_default=True, help="What to measure.")  # fmt: skip
@click.option("--streams", default=8, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here, too.")
def command(parts: tuple[str, ...], streams: int, rounds: int, file: Path | None) -> None:
    """Measure, and print one line a figure."""
    pipe = load("emoji-sd")
    load_lora(pipe, "emoji-lcm-lora")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.vae = load_vae("emoji-vae-small", dtype=pipe.dtype, device=pipe.device)
    text = (77, int(pipe.unet.config.cross_attention_dim))
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "bundled": lambda: bundled(pipe, streams, rounds),
        "batches": lambda: batches(pipe, rounds, SIZE, (1, 2, 4, 8, 16), text),
        "sd15": lambda: batches(
            stream_pipeline(pipe, sd15_unet(), torch.bfloat16), max(3, rounds // 2), 256, (1, 2, 4, 8), (77, 768)
        ),
    }
    figures = {part: measures[part]() for part in parts}
    for part, values in figures.items():
        show(part, values)
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n")
