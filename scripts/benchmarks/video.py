"""Videos by chunks: against computing the prefix anew, over 200 chunks, in a stream batch, with feature caches.

    python scripts/bench.py video --part prefix --network Wan --json benchmarks/video.json

adds one part to the file; without `--part` all are measured. Seconds are of the processor, on one thread, so that other
work on the machine does not count; those of the part `wan` are of the clock.
"""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import diffusers
import psutil
import torch
from benchmarks.streams import matrix_rate
from benchmarks.tables import markdown
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatteTransformer3DModel,
    WanTransformer3DModel,
)

from diffaccel import CausalContext, DeepCache, FullGuidance, VideoEngine, models
from diffaccel.attach.macs import count_macs
from diffaccel.measure import compare, interleaved
from diffaccel.measure.timing import Timing
from diffaccel.reuse.schedule import Steps

EARLY = ((0, 1, 2, 4, 6), (0, 1, 2, 3, 4, 6))  # of eight: the first calls of a chunk lay out what it shows
PARTS = ("prefix", "level", "stream", "cache", "play")
NETWORKS = ("Latte", "Wan")
STEPS, CHUNK, SIDE = 8, 4, 16  # latents of 16 x 16 are 64 tokens a frame
FEW = 4
LARGER = {"Latte": (256, 3), "Wan": (256, 3, 1024)}  # arithmetic outweighs what every call takes besides


def latte(width: int = 64, depth: int = 2) -> Any:
    """A Latte of random weights."""
    torch.manual_seed(0)
    return LatteTransformer3DModel(
        num_attention_heads=width // 32, attention_head_dim=32, in_channels=4, out_channels=4, num_layers=depth,
        patch_size=2, cross_attention_dim=width, attention_bias=True, sample_size=SIDE,
        activation_fn="gelu-approximate", norm_type="ada_norm_single", norm_elementwise_affine=False,
        caption_channels=64, num_embeds_ada_norm=1000, video_length=4 * CHUNK * 4,
    ).eval()  # fmt: skip


def wan(width: int = 64, depth: int = 2, ffn: int = 256, head: int = 32) -> Any:
    """A Wan of random weights."""
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=width // head, attention_head_dim=head, in_channels=4, out_channels=4, text_dim=64,
        freq_dim=64, ffn_dim=ffn, num_layers=depth,
    ).eval()  # fmt: skip


def pipeline(model: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """What an engine reads of a pipeline."""
    flow = isinstance(model, WanTransformer3DModel)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0) if flow else DPMSolverMultistepScheduler()
    words = torch.zeros(1, 16, 64, dtype=dtype, device=device)
    return SimpleNamespace(
        transformer=model.to(device, dtype), vae=AutoencoderTiny().eval().to(device, dtype), scheduler=scheduler,
        config=SimpleNamespace(expand_timesteps=False), encode_prompt=lambda *_, **__: (words, None),
        _execution_device=device,
    )  # fmt: skip


def engine(pipe: Any, **settings: Any) -> VideoEngine:
    """A video in latents."""
    chosen = {"prompt": "", "chunk": CHUNK, "num_steps": STEPS, "height": 8 * SIDE, "width": 8 * SIDE}
    return VideoEngine(pipe, **{**chosen, "output_type": "latent", **settings})


def some(video: VideoEngine, chunks: int) -> None:
    """Make so many chunks of a new video."""
    video.reset()
    for _ in itertools.islice(video, chunks):
        pass


@torch.no_grad()
def recomputed(video: VideoEngine, chunks: int) -> None:
    """The same number of network calls, each on all frames so far, as without any cache."""
    network = video._network
    words = {"encoder_hidden_states": video.pipe.encode_prompt()[0]}
    model, latte_like = network.model, isinstance(network.model, LatteTransformer3DModel)
    for frames in range(CHUNK, (chunks + 1) * CHUNK, CHUNK):
        latents = torch.zeros(1, 4, frames, SIDE, SIDE)
        if latte_like:  # its stock call has one length: the table of positions is cut to each
            table, model.temp_pos_embed = model.temp_pos_embed, model.temp_pos_embed[:, :frames]
        for _ in range(STEPS):
            model(latents, timestep=torch.tensor([500]), encoder_hidden_states=words["encoder_hidden_states"])
        if latte_like:
            model.temp_pos_embed = table


def taking_turns(work: Mapping[str, Callable[[], Any]], rounds: int, warmup: int) -> Mapping[str, Timing]:
    """Seconds of the processor."""
    return interleaved(work, rounds, warmup, clock=time.process_time)


def build(name: str, *size: int) -> Any:
    """A network by its name."""
    return {"Latte": latte, "Wan": wan}[name](*size)


def prefix(networks: Sequence[str], rounds: int, chunks: int) -> dict[str, Any]:
    """Chunks against recomputing the prefix at every step: multiply-accumulates, and time."""
    found: dict[str, Any] = {}
    for name in networks:
        pipe = pipeline(build(name, *LARGER[name]))
        positions = "absolute" if name == "Latte" else "auto"
        whole = engine(pipe, context=CausalContext(window=None, positions=positions))
        windowed = engine(pipe, context=CausalContext(window=8))
        work: dict[str, Callable[[], None]] = {
            "prefix anew": lambda whole=whole: recomputed(whole, chunks),
            "all frames kept": lambda whole=whole: some(whole, chunks),
            "window of 8": lambda windowed=windowed: some(windowed, chunks),
        }
        macs = {row: count_macs(run) for row, run in work.items()}
        times = taking_turns(work, rounds, 0)
        first = next(iter(work))
        found[f"Against a prefix computed anew: {name}, {chunks} chunks of {CHUNK} frames, {STEPS} steps"] = {
            row: {
                "GMAC": macs[row] / 1e9,
                "fewer": macs[first] / macs[row],
                "seconds": times[row].median,
                "faster": times[row].speedup(times[first]),
            }
            for row in work
        }
    return found


def level(networks: Sequence[str], chunks: int) -> dict[str, Any]:
    """Seconds and memory of a chunk, early and late in a long video."""
    found: dict[str, dict[str, Any]] = {}
    process = psutil.Process(os.getpid())
    quarter = chunks // 4
    for name in networks:
        video = engine(pipeline(build(name, 32, 1)), context=CausalContext(window=8), num_steps=2)
        seconds, context, memory = [], [], []
        for _ in range(chunks):
            start = time.process_time()
            video.next()
            seconds.append(time.process_time() - start)
            context.append(video.report().context_bytes / 2**20)
            memory.append(process.memory_info().rss / 2**20)
        early, late = (statistics.median(part) for part in (seconds[4 : 4 + quarter], seconds[-quarter:]))
        found[name] = {
            "ms early": 1000 * early, "ms late": 1000 * late, "late / early": late / early,
            "context, MiB early": context[4], "late": context[-1], "process, MiB early": memory[3 + quarter],
            "at the end": memory[-1],
        }  # fmt: skip
    return {f"Chunks 5 to {4 + quarter} and the last {quarter} of {chunks}, a window of 8": found}


def stream(networks: Sequence[str], rounds: int, chunks: int = 6) -> dict[str, Any]:
    """A stream batch of four stages against one chunk after the other, once it is full."""
    found: dict[str, dict[str, Any]] = {}
    for name in networks:
        pipe = pipeline(build(name))
        videos = {
            kind: engine(pipe, num_steps=FEW, context=CausalContext(window=8), stream_batch=kind != "one by one")
            for kind in ("one by one", "stream batch")
        }
        for video in videos.values():
            some(video, 3)

        def work(video: VideoEngine) -> Callable[[], Any]:
            return lambda: [video.next() for _ in range(chunks)]

        runs = {kind: work(video) for kind, video in videos.items()}
        macs = {kind: count_macs(run) for kind, run in runs.items()}
        times = taking_turns(runs, rounds, 1)
        for kind, timing in times.items():
            found[f"{name}, {kind}"] = {
                "GMAC a chunk": macs[kind] / chunks / 1e9,
                "ms a chunk": 1000 * timing.median / chunks,
                "frames, ratio": timing.speedup(times["one by one"]),
            }
    return {f"{FEW} stages": found}


def bundled() -> Any:
    """The bundled video model."""
    return models.load("emoji-video")


def play_settings() -> dict[str, Any]:
    """How it is meant to run."""
    best = models.defaults("emoji-video")
    return {"prompt": "a rocket flies up", "num_steps": best["steps"], "guidance": FullGuidance(best["guidance_scale"])}


def cache(rounds: int, chunks: int) -> dict[str, Any]:
    """Feature caches between the steps of a chunk, on the bundled model."""
    pipe = bundled()
    methods = {
        "none": None,
        "DeepCache(2)": DeepCache(interval=2),
        **{f"DeepCache, all in calls {list(calls)}": DeepCache(schedule=Steps(calls)) for calls in EARLY},
    }
    videos = {name: VideoEngine(pipe, cache=method, **play_settings()) for name, method in methods.items()}
    frames: dict[str, list[Any]] = {}

    def run(name: str) -> None:
        videos[name].reset()
        frames[name] = [frame for chunk in itertools.islice(videos[name], chunks) for frame in chunk.frames]

    work = {name: lambda name=name: run(name) for name in videos}
    macs = {name: count_macs(each) for name, each in work.items()}
    times = taking_turns(work, rounds, 0)
    rows = {}
    for name in videos:
        quality = {} if name == "none" else {"dB": compare(frames[name], frames["none"]).psnr}
        rows[name] = {
            "seconds": times[name].median,
            "faster": times[name].speedup(times["none"]),
            "ceiling": macs["none"] / macs[name],
            **quality,
        }
    return {f"emoji-video, {chunks} chunks": rows}


def play(rounds: int, chunks: int) -> dict[str, Any]:
    """Pictures a second of the bundled model, and as many as its multiply-accumulates would allow."""
    pipe = bundled()
    given = [frame for chunk in itertools.islice(VideoEngine(pipe, **play_settings()), 1) for frame in chunk.frames]
    kinds: dict[str, dict[str, Any]] = {
        "8 steps, guidance": {},
        "8 steps": {"guidance": None},
        "8 steps, DeepCache(2)": {"guidance": None, "cache": DeepCache(interval=2, branch=0)},
        "4 steps": {"guidance": None, "num_steps": 4},
        "4 steps, DeepCache(2)": {"guidance": None, "num_steps": 4, "cache": DeepCache(interval=2, branch=0)},
        "4 steps, stream batch": {"guidance": None, "num_steps": 4, "stream_batch": True},
        "2 steps": {"guidance": None, "num_steps": 2},
    }
    videos = {name: VideoEngine(pipe, given=given, **{**play_settings(), **more}) for name, more in kinds.items()}
    work: dict[str, Callable[[], Any]] = {
        name: lambda video=video: [video.next() for _ in range(chunks)] for name, video in videos.items()
    }
    macs = {name: count_macs(run) for name, run in work.items()}
    square = torch.randn(512, 512)
    work["matrices"] = lambda: [square @ square for _ in range(20)]
    times = taking_turns(work, rounds, 0)
    speed = 20 * 512**3 / times["matrices"].median  # multiply-accumulates a second
    pictures = chunks * CHUNK
    rows: dict[str, dict[str, float]] = {
        name: {
            "pictures a second": pictures / times[name].median,
            "as matrices would": speed * pictures / macs[name],
            "MMAC a picture": macs[name] / pictures / 1e6,
        }
        for name in videos
    }
    rows["product of 512 x 512 matrices"] = {"GMAC a second": speed / 1e9}
    return {"emoji-video on one thread": rows}


def large(layers: int, side: int, dtype: str, device: str) -> dict[str, Any]:
    """The shape of Wan 2.1 1.3B with random weights: a chunk of three latent frames and what it costs.

    On a processor, beside what a large matrix product takes for as many multiply-accumulates.
    """
    model = wan(1536, layers, 8960, 128)
    pipe = pipeline(model, getattr(torch, dtype), device)
    video = engine(pipe, chunk=3, num_steps=FEW, context=CausalContext(window=9), height=8 * side, width=8 * side)
    for _ in range(3):
        video.next()
    macs = count_macs(video.next) / 1e9
    chunk = video.next()
    report = video.report()
    per_call = chunk.seconds["denoise"] / FEW
    bound = {"as matrices would": macs * 1e9 / matrix_rate(model.dtype)} if device == "cpu" else {}
    return {
        f"Wan 1.3B shape, {layers} of 30 layers, latents of {side} x {side}, {dtype} on {device}": {
            "a chunk": {
                "GMAC": macs,
                "seconds": sum(chunk.seconds.values()),
                **bound,
                "denoise": chunk.seconds["denoise"],
                "a call": per_call,
                "commit": chunk.seconds["context"],
                "context MiB": report.context_bytes / 2**20,
            }
        }
    }


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice((*PARTS, "wan")), help="Only these.")
@click.option("--network", "networks", multiple=True, type=click.Choice(NETWORKS), default=NETWORKS, help="Only these.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds of each measurement.")
@click.option("--chunks", default=10, show_default=True, help="Length of videos against a prefix computed anew.")
@click.option("--long", default=200, show_default=True, help="Chunks of the long video.")
@click.option("--layers", default=30, show_default=True, help="Layers of the part wan.")
@click.option("--side", default=16, show_default=True, help="Side of its latents; 480p has 60 x 104.")
@click.option("--dtype", default="bfloat16", show_default=True, help="Of the part wan.")
@click.option("--device", default="cpu", show_default=True, help="Of the part wan.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Add the figures to this file, too.")
def command(
    parts: tuple[str, ...],
    networks: tuple[str, ...],
    rounds: int,
    chunks: int,
    long: int,
    layers: int,
    side: int,
    dtype: str,
    device: str,
    file: Path | None,
) -> None:
    """What videos by chunks save; `--part wan --device cuda` for a large network on an accelerator."""
    measures: Mapping[str, Callable[[], dict[str, Any]]] = {
        "prefix": lambda: prefix(networks, rounds, chunks),
        "level": lambda: level(networks, long),
        "stream": lambda: stream(networks, rounds),
        "cache": lambda: cache(rounds, 3),
        "play": lambda: play(rounds, 1),
        "wan": lambda: large(layers, side, dtype, device),
    }
    diffusers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    figures: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}
    for part in parts or PARTS:
        found = measures[part]()
        click.echo(markdown(found))
        for title, rows in found.items():
            figures.setdefault(part, {}).setdefault(title, {}).update(rows)
        if file:
            file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
            tables = [markdown(figures[name]) for name in (*PARTS, "wan") if name in figures]
            file.with_suffix(".md").write_text("# Videos by chunks\n\n" + "\n".join(tables), encoding="utf-8")
