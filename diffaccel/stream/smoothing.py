"""Smoothing between frames: a picture is blended with the one before it, brought along with what moves in the input.

A recursive temporal filter with motion compensation (Dubois and Sabri, "Noise reduction in image sequences using
motion-compensated temporal filtering", 1984), whose motion is that of the frames that were pushed, by dense inverse
search (arXiv 1603.03590).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from diffaccel.config import Config
from diffaccel.config.checks import number

NEAR = 5  # side in pixels of the window in which pictures are compared
LEAST = 16  # side in pixels below which dense inverse search finds nothing


@dataclass(frozen=True)
class MotionBlend(Config):
    """Blend each picture with the one before it, moved as the pushed frames move.

    The share of the picture before is ``strength exp(-(m / match)^2) exp(-(d / tolerance)^2)`` for every pixel. There
    ``m`` is how far the pushed frame is from the one before it after its motion is undone, so that what comes into
    view is not blended; ``d`` is how far the two pictures are apart, so that a new shape shows at once, without a ghost
    of the old one. Both are of pixel values in [0, 1].

    Args:
        strength: largest share of the picture before, 0 to 0.98; 0 leaves pictures as they are.
        match: how unlike pushed frames may be once motion is undone, > 0.
        tolerance: how unlike two pictures may be, > 0; larger is steadier, and leaves ghosts where shapes change.

    Raises:
        ValueError: for values out of range.
    """

    strength: float = 0.85
    match: float = 0.1
    tolerance: float = 0.2

    def __post_init__(self) -> None:
        number("strength", self.strength, 0.0, 0.98)
        number("match", self.match, 1e-6, 10.0)
        number("tolerance", self.tolerance, 1e-6, 10.0)

    def require(self, output_type: str) -> None:
        """Raise where pictures cannot be blended.

        Raises:
            ValueError: for latents, which are not pictures, and without OpenCV.
        """
        if output_type == "latent":
            raise ValueError("smoothing blends pictures, and output_type='latent' makes none: leave one of them out")
        if find_spec("cv2") is None:
            raise ValueError("smoothing needs OpenCV: pip install 'diffaccel[camera]', or leave smoothing out")


class Track(NamedTuple):
    """How a frame goes on from the one before it.

    Attributes:
        number: its place among all frames that entered, from 1; 0 for one that nobody followed.
        flow: where what each of its pixels shows was before, in pixels to the right and down, ``(1, H, W, 2)``; None
            where nothing is before.
        trust: how well that explains the frame, ``(1, 1, H, W)`` in [0, 1].
    """

    number: int = 0
    flow: torch.Tensor | None = None
    trust: torch.Tensor | None = None


def moved(pictures: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Pictures ``(1, channels, H, W)`` brought to where a flow ``(1, H, W, 2)`` says that their pixels go."""
    height, width = flow.shape[1:3]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None].expand(height, width)
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype)[None].expand(height, width)
    places = torch.stack([columns, rows], -1) + flow  # (1, H, W, 2)
    size = flow.new_tensor([width, height])
    return F.grid_sample(pictures, (2 * places + 1) / size - 1, padding_mode="border", align_corners=False)


def blended(picture: torch.Tensor, before: torch.Tensor, track: Track, how: MotionBlend) -> torch.Tensor:
    """A picture ``(1, 3, H, W)`` in [-1, 1], steadied by the one before it; see `MotionBlend`."""
    assert track.flow is not None
    assert track.trust is not None
    old = moved(before, track.flow.to(picture.device, non_blocking=True))
    old = torch.where(old.isfinite(), old, picture)
    apart = F.avg_pool2d((old - picture).abs().mean(1, keepdim=True) / 2, NEAR, 1, NEAR // 2, count_include_pad=False)
    trust = track.trust.to(picture.device, non_blocking=True)
    share: torch.Tensor = how.strength * trust * (-((apart / how.tolerance) ** 2)).exp()
    return picture + share * (old - picture)


class Smoothing:
    """The pictures of one stream, each blended with the one before it.

    Args:
        how: see `MotionBlend`.
    """

    def __init__(self, how: MotionBlend) -> None:
        cv2: Any = import_module("cv2")
        self._how = how
        self._search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._seen: tuple[torch.Tensor, Any] | None = None  # the last frame, (1, 3, H, W) in [0, 1], and its luma
        self._under: Any = None
        self._count = 0
        self._shown = 0
        self._picture: torch.Tensor | None = None

    def enter(self, frames: Sequence[torch.Tensor | None], settings: object) -> tuple[Track, ...]:
        """How entering frames ``(1, 3, H, W)`` in [-1, 1] go on from those before; None shows nothing, and so do they.

        Frames under other settings than the one before, compared by identity, go on from nothing.
        """
        if settings is not self._under:
            self._seen, self._under = None, settings
        return tuple(self._next(None if frame is None else (frame / 2 + 0.5).cpu()) for frame in frames)

    def _next(self, frame: torch.Tensor | None) -> Track:
        before, self._seen = self._seen, None if frame is None else (frame, _grey(frame))
        self._count += 1
        if before is None or self._seen is None or min(self._seen[0].shape[-2:]) < LEAST:
            return Track(self._count)
        (last, last_grey), (now, grey) = before, self._seen
        flow = torch.from_numpy(self._search.calc(grey, last_grey, None))[None]
        apart = (moved(last, flow) - now).square().mean(1, keepdim=True)
        return Track(self._count, flow, (-apart / self._how.match**2).exp())

    def leave(self, pictures: torch.Tensor, tracks: Sequence[Track]) -> torch.Tensor:
        """Finished pictures ``(frames, 3, H, W)``, about [-1, 1], blended."""
        result = list(torch.split(pictures.clamp(-1, 1), 1))
        for k in sorted(range(len(tracks)), key=lambda k: tracks[k].number):
            track = tracks[k]
            if track.flow is not None and self._picture is not None and self._shown == track.number - 1:
                result[k] = blended(result[k], self._picture, track, self._how)
            self._picture, self._shown = result[k], track.number
        return torch.cat(result)


def _grey(frame: torch.Tensor) -> Any:
    """Luma ``(H, W)`` of 8 bits of a frame ``(1, 3, H, W)`` in [0, 1] (ITU-R BT.601)."""
    luma = (frame[0] * frame.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    return (luma.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
