"""Tuned profiles against the best fixed setting of equal cost, held out: two networks, two samplers, three budgets."""

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from diffaccel.measure import captions, machine
from diffaccel.methods.recipe import UNITS
from diffaccel.models import load
from diffaccel.reuse.schedule import Uniform
from diffaccel.sampling.schedulers import sampler_named
from diffaccel.tune import Budget, Tuner, to_text
from diffaccel.tune.space import Space

MODELS = ("emoji-sd", "emoji-dit")
SAMPLERS = ("dpm++", "ddim")
INTERVALS = (2, 3, 5)  # budgets are the costs of caching at these intervals
STEPS = 20
PROMPTS = 36  # of which 6 are searched on, 8 choose, at two seeds each, and 12 confirm


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), default=MODELS)
@click.option("--sampler", "samplers", multiple=True, type=click.Choice(SAMPLERS), default=SAMPLERS)
@click.option("--runs", type=int, default=24, show_default=True, help="Real runs per search.")
@click.option("--calibration", type=int, default=6, show_default=True, help="Prompts that a search runs.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("benchmarks/tuned"), show_default=True)
def command(models: tuple[str, ...], samplers: tuple[str, ...], runs: int, calibration: int, output: Path) -> None:
    """Tune the bundled models and write one JSON file and the profiles of each network and sampler."""
    output.mkdir(parents=True, exist_ok=True)
    for model in models:
        for sampler in samplers:
            result: dict[str, Any] = {"model": model, "sampler": sampler, "calibration": calibration}
            result |= {"machine": asdict(machine()), "rows": []}
            for row in tuned(model, sampler, runs, calibration, output):
                result["floor"] = row.pop("floor")
                result["rows"].append(row)
                (output / f"{model}-{sampler}.json").write_text(json.dumps(result, indent=1) + "\n")


def tuned(model: str, sampler: str, runs: int, calibration: int, output: Path) -> Iterator[dict[str, Any]]:
    """Figures of the three budgets, one after the other."""
    start, used = time.perf_counter(), time.process_time()
    pipe = load(model, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    if sampler == "ddim":
        pipe.scheduler = sampler_named("ddim", pipe.scheduler)
    words = list(captions())
    random.Random(0).shuffle(words)

    def say(text: str) -> None:
        click.echo(f"{model} {sampler} [{time.perf_counter() - start:5.0f} s] {text}")

    settings = {"num_inference_steps": STEPS, "guidance_scale": 2.0}
    tuner = Tuner(pipe, words[:PROMPTS], runs=runs, calibration=calibration, progress=say, **settings)
    for interval in INTERVALS:
        result = tuner.tune(Budget(max_macs=budget_of(tuner.known.space, interval)))
        result.recipe.save(output / f"{model}-{sampler}-{interval}.json")
        assert result.recipe.evidence is not None
        click.echo(f"{to_text(result.recipe)}\n{result.recipe.evidence.account}")
        fixed = [{"name": b.name, **asdict(b.score)} for b in sorted(result.fixed, key=lambda b: -b.score.psnr)]
        spent = {"total_seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
        yield {
            "interval": interval,
            **asdict(result.recipe.evidence),
            "fixed": fixed,
            **spent,
            "floor": asdict(result.floor),
        }
    say("done")


def budget_of(space: Space, interval: int) -> float:
    """The usual cache's cost at an interval, rounded up so that it fits."""
    return math.ceil(1e4 * _cost(space, interval)) / 1e4


def _cost(space: Space, interval: int) -> float:
    """Cost of the usual cache of this network at an interval, as a fraction of computing everything."""
    computed = set(Uniform(interval).computed(STEPS))
    if space.nested:
        return 1 - space.saved["branch 0"] * (STEPS - len(computed)) / STEPS
    reused = STEPS - len(computed | {STEPS - 1})
    return 1 - sum(space.saved[part] for part in space.of(UNITS)) * reused / STEPS
