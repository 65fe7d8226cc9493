"""Steadiness between frames: flicker along the true motion, likeness to the prompt, and cost, with clips side by side.

Every candidate paints the same drawings on their circle. Flicker is the mean difference of a picture from the next one
brought back along the motion that the drawing made (motion_measure.py), likeness the share of frames whose prompt is
among the five that emoji-clip finds nearest. Seconds are of the processor, and candidates take turns film by film.
"""

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from benchmarks.engines import STAGES, engine
from benchmarks.movies import movie
from benchmarks.stream import show
from emoji_data import contact_sheet
from motion_measure import flicker
from video_data import Pose

from diffaccel import CrossFrame, MotionBlend, MotionNoise, SelfNegative
from diffaccel.measure import Judge
from diffaccel.measure.accuracy import captions
from diffaccel.models import load, load_lora, load_vae

CANDIDATES: dict[str, dict[str, Any]] = {
    "plain": {},
    "4 frames": {"steadiness": CrossFrame(4)},
    "4 frames, on the way up": {"steadiness": CrossFrame(4, ("up_blocks",))},
    "feedback 0.2": {"feedback": 0.2},
    "motion noise": {"motion": MotionNoise()},
    "motion blend": {"smoothing": MotionBlend()},
    "motion blend, tolerance 0.4": {"smoothing": MotionBlend(tolerance=0.4)},
    "motion noise and blend": {"motion": MotionNoise(), "smoothing": MotionBlend()},
}
FILMS = (("green apple", "heart", 1.0), ("red heart", "star", 2.0))
WAYS = {"half of the noise": STAGES[2], "most of the noise": (12, 32)}


def poses(speed: float, frames: int) -> tuple[Pose, ...]:
    """Where `movie` has its drawing."""
    turns = [i * speed / 22.0 for i in range(frames)]
    return tuple(
        Pose(0.5, 22 * math.cos(t) / 64, 22 * math.sin(t) / 64, math.degrees(0.3 * math.sin(t))) for t in turns
    )


def painted(pipe: Any, film: list[Any], **settings: Any) -> tuple[torch.Tensor, float]:
    """Pictures ``(frames, 3, height, width)`` in [0, 1], and seconds of the processor a frame."""
    with engine(pipe, guidance=SelfNegative(1.2), negative_prompt="", **settings) as stream:
        begin = time.process_time()
        pictures = torch.stack([output.image for output in stream.stream(film)])
        return pictures, (time.process_time() - begin) / len(film)


def measured(
    pipe: Any, judge: Judge, stages: tuple[int, ...], frames: int, strips: list[torch.Tensor]
) -> dict[str, Any]:
    """Figures of each candidate; strips of the first film are added to `strips`."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CANDIDATES}
    for name, shape, speed in FILMS:
        film = list(movie(speed, frames, shape))
        for candidate, settings in CANDIDATES.items():
            pictures, seconds = painted(pipe, film, prompt=f"a {name}", timestep_indices=stages, **settings)
            likeness = judge.accuracy(pictures, [name] * frames).top5
            found[candidate].append((flicker(pictures * 2 - 1, poses(speed, frames)), likeness, seconds))
            if name == FILMS[0][0]:
                strips.append(pictures[:: max(1, frames // 8)][:8])
    means = {name: [statistics.fmean(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    first = means["plain"]
    return {
        name: {
            "flicker, thousandths": 1000 * f,
            "of plain": f / first[0],
            "top 5": likeness,
            "time": seconds / first[2],
        }
        for name, (f, likeness, seconds) in means.items()
    }


@click.command(help=__doc__)
@click.option("--frames", default=24, show_default=True, help="Of each film.")
@click.option(
    "--sheet", type=click.Path(path_type=Path), help="Draw the drawing, and below it what each candidate made of it."
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures here, too.")
def command(frames: int, sheet: Path | None, file: Path | None) -> None:
    """Measure, and print one line a figure."""
    pipe = load("emoji-sd")
    load_lora(pipe, "emoji-lcm-lora")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.vae = load_vae("emoji-vae-small", dtype=pipe.dtype, device=pipe.device)
    judge, strips = Judge(captions()), []
    film = [torch.from_numpy(np.array(picture)).movedim(-1, 0) / 255 for picture in movie(FILMS[0][2], frames)]
    painted(pipe, film[:4], prompt="a cat", timestep_indices=STAGES[2])  # the first calls are slower
    figures = {}
    for way, stages in WAYS.items():
        figures[way] = measured(pipe, judge, stages, frames, strips)
        show(way, figures[way])
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n")
    if sheet:
        shown = torch.cat([torch.stack(film)[:: max(1, frames // 8)][:8], *strips[-len(CANDIDATES) :]])
        contact_sheet(shown * 2 - 1, 8).save(sheet)
