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

from benchmarks.tuned import MODELS, PROMPTS, SAMPLERS, STEPS, budget_of
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
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the weights of the last one that was kept here.")
def command(
    model: str,
    sampler: str,
    intervals: tuple[int, ...],
    rounds: int,
    probes: int,
    iterations: int,
    folder: Path,
    picture: Path | None,
) -> None:
    """Refine tuned profiles in FOLDER, and write the figures there, with the refined profiles where they are better."""
    how = Refinement(rounds=rounds, probes=probes, iterations=iterations)
    for row in refined(model, sampler, intervals, how, folder):
        result = {"machine": asdict(machine()), "refinement": asdict(how), **row}
        (folder / f"refined-{model}-{sampler}-{row['interval']}.json").write_text(json.dumps(result, indent=1) + "\n")
    profile = folder / f"refined-{model}-{sampler}-{intervals[-1]}-profile.json"
    if picture and profile.exists():
        picture.write_text(weights_svg(Recipe.load(profile)))


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
    space = known_space(pipe)
    fixed = FixedSettings(pipe, new, space, screening(choosing))
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
        budget = max(macs, budget_of(space, interval))  # which the profile was tuned for
        rivals = sorted(fixed.within(budget), key=lambda b: -b.score.psnr)
        say(f"best fixed: {rivals[0].name} {rivals[0].score.psnr:.2f} dB")
        if chosen[1] > chosen[0]:
            after.save(folder / f"refined-{model}-{sampler}-{interval}-profile.json")
        yield {
            "model": model,
            "sampler": sampler,
            "interval": interval,
            "macs": macs,
            "budget": budget,
            "pictures": len(new.workload.truth),
            "before": asdict(scores[0]),
            "after": asdict(scores[1]),
            "choosing": chosen,
            "floor": asdict(floor),
            "fixed": [{"name": b.name, **asdict(b.score)} for b in rivals],
            "refining_seconds": seconds,
            "refining_cpu_seconds": spent,
        }


def weights_svg(recipe: Recipe) -> str:
    """Blend weights as a picture: calls across, parts down; blue below 1, red above, white where a call computes."""
    parts, cell, left, top = sorted(recipe.parts), 26, 100, 24
    width, height = left + recipe.total * cell + 8, top + len(parts) * cell + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui,sans-serif" text-anchor="middle">'
        "<title>Weight of the newest feature in what each call replays</title>"
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
    ]
    lines += [
        f'<text x="{left + (call + 0.5) * cell}" y="16" font-size="11">{call}</text>' for call in range(recipe.total)
    ]
    for row, part in enumerate(parts):
        y = top + row * cell
        lines.append(f'<text x="{left - 8}" y="{y + 17}" text-anchor="end" font-size="12">{part}</text>')
        for reuse in (reuse for reuse in recipe.reuses if reuse.what == part):
            weight, x = reuse.weights[0], left + reuse.call * cell
            hue, share = ("220 90%" if weight < 1 else "10 85%"), min(1.0, abs(weight - 1))
            told = ", ".join(f"{w:.2f}" for w in reuse.weights)
            lines.append(
                f'<rect x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="3" '
                f'fill="hsl({hue} {94 - 45 * share:.0f}%)"><title>call {reuse.call}, {part}: {told}</title></rect>'
                f'<text x="{x + cell / 2 - 1}" y="{y + 16}" font-size="9">{weight:.1f}</text>'
            )
    return "".join([*lines, "</svg>\n"])


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
