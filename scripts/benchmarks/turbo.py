"""A stream on the shape of SD-Turbo, image to image: stream batch against sequential mode, the filter on and off.

On a CUDA device in float16, with the UNet compiled into CUDA graphs; elsewhere as it is, in bfloat16.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from benchmarks.engines import GUIDANCES, STAGES, engine, filled
from benchmarks.movies import movie
from benchmarks.shapes import stream_pipeline, turbo_unet

from diffaccel import SimilarityFilter
from diffaccel.measure import interleaved, joules

FRAMES = 24  # that move, and as many that stand still


def turbo(bundled: Any, rounds: int, size: int) -> dict[str, Any]:
    """Figures at ``size`` pixels, with the tokenizer and text encoder of a bundled pipeline and random weights."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    pipe = stream_pipeline(bundled, turbo_unet(), torch.float16 if device.type == "cuda" else torch.bfloat16)
    pipe.to(device)
    if device.type == "cuda":
        pipe.unet.forward = torch.compile(pipe.unet.forward, mode="reduce-overhead", fullgraph=True)
    return {"batch": batching(pipe, rounds, size), "filter": filtering(pipe, rounds, size)}


def batching(pipe: Any, rounds: int, size: int) -> dict[str, dict[str, float]]:
    """Stream batch against sequential mode, by number of stages: frames a second, latency from push to output."""
    frames, result = scaled(list(movie(2.0, FRAMES)), size), {}
    for stages, indices in STAGES.items():
        settings = {"timestep_indices": indices, "guidance": GUIDANCES["none"]}
        engines = {
            name: engine(pipe, size, stream_batch=batch, **settings)
            for name, batch in (("batch", True), ("sequential", False))
        }
        pushes = {name: filled(stream, frames) for name, stream in engines.items()}
        times = interleaved(pushes, rounds)
        row = {}
        for name, stream in engines.items():
            row[f"{name} frames/s"] = 1 / times[name].median
            row[f"{name} latency ms"] = latency(pushes[name], stream.latency, rounds)
        result[f"{stages} stages"] = row | {"ratio": times["batch"].speedup(times["sequential"])}
    return result


def latency(push: Callable[[], Any], ticks: int, rounds: int) -> float:
    """Milliseconds from push to output where frames come one after the other and nothing else runs."""
    outputs = [push() for _ in range(ticks + rounds)][ticks:]
    return statistics.median(finished[0].timings["latency"] for finished in outputs)


def filtering(pipe: Any, rounds: int, size: int) -> dict[str, Mapping[str, float]]:
    """A film that stands still in its second half, with the similarity filter and without.

    Joules are those that the device counts; without a counter there are none.
    """
    moving = scaled(list(movie(2.0, FRAMES)), size)
    film = moving + moving[-1:] * FRAMES
    settings = {"timestep_indices": STAGES[2], "guidance": GUIDANCES["none"]}
    filters = {"filter off": None, "filter on": SimilarityFilter(threshold=0.98, max_skip=10)}
    streams = {name: engine(pipe, size, similarity=similarity, **settings) for name, similarity in filters.items()}
    shows = {name: lambda stream=stream: list(stream.stream(film)) for name, stream in streams.items()}
    times = interleaved(shows, rounds)
    result: dict[str, Mapping[str, float]] = {}
    for name, stream in streams.items():
        energy = joules(lambda show=shows[name]: [show() for _ in range(rounds)])
        counted = {} if energy is None else {"joules a frame": energy / (rounds * len(film))}
        report = stream.report()
        result[name] = {
            "frames/s": len(film) / times[name].median,
            "skipped": report.frames_skipped / report.frames_in,
            **counted,
        }
    return result


def scaled(frames: list[Any], size: int) -> list[Any]:
    """Pictures of ``size`` by ``size`` pixels."""
    return [frame.resize((size, size)) for frame in frames]
