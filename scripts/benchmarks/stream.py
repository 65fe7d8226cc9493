"""The streaming engine: guidance, stream batch, slot caches, and what happens around the network."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from benchmarks.engines import GUIDANCES, STAGES, engine, filled
from benchmarks.movies import SIZE, films, movie
from benchmarks.shapes import sd15_unet, stream_pipeline
from benchmarks.tables import FLOOR
from benchmarks.turbo import turbo

from diffaccel import DeepCache, SlotCache, StreamEngine, Taylor, Threshold
from diffaccel.attach.macs import count_macs
from diffaccel.measure import interleaved
from diffaccel.models import load, load_lora, load_vae
from diffaccel.stream.images import to_frames

CACHES = {
    f"{key}, interval {interval}, branch {branch}{f', Taylor({order})' if order else ''}": SlotCache(
        DeepCache(interval=interval, branch=branch, forecast=Taylor(order) if order else None), key
    )
    for key, interval, branch, order in (
        ("stage", 2, 0, 0),
        ("stage", 3, 2, 0),
        ("stage", 3, 2, 1),
        ("stage", 3, 2, 2),
        ("stage", 4, 3, 2),
        ("frame", 2, 0, 0),
        ("frame", 2, 2, 0),
    )
} | {
    f"stage, by motion, branch {branch}, Taylor(2)": SlotCache(
        DeepCache(schedule=Threshold(0.15, max_reuse=reuse), branch=branch, forecast=Taylor(2))
    )
    for branch, reuse in ((2, 2), (3, 3))
}
TWO: dict[str, Any] = {"timestep_indices": STAGES[2], "guidance": GUIDANCES["none"]}
LOOP = 69  # frames of the circle at 2 pixels a frame


def compared(engines: Mapping[str, StreamEngine], rounds: int, ticks: int = 1) -> dict[str, dict[str, float]]:
    """Frame rates relative to the first engine's: of whole frames and of the network alone, each with its ceiling.

    Milliseconds are those of one frame. A ceiling is the ratio of the multiply-accumulates that were really executed,
    over ``ticks`` ticks.
    """
    frames = list(movie(2.0, LOOP))
    pushes = {name: filled(e, frames) for name, e in engines.items()}
    work = {n: lambda push=push: [push() for _ in range(ticks)] for n, push in pushes.items()}
    macs = {name: count_macs(run) for name, run in work.items()}
    buffer = next(iter(engines.values())).config.frame_buffer
    vae = ticks * buffer * count_macs(lambda: codec(next(iter(engines.values())), frames[0]))
    each = ticks * buffer
    network: dict[str, list[float]] = {name: [] for name in engines}

    def timed(name: str) -> None:
        outputs = work[name]()
        network[name].append(sum(finished[0].timings["denoise"] for finished in outputs))

    times = interleaved({name: lambda name=name: timed(name) for name in engines}, rounds)
    medians = {name: timing.median for name, timing in times.items()}
    first, alone = next(iter(engines)), {name: statistics.median(v) for name, v in network.items()}
    return {
        name: {
            "ms": 1000 * medians[name] / each,
            "ratio": medians[first] / medians[name],
            "ceiling": macs[first] / macs[name],
            "network ms": alone[name] / each,
            "network ratio": alone[first] / alone[name],
            "network ceiling": (macs[first] - vae) / (macs[name] - vae),
        }
        for name in engines
    }


def codec(stream: StreamEngine, frame: Any) -> None:
    """Encode and decode one frame."""
    pixels = to_frames(frame, stream.config.height, stream.config.width, "crop")
    stream._codec.decode(stream._codec.encode(pixels))


def guidance(pipe: Any, rounds: int, size: int = SIZE, buffers: Sequence[int] = (1, 8)) -> dict[str, Any]:
    """Frame rates at four stages, relative to full guidance, by frame buffer."""
    return {
        f"frame buffer {n}": compared(
            {name: engine(pipe, size, guidance=g, frame_buffer=n) for name, g in GUIDANCES.items()}, rounds
        )
        for n in buffers
    }


def larger(pipe: Any, rounds: int) -> dict[str, Any]:
    """The same with the shape of Stable Diffusion 1.5 at 256 x 256 pixels."""
    return guidance(stream_pipeline(pipe, sd15_unet(), torch.bfloat16), rounds, 256, (1, 4))


def buffers(pipe: Any, rounds: int) -> dict[str, Any]:
    """Milliseconds of a frame by the size of the frame buffer, at two stages with self-negative guidance."""
    frames, settings = list(movie(2.0, LOOP)), {"timestep_indices": STAGES[2], "guidance": GUIDANCES["self"]}
    work = {n: filled(engine(pipe, frame_buffer=n, **settings), frames) for n in (1, 2, 4, 8, 16)}
    times = interleaved({str(n): push for n, push in work.items()}, rounds)
    each = {n: 1000 * times[str(n)].median / n for n in work}
    return {f"{n} frames": {"ms": ms, "ratio": each[1] / ms} for n, ms in each.items()}


def batching(pipe: Any, rounds: int) -> dict[str, Any]:
    """Stream batch against sequential mode, by number of stages."""
    frames, result = list(movie(2.0, 24)), {}
    for stages, indices in STAGES.items():
        settings = {"timestep_indices": indices, "guidance": GUIDANCES["none"]}
        both = {"batch": True, "sequential": False}
        work = {name: filled(engine(pipe, stream_batch=b, **settings), frames) for name, b in both.items()}
        times = interleaved(work, rounds)
        result[f"{stages} stages"] = {
            **{f"{name} ms": 1000 * t.median for name, t in times.items()},
            "ratio": times["batch"].speedup(times["sequential"]),
        }
    return result


def psnr(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """PSNR of the mean squared error over all frames, in dB; infinite where they are equal."""
    error = float(torch.stack([(a - b).square().mean() for a, b in zip(ours, expected, strict=True)]).mean())
    return float("inf") if error == 0 else float(-10 * torch.tensor(error).log10())


def pictures(stream: StreamEngine, frames: list[Any]) -> list[torch.Tensor]:
    """Finished pictures in the order of their frames."""
    return [output.image for output in stream.stream(frames)]


def held(plain: list[torch.Tensor], every: int) -> list[torch.Tensor]:
    """What a viewer sees who is shown every n-th picture, and the last one again in between."""
    return [plain[i - i % every] for i in range(len(plain))]


def cache_quality(pipe: Any, length: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """PSNR to the stream without a cache and share of rows computed, by motion; beside it, the last output again."""
    result: dict[str, Any] = {}
    for motion, frames in films(length).items():
        plain = pictures(engine(pipe, **settings), frames)
        row = {}
        for name, cache in CACHES.items():
            stream = engine(pipe, cache=cache, **settings)
            row[name] = {"dB": psnr(pictures(stream, frames), plain), "computed": computed(stream)}
        again = {f"last output again, {n}": {"dB": psnr(held(plain, n), plain), "computed": 1 / n} for n in (2, 3)}
        result[motion] = row | again | {FLOOR: apart(pipe, frames, plain, settings)}
    return result


def apart(pipe: Any, frames: list[Any], plain: list[torch.Tensor], settings: Mapping[str, Any]) -> dict[str, float]:
    """How far the stream of another seed is from the plain one, whose pictures are at hand."""
    return {"dB": psnr(pictures(engine(pipe, seed=1, **settings), frames), plain), "computed": 1.0}


def floor_alone(length: int) -> dict[str, dict[str, float]]:
    """The same by motion, on the bundled model, for published figures that lack it."""
    pipe, result = subject(), {}
    for motion, frames in films(length).items():
        result[motion] = apart(pipe, frames, pictures(engine(pipe, **TWO), frames), TWO)
    return result


def computed(stream: StreamEngine) -> float:
    """The share of rows that computed every block."""
    report = stream.report()
    return report.computed_rows / (report.computed_rows + report.replayed_rows)


def cache_speed(pipe: Any, rounds: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Frame rate against the plain stream batch, over twelve ticks: a multiple of the intervals."""
    engines = {"plain": engine(pipe, **settings)} | {n: engine(pipe, cache=c, **settings) for n, c in CACHES.items()}
    return compared(engines, rounds, ticks=12)


def overhead(pipe: Any, rounds: int) -> dict[str, float]:
    """Milliseconds of a tick without encoding, network and decoding."""
    stream = engine(pipe, guidance=GUIDANCES["self"], output_type="latent")
    stream._network.predict = lambda latents, *_: latents  # type: ignore[method-assign]
    clean = torch.zeros(1, *stream._builder.latent_shape)
    stream._codec.encode = lambda _: clean  # type: ignore[method-assign]
    tick = interleaved({"tick": filled(stream, list(movie(2.0, 4)))}, rounds)["tick"]
    return {"ms per tick": 1000 * tick.median}


def subject(model: str = "emoji-sd", lora: str = "emoji-lcm-lora", vae: str = "emoji-vae-small") -> Any:
    """The pipeline that streams, with a LoRA for few steps and another autoencoder, where they are named."""
    pipe = load(model)
    if lora:
        load_lora(pipe, lora)
        pipe.fuse_lora()
    if vae:
        pipe.vae = load_vae(vae, dtype=pipe.dtype, device=pipe.device)
    return pipe


PARTS = ("guidance", "batch", "buffer", "cache", "overhead")
SHAPES = ("sd15", "turbo")  # large ones with random weights


@click.command()
@click.option("--model", default="emoji-sd", show_default=True, help="Bundled model, local folder or Hub id.")
@click.option("--lora", default="emoji-lcm-lora", show_default=True, help="Few-step LoRA to fuse; '' for none.")
@click.option("--vae", default="emoji-vae-small", show_default=True, help="Autoencoder; '' for the model's own.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(PARTS + SHAPES),
    help=f"Only these.  [default: {', '.join(PARTS)}]",
)
@click.option("--rounds", default=9, show_default=True, help="Interleaved rounds of each measurement.")
@click.option("--frames", default=48, show_default=True, help="Length of the films that caches are measured on.")
@click.option("--size", default=512, show_default=True, help="Height and width in pixels of the part turbo.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures to this file, too.")
def command(
    model: str, lora: str, vae: str, parts: tuple[str, ...], rounds: int, frames: int, size: int, file: Path | None
) -> None:
    """Frame rates of the streaming engine as ratios, and what slot caches cost in quality."""
    pipe = subject(model, lora, vae)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "guidance": lambda: guidance(pipe, rounds),
        "batch": lambda: batching(pipe, rounds),
        "buffer": lambda: buffers(pipe, rounds),
        "cache": lambda: {"speed": cache_speed(pipe, rounds, TWO), "psnr": cache_quality(pipe, frames, TWO)},
        "overhead": lambda: overhead(pipe, 20 * rounds),
        "sd15": lambda: larger(pipe, max(3, rounds // 3)),
        "turbo": lambda: turbo(pipe, max(3, rounds // 3), size),
    }
    figures = {}
    for part in parts or PARTS:
        figures[part] = measures[part]()
        show(part, figures[part])
    if file:
        file.write_text(json.dumps(figures, indent=1))


def show(title: str, values: Mapping[str, Any], indent: int = 0) -> None:
    """Print figures as an indented table."""
    click.echo(" " * indent + title)
    for name, value in values.items():
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            show(name, value, indent + 2)
        elif isinstance(value, Mapping):
            cells = ", ".join(f"{key} {number:.2f}" for key, number in value.items())
            click.echo(" " * (indent + 2) + f"{name:28} {cells}")
        else:
            click.echo(" " * (indent + 2) + f"{name:20} {value:.3f}")
