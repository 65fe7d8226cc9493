"""What moves in a clip of one drawing on white, measured from its pixels; and whether that is what was asked for.

Every test asks for at least half of the motion that was due, so a frozen clip passes none.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from emoji_data import place
from video_data import DIRECTIONS, HOP_PERIOD, SWAY_PERIOD, Pose

ANGLES, RADII = 180, 24
CROSSWISE = 0.6  # how far a moving drawing may stray, as a share of the way


def ink(frames: torch.Tensor) -> torch.Tensor:
    """How much every pixel differs from white, (frames, height, width) in [0, 1], of frames in [-1, 1]."""
    darkness = (1 - frames).amax(1) / 2
    return torch.where(darkness > 0.08, darkness, 0.0)


def places(frames: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Centre (frames, 2), x and y in [-1, 1], and root mean square radius (frames,) of the drawing; NaN if empty."""
    weight = ink(frames).double()
    side = weight.shape[-1]
    axis = (torch.arange(side, dtype=torch.float64) * 2 + 1) / side - 1
    total = weight.sum((1, 2))
    total = torch.where(total > 4, total, torch.nan)
    x = (weight.sum(1) * axis).sum(1) / total
    y = (weight.sum(2) * axis).sum(1) / total
    distance = (axis[None, None] - x[:, None, None]) ** 2 + (axis[None, :, None] - y[:, None, None]) ** 2
    radius = ((weight * distance).sum((1, 2)) / total).sqrt()
    return torch.stack([x, y], 1).numpy(), radius.numpy()


def turns(frames: torch.Tensor) -> np.ndarray:
    """By how many degrees the drawing turns from each frame to the next, clockwise, (frames - 1,).

    The angle at which the two polar pictures, each about its own centre and in its own size, match best.
    """
    centre, radius = (torch.from_numpy(v).float() for v in places(frames))
    angle = torch.arange(ANGLES) * (2 * math.pi / ANGLES)
    ray = torch.linspace(0.3, 1.9, RADII)
    circle = torch.stack([angle.cos(), angle.sin()], -1)  # y points down
    grid = centre[:, None, None] + radius[:, None, None, None] * ray[None, :, None, None] * circle
    polar = F.grid_sample(1 - frames, grid.nan_to_num(), align_corners=False)  # (frames, 3, radii, angles)
    polar = (polar - polar.mean(-1, keepdim=True)) * ray[:, None].sqrt()
    spectrum = torch.fft.rfft(polar)
    match = torch.fft.irfft((spectrum[1:] * spectrum[:-1].conj()).sum((1, 2)), n=ANGLES)
    near = ANGLES // 8  # up to 45 degrees a frame
    shifts = torch.arange(-near, near + 1)
    scores = match[:, shifts]
    best = scores.argmax(1).clamp(1, 2 * near - 1)
    low, mid, high = (scores.gather(1, best[:, None] + d)[:, 0] for d in (-1, 0, 1))
    curve = low - 2 * mid + high
    peak = torch.where(curve < 0, 0.5 * (low - high) / curve, 0.0).clamp(-0.5, 0.5)
    return ((shifts[best] + peak) * (360 / ANGLES)).numpy()


def swing(series: np.ndarray, period: float) -> float:
    """Amplitude of the part of a series that repeats every `period` steps; its trend is taken off."""
    steps = np.arange(len(series))
    columns = [np.ones_like(steps), steps, np.sin(2 * math.pi * steps / period), np.cos(2 * math.pi * steps / period)]
    *_, sine, cosine = np.linalg.lstsq(np.stack(columns, 1).astype(float), series, rcond=None)[0]
    return float(np.hypot(sine, cosine))


def shift(poses: tuple[Pose, ...], motion: str) -> float:
    """The motion that is due over the poses, in the unit in which `moved` measures it."""
    if motion in DIRECTIONS:
        return math.hypot(poses[-1].x - poses[0].x, poses[-1].y - poses[0].y)
    if motion in ("grow", "shrink"):
        return abs(math.log(poses[-1].scale / poses[0].scale))
    if motion == "spin":
        return abs(poses[-1].degrees - poses[0].degrees)
    if motion == "sway":
        return swing(np.array([p.degrees for p in poses]), SWAY_PERIOD)
    return swing(np.array([p.y for p in poses]), HOP_PERIOD)


def moved(frames: torch.Tensor, motion: str) -> float:
    """How much of a motion the frames show: half widths, logarithm of the size, or degrees; NaN if a frame is empty."""
    centre, radius = places(frames)
    if motion in DIRECTIONS:
        direction = np.array(DIRECTIONS[motion])
        way = centre[-1] - centre[0]
        along, across = float(way @ direction), abs(float(way @ direction[::-1]))
        return along if across <= CROSSWISE * along else 0.0
    if motion in ("grow", "shrink"):
        return float(np.log(radius[-1] / radius[0])) * (1 if motion == "grow" else -1)
    if motion == "spin":
        return float(turns(frames).sum())
    if motion == "sway":
        return swing(np.concatenate([[0], turns(frames).cumsum()]), SWAY_PERIOD)
    if motion == "bounce":
        return swing(centre[:, 1], HOP_PERIOD)
    raise ValueError(f"{motion!r} is not a motion that can be measured")


def is_right(frames: torch.Tensor, motion: str, due: float) -> bool:
    """Whether the frames show at least half of the motion that is due."""
    return moved(frames, motion) >= 0.5 * due


def flicker(frames: torch.Tensor, poses: tuple[Pose, ...]) -> float:
    """Mean difference of each frame from the next one brought back along the true motion, on a scale of 1."""
    thetas = [np.vstack([place(np.zeros((1, 1, 4)), p.scale, p.x, p.y, p.degrees).theta, [0, 0, 1]]) for p in poses]
    back = [np.linalg.inv(after) @ before for before, after in pairwise(thetas)]
    grid = F.affine_grid(torch.from_numpy(np.stack(back)[:, :2]).float(), list(frames[1:].shape), align_corners=False)
    returned = 1 - F.grid_sample(1 - frames[1:], grid, align_corners=False)
    return float((returned - frames[:-1]).abs().mean() / 2)
