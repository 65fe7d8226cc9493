"""Feature caching: speed against the ceiling of multiply-accumulates, memory, overhead, and quality for its time."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from benchmarks.overhead import host_overhead, reads_values
from benchmarks.peers import Attach, stored_bytes
from benchmarks.quality import against_fewer_steps
from benchmarks.tables import Tables, markdown

from benchmarks import shapes
from diffaccel import DeepCache, accelerate
from diffaccel.attach.macs import count_macs
from diffaccel.measure import interleaved, machine, watch_cache
from diffaccel.measure.candidates import deepcache_package

INTERVALS = (2, 3, 5)


def compared(run: Callable[[], Any], ways: Mapping[str, Attach], rounds: int) -> dict[str, dict[str, float]]:
    """Speed of each way relative to the first, beside the ceiling: the ratio of the multiply-accumulates executed.

    Args:
        run: one run of a pipeline.
        ways: what to attach to it meanwhile.
        rounds: interleaved rounds.
    """

    def attached(attach: Attach) -> None:
        with attach():
            run()

    macs = {name: count_macs(partial(attached, attach)) for name, attach in ways.items()}
    times = interleaved({name: partial(attached, attach) for name, attach in ways.items()}, rounds, warmup=0)
    first, result = next(iter(ways)), {}
    for name, timing in times.items():
        speed, ceiling = timing.speedup(times[first]), macs[first] / macs[name]
        result[name] = {"s": timing.median, "speed": speed, "ceiling": ceiling, "of ceiling": speed / ceiling}
    return result


def deepcache_memory(pipe: Any, run: Callable[[], Any], interval: int) -> dict[str, float]:
    """Most bytes of stored features during a run, ours and the package's."""
    with accelerate(pipe, DeepCache(interval=interval)) as handle, watch_cache(handle, pipe.unet) as memory:
        run()
    with deepcache_package(pipe, interval) as helper:
        run()
        theirs = stored_bytes(helper.cached_output)
    return {"ours MiB": memory.peak / 2**20, "package MiB": theirs / 2**20, "package / ours": theirs / memory.peak}


def sd15(rounds: int, steps: int) -> Tables:
    """DeepCache on the shape of Stable Diffusion 1.5, 32 x 32 latents, beside the authors' package."""
    pipe = shapes.pipeline(shapes.sd15_unet())
    run = partial(shapes.latents, pipe, steps)
    ways: dict[str, Attach] = {"plain": nullcontext}
    for interval in INTERVALS:
        ways[f"DeepCache({interval})"] = partial(accelerate, pipe, DeepCache(interval=interval))
        ways[f"package, interval {interval}"] = partial(deepcache_package, pipe, interval)
    figures = compared(run, ways, rounds)
    for interval in INTERVALS:
        ours, theirs = figures[f"DeepCache({interval})"], figures[f"package, interval {interval}"]
        ours["of package"] = theirs["s"] / ours["s"]
    title = f"Stable Diffusion 1.5 shape, 32 x 32 latents, one row, {steps} steps"
    memory = {"interval 3": deepcache_memory(pipe, partial(shapes.latents, pipe, 2), 3)}
    return {title: figures, "Most bytes of stored features": memory}


def controlnet(rounds: int, steps: int) -> Tables:
    """The same with a ControlNet, which does not run in full where the denoiser replays."""
    unet = shapes.sd15_unet()
    pipe = shapes.pipeline(unet, shapes.sd15_controlnet(unet))
    method = DeepCache(interval=5)
    ways: dict[str, Attach] = {
        "plain": nullcontext,
        "DeepCache(5)": partial(accelerate, pipe, method),
        "DeepCache(5), ControlNet in full": partial(accelerate, unet, method),
    }
    figures = compared(partial(shapes.latents, pipe, steps), ways, rounds)
    return {f"Stable Diffusion 1.5 shape with a ControlNet, 32 x 32 latents, one row, {steps} steps": figures}


def overhead(rounds: int, steps: int) -> Tables:  # noqa: ARG001
    """What our code takes of the host's time, and which methods read values from the device."""
    return {"Host time that hooks and decisions add to a network call": host_overhead(rounds),
            "Whether the host reads a value that lies on the device": reads_values()}  # fmt: skip


PARTS: dict[str, Callable[[int, int], Tables]] = {
    "sd15": sd15,
    "controlnet": controlnet,
    "overhead": overhead,
    "emoji-sd": partial(against_fewer_steps, "emoji-sd"),
    "emoji-dit": partial(against_fewer_steps, "emoji-dit"),
    "emoji-sd-ddim": partial(against_fewer_steps, "emoji-sd", ddim=True),
    "emoji-dit-ddim": partial(against_fewer_steps, "emoji-dit", ddim=True),
}


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only these; all by default.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds of each measurement.")
@click.option("--steps", default=None, type=int, help="Sampling steps; 10 for sd15 and controlnet, else 30.")
@click.option(
    "--json",
    "file",
    type=click.Path(path_type=Path),
    help="Write the figures to this file, and its tables to one of Markdown beside it.",
)
def command(parts: tuple[str, ...], rounds: int, steps: int | None, file: Path | None) -> None:
    """Ratios of feature caching, each part from one interleaved run."""
    torch.set_grad_enabled(False)
    here, figures, text = asdict(machine()), {}, ""
    for part in parts or PARTS:
        tables = PARTS[part](rounds, steps or (10 if part in ("sd15", "controlnet") else 30))
        figures[part] = tables
        text += markdown(tables) + "\n"
        click.echo(markdown(tables))
        if file:
            file.write_text(json.dumps({"machine": here, **figures}, indent=1) + "\n", encoding="utf-8")
            file.with_suffix(".md").write_text(f"{_head(here)}\n{text}", encoding="utf-8")


def _head(here: Mapping[str, Any]) -> str:
    """What was run, and where."""
    packages = ", ".join(f"{name} {version}" for name, version in here["packages"].items())
    return (
        f"# Feature caching, measured\n\n`python {' '.join(sys.argv)}` on {here['processor']}"
        f"{', ' + here['accelerator'] if here['accelerator'] else ''}; {here['system']}; {packages}.\n"
    )
