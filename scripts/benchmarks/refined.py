"""Refined profiles against the profiles that they were made of and fixed settings, on pictures that are new."""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.tuned import MODELS, PROMPTS, SAMPLERS, STEPS
from diffaccel import accelerate
from diffaccel.measure import captions, compare, machine
from diffaccel.measure.workload import Workload, other_seeds
from diffaccel.methods import Profile, Recipe, Reuse
from diffaccel.methods.profile import sampler_of
from diffaccel.methods.recipe import OUTPUT
from diffaccel.models import load
from diffaccel.networks import layout_of
from diffaccel.sampling.schedulers import sampler_named
from diffaccel.tune import Refinement, refine
from diffaccel.tune.baselines import FixedSettings, screening
from diffaccel.tune.probing import Bench, denoiser_of
from diffaccel.tune.space import Space, space_of

LEARNED, CHOOSING, NEW = slice(0, 12), slice(16, 24), slice(PROMPTS, PROMPTS + 16)  # of the captions, in tuning's order
LEARNED_SEEDS, SEED = (4, 5, 6), 9  # of the noise of pictures that are learned from, and of new ones


@click.command()
@click.option("--model", type=click.Choice(MODELS), required=True)
@click.option("--sampler", type=click.Choice(SAMPLERS), default="dpm++", show_default=True)
@click.option("--interval", "intervals", multiple=True, type=int, default=(2, 3, 5), show_default=True)
@click.option("--rounds", type=int, default=Refinement.rounds, show_default=True, help="Of Gauss-Newton.")
@click.option("--probes", type=int, default=Refinement.probes, show_default=True)
@click.option("--iterations", type=int, default=Refinement.iterations, show_default=True, help="Of Adam.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("benchmarks/tuned"), show_default=True)
def command(
    model: str, sampler: str, intervals: tuple[int, ...], rounds: int, probes: int, iterations: int, folder: Path
) -> None:
    """Refine tuned profiles in FOLDER, and write the figures there, with the refined profiles where they are better."""
    how = Refinement(rounds=rounds, probes=probes, iterations=iterations)
    for row in refined(model, sampler, intervals, how, folder):
        result = {"machine": asdict(machine()), "refinement": asdict(how), **row}
        (folder / f"refined-{model}-{sampler}-{row['interval']}.json").write_text(json.dumps(result, indent=1) + "\n")


def refined(
    model: str, sampler: str, intervals: tuple[int, ...], how: Refinement, folder: Path
) -> Iterator[dict[str, Any]]:
    """Figures of one interval after the other."""
    start, used = time.perf_counter(), time.process_time()
    pipe = load(model, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    if sampler == "ddim":
        pipe.scheduler = sampler_named("ddim", pipe.scheduler)
    words = list(captions())
    random.Random(0).shuffle(words)
    settings = {"num_inference_steps": STEPS, "guidance_scale": 2.0}

    def say(text: str) -> None:
        spent = f"{time.perf_counter() - start:5.0f} s, processor {time.process_time() - used:4.0f} s"
        click.echo(f"{model} {sampler} [{spent}] {text}")

    def bench(prompts: slice, seed: int) -> Bench:
        workload = Workload(tuple(words[prompts]), (seed,), settings)
        return Bench(pipe, workload, workload.pictures(pipe))

    learned = Workload(tuple(words[LEARNED]), LEARNED_SEEDS, settings)
    choosing, new = bench(CHOOSING, 1), bench(NEW, SEED)
    floor = compare(other_seeds(new.workload).pictures(pipe), new.plain)
    say(f"different seeds: {floor.psnr:.2f} dB")
    fixed = FixedSettings(pipe, new, known_space(pipe), screening(choosing))
    for interval in intervals:
        before = Recipe.load(folder / f"{model}-{sampler}-{interval}.json")
        assert before.evidence is not None
        macs = before.evidence.macs
        begun, spent = time.perf_counter(), time.process_time()
        after = refine(pipe, before, learned, how, progress=say)
        spent, seconds = time.process_time() - spent, time.perf_counter() - begun
        chosen = [choosing.score_of(recipe, macs).psnr for recipe in (before, after)]
        scores = [new.score_of(recipe, macs) for recipe in (before, after)]
        gains = " and ".join(f"{a:.2f} -> {b:.2f} dB" for a, b in (chosen, [score.psnr for score in scores]))
        say(f"interval {interval}: {gains} on pictures that choose and on new ones")
        rivals = sorted(fixed.within(macs), key=lambda b: -b.score.psnr)
        say(f"best fixed: {rivals[0].name} {rivals[0].score.psnr:.2f} dB")
        if chosen[1] > chosen[0]:
            after.save(folder / f"refined-{model}-{sampler}-{interval}-profile.json")
        yield {
            "model": model,
            "sampler": sampler,
            "interval": interval,
            "macs": macs,
            "pictures": len(new.workload.truth),
            "before": asdict(scores[0]),
            "after": asdict(scores[1]),
            "choosing": chosen,
            "floor": asdict(floor),
            "fixed": [{"name": b.name, **asdict(b.score)} for b in rivals],
            "refining_seconds": seconds,
            "refining_cpu_seconds": spent,
        }


def known_space(pipe: Any) -> Space:
    """The choices of a search with what each saves, found out on runs of two steps."""
    layout = layout_of(denoiser_of(pipe))
    space, saved = space_of(layout), {OUTPUT: 1.0}
    one = Workload(captions()[:1], (0,), {"num_inference_steps": 2, "guidance_scale": 2.0})
    for name in space.parts:
        recipe = Recipe(layout.model, layout.fingerprint, *sampler_of(pipe.scheduler), 2, (Reuse(1, name),))
        with accelerate(pipe, Profile(recipe)) as handle:
            one.pictures(pipe)
            saved[name] = 2 * handle.report().macs_saved
    return replace(space, saved=saved, grams={OUTPUT: np.eye(STEPS)})
