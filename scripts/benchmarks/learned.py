"""Learned routers on emoji-dit: train them, and compare them with fixed settings and fewer steps, held out."""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from diffaccel import BlockCache, IntervalCache, LearnedCache, Newton, Profile, Taylor, accelerate, train_routers
from diffaccel.measure import captions, machine
from diffaccel.measure.quality import compare
from diffaccel.measure.workload import Workload, other_seeds
from diffaccel.methods import Method, Routers
from diffaccel.models import load
from diffaccel.tune.router_picture import to_svg
from diffaccel.tune.router_training import TrainingPoint

MODEL = "emoji-dit"
SETTINGS = {"num_inference_steps": 20, "guidance_scale": 2.0}
TRAINED, HELD_OUT = 48, 16
TUNED = Path("benchmarks/tuned")
FIXED = [
    *(IntervalCache(n, forecast=f) for n in (2, 3, 4, 5) for f in (None, Taylor(1), Taylor(2), Newton(2))),
    *(BlockCache(threshold=t, forecast=f) for t in (0.1, 0.2, 0.3) for f in (None, Taylor(1))),
]
FEWER = (16, 12, 10, 8, 6)


@click.group()
def command() -> None:
    """Train and compare learned routers."""


@command.command()
@click.option("--objective", default="harmonica", show_default=True)
@click.option("--beta", type=float)
@click.option("--runs", type=int, default=120, show_default=True)
@click.option("--refresh", type=int, default=12, show_default=True)
@click.option("--batch-size", type=int, default=2, show_default=True)
@click.option("--learning-rate", type=float, default=0.1, show_default=True)
@click.option("--name", help="Of the profile.  [default: the objective]")
@click.option("--picture", type=click.Path(path_type=Path), default=Path("docs/pictures/routers.svg"))
def train(objective: str, name: str | None, picture: Path, **options: Any) -> None:
    """Train on the first captions; go on where a training with the same arguments was left."""
    pipe, words = _pipe(), _words()
    path = TUNED / f"{MODEL}-{name or objective}.json"
    start, used = time.perf_counter(), time.process_time()

    def say(point: TrainingPoint) -> None:
        click.echo(
            f"[{time.perf_counter() - start:5.0f} s] {point.run} of {point.runs}: objective {point.loss:.3e}, "
            f"{point.computed:.1%} compute"
        )

    routers = train_routers(pipe, words[:TRAINED], objective=objective, path=path, progress=say, **SETTINGS, **options)
    picture.write_text(to_svg(routers), encoding="utf-8")
    click.echo(f"{path}: {time.process_time() - used:.0f} s of processor")


@command.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), default=Path(f"benchmarks/learned-{MODEL}.json"))
def compared(files: tuple[Path, ...], output: Path) -> None:
    """Likeness to the plain pipeline and cost, of files of routers, tuned profiles and fixed settings, in one run."""
    pipe = _pipe()
    workload = Workload(tuple(_words()[TRAINED : TRAINED + HELD_OUT]), (7,), SETTINGS)
    plain = workload.pictures(pipe)
    rows = [{"name": "different seed", "macs": 1.0, **_likeness(other_seeds(workload).pictures(pipe), plain)}]
    for name, method in [*_learned(files), *((m.to_text(), m) for m in FIXED), *_profiles()]:
        with accelerate(pipe, method) as handle:
            found = _likeness(workload.pictures(pipe), plain)
            rows.append({"name": name, "macs": 1 - handle.report().macs_saved, **found})
        click.echo(f"{rows[-1]['macs']:.3f} {rows[-1]['psnr']:.2f} {name}")
    for steps in FEWER:
        found = _likeness(workload.pictures(pipe, num_inference_steps=steps), plain)
        rows.append({"name": f"{steps} steps", "macs": steps / SETTINGS["num_inference_steps"], **found})
        click.echo(f"{rows[-1]['macs']:.3f} {rows[-1]['psnr']:.2f} {rows[-1]['name']}")
    result = {"model": MODEL, "settings": SETTINGS, "pictures": HELD_OUT, "machine": asdict(machine()), "rows": rows}
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _learned(files: tuple[Path, ...]) -> Iterator[tuple[str, Method]]:
    """Routers, each named by its objective and its price."""
    for file in files:
        routers = Routers.load(file)
        training = routers.training
        assert training is not None
        yield f"{training.objective}, beta {training.beta:g}", LearnedCache(routers)


def _profiles() -> Iterator[tuple[str, Method]]:
    for interval in (2, 3, 5):
        yield f"profile {MODEL}-dpm++-{interval}", Profile(TUNED / f"{MODEL}-dpm++-{interval}.json")


def _likeness(pictures: Any, plain: Any) -> dict[str, float]:
    quality = compare(pictures, plain)
    return {"psnr": quality.psnr, "worst": quality.worst, "ssim": quality.ssim}


def _pipe() -> Any:
    pipe = load(MODEL, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _words() -> list[str]:
    """All captions, in an order of their own."""
    words = list(captions())
    random.Random(1).shuffle(words)
    return words
