"""The clips of `emoji-video`: drawings that move as their captions say ("a rocket flies up", "a pizza spins").

A clip is one drawing of emoji_data.py, on white, on a path: its scale, place and angle per frame, 8 frames a second.
Every motion follows from the state of a frame and the one before, and goes on without end: what moves stops at the
edge, what grows stops when it fills the picture. Every clip is a pure function of its index and the seed. Each
drawing is never seen with one of the motions (`is_held_out`): the test of composing the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from emoji_data import Concept, compose, concepts, place

FRAMES_PER_SECOND = 8
SPEED = 0.045  # of moving drawings, in half picture widths a frame: 2.9 pixels
TURN = 9.0  # degrees a frame of spinning drawings
SWAY, SWAY_PERIOD = 20.0, 12  # degrees to each side, frames
HOP, HOP_PERIOD = 0.36, 10  # height of a bounce in half picture widths, frames
GROWTH = 0.02  # change of scale a frame
SMALLEST, LARGEST = 0.55, 0.9

# the first phrase of a motion is its usual name
PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "up": ("flies up", "moves up", "rises"),
        "down": ("flies down", "moves down", "falls"),
        "left": ("moves left", "flies left"),
        "right": ("moves right", "flies right"),
        "spin": ("spins", "turns"),
        "sway": ("sways", "swings"),
        "bounce": ("bounces", "jumps"),
        "grow": ("grows", "gets bigger"),
        "shrink": ("shrinks", "gets smaller"),
        "stay": ("stays", "stands still"),
    }
)
MOTIONS = tuple(PHRASES)
MOVING = MOTIONS[:-1]
DIRECTIONS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}

# fmt: off
DRAWINGS = (
    "cat", "dog", "panda", "fox", "lion", "frog", "pig", "rabbit", "penguin", "owl", "fish", "turtle", "butterfly",
    "ladybug", "unicorn", "sunflower", "tree", "cactus", "mushroom", "strawberry", "donut", "burger", "pizza", "rocket",
    "star", "sun", "car", "airplane", "ufo", "house", "robot", "ghost", "red heart", "happy face", "balloon", "crown",
)
# fmt: on


@dataclass(frozen=True)
class Pose:
    """Where a drawing is in one frame: scale 1 fills the picture; x and y in [-1, 1] from the left and the top."""

    scale: float
    x: float
    y: float
    degrees: float


def trajectory(motion: str, start: Pose, frames: int, phase: float = 0.0) -> list[Pose]:
    """The poses of a motion from `start`; `phase`, in turns, is where a bounce or a sway begins."""
    steps = np.arange(frames)
    scale, x, y, degrees = (np.full(frames, v) for v in (start.scale, start.x, start.y, start.degrees))
    if motion in DIRECTIONS:
        room = 1 - start.scale
        dx, dy = DIRECTIONS[motion]
        x = np.clip(start.x + dx * SPEED * steps, -room, room)
        y = np.clip(start.y + dy * SPEED * steps, -room, room)
    elif motion == "spin":
        degrees = start.degrees + TURN * steps
    elif motion == "sway":
        degrees = start.degrees + SWAY * np.sin(2 * math.pi * (steps / SWAY_PERIOD + phase))
    elif motion == "bounce":
        y = start.y - HOP * np.abs(np.sin(math.pi * (steps / HOP_PERIOD + phase)))
    elif motion in ("grow", "shrink"):
        sign = 1 if motion == "grow" else -1
        scale = np.clip(start.scale + sign * GROWTH * steps, SMALLEST, LARGEST)
    elif motion != "stay":
        raise ValueError(f"unknown motion {motion!r}; one of {', '.join(MOTIONS)}")
    return [Pose(*map(float, pose)) for pose in zip(scale, x, y, degrees, strict=True)]


def random_start(motion: str, rng: np.random.Generator) -> Pose:
    """A pose from which most of a clip of 24 frames moves."""
    scale, degrees = rng.uniform(0.7, 0.78), 0.0
    x, y = rng.uniform(-0.05, 0.05, 2)
    if motion in DIRECTIONS:
        scale = rng.uniform(0.6, 0.64)
        along = -rng.uniform(0.5, 1.0) * (1 - scale)
        dx, dy = DIRECTIONS[motion]
        x, y = (dx * along, y) if dx else (x, dy * along)
    elif motion == "spin":
        degrees = rng.uniform(0, 360) if rng.random() < 0.6 else 0.0
    elif motion == "bounce":
        scale = rng.uniform(0.6, 0.64)
        y = rng.uniform(0.9, 1.0) * (1 - scale)
    elif motion in ("grow", "shrink"):
        scale = rng.uniform(SMALLEST, SMALLEST + 0.06) if motion == "grow" else rng.uniform(LARGEST - 0.06, LARGEST)
    return Pose(float(scale), float(x), float(y), float(degrees))


def is_held_out(drawing: int, motion: str) -> bool:
    """Whether the drawing of that place in DRAWINGS is never trained with the motion: one of nine motions each."""
    return motion in MOVING and (drawing + MOVING.index(motion)) % len(MOVING) == 0


def caption(name: str, phrase: str) -> str:
    """The words of a clip: "a rocket flies up"."""
    article = "an" if (name[0] in "aeiou" and not name.startswith("u")) or name == "umbrella" else "a"
    return f"{article} {name} {phrase}"


@dataclass(frozen=True)
class Clip:
    """One clip: what it is called, what it shows."""

    name: str
    motion: str
    caption: str
    rgba: np.ndarray
    poses: tuple[Pose, ...]

    def frames(self) -> torch.Tensor:
        """The drawn frames in [-1, 1], (frames, 3, 128, 128)."""
        white = np.ones(3, np.float32)
        return compose([([place(self.rgba, p.scale, p.x, p.y, p.degrees)], white) for p in self.poses])


class Clips:
    """Clips by index, the same for the same (seed, index)."""

    def __init__(self, folder: Path, frames: int = 24, seed: int = 0, drawings: Sequence[str] = DRAWINGS) -> None:
        known: dict[str, Concept] = {c.name: c for c in concepts(folder)}
        self.drawings = [known[name] for name in drawings]
        self.frames, self.seed = frames, seed
        places = range(len(self.drawings))
        trained = [(d, m) for d in places for m in MOTIONS if not is_held_out(d, m)]
        self.trained = [trained[i] for i in np.random.default_rng(seed).permutation(len(trained))]
        self.held_out = [(d, m) for d in places for m in MOTIONS if is_held_out(d, m)]

    def make(self, drawing: int, motion: str, rng: np.random.Generator, phrase: str | None = None) -> Clip:
        """A clip of a drawing (its place in DRAWINGS) and a motion; the phrase is drawn, too, unless given."""
        concept, phrases = self.drawings[drawing], PHRASES[motion]
        if phrase is None:
            phrase = phrases[0] if rng.random() < 0.5 else phrases[rng.integers(len(phrases))]
        start = random_start(motion, rng)
        phase = float(rng.random())
        poses = trajectory(motion, start, self.frames, phase)
        return Clip(concept.name, motion, caption(concept.name, phrase), concept.drawings["fluent"], tuple(poses))

    def training(self, index: int) -> Clip:
        """A clip to train on: all pairs that are not held out in turn, with fresh places."""
        drawing, motion = self.trained[index % len(self.trained)]
        return self.make(drawing, motion, np.random.default_rng((self.seed, index)))

    def test(self, index: int) -> Clip:
        """A clip of a held-out pair, under the motion's usual name."""
        drawing, motion = self.held_out[index % len(self.held_out)]
        return self.make(drawing, motion, np.random.default_rng((self.seed, 1 << 40, index)), PHRASES[motion][0])
