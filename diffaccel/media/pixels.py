"""From a decoded frame to RGB pixels as a browser shows them: upright, square, in the colours of BT.709."""

from __future__ import annotations

import logging
import struct
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from diffaccel.media.errors import MediaError
from diffaccel.media.primaries import BT709, TO_BT709, to_bt709
from diffaccel.media.tone_mapping import TRANSFERS, peak_of, side_data, tone_mapped

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

logger = logging.getLogger(__name__)

SQUARE = Fraction(1)
MOST_STRETCHED = 4

OPAQUE = 255
UNSPECIFIED = 2
SMPTE170M = 6
"""Number of ISO/IEC 23091-2 for the colour matrix of BT.601."""
LEAST_HD = 720
"""Rows from which a video that does not tell its matrix is BT.709, as browsers take it; below it is BT.601."""


def upright(frame: VideoFrame, shape: Fraction) -> np.ndarray:
    """RGB pixels ``(H, W, 3)``, turned and mirrored as the display matrix asks.

    Args:
        frame: as it was decoded.
        shape: width of a pixel over its height; the shorter side is stretched. What no camera has is taken for 1.
    """
    width, height = frame.width, frame.height
    if 1 / MOST_STRETCHED <= shape <= MOST_STRETCHED:
        width, height = round(width * max(shape, SQUARE)), round(height / min(shape, SQUARE))
    pixels = rgb(frame, width, height)
    transposed, mirrored, flipped = orientation(frame)
    if transposed:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if flipped else 1, :: -1 if mirrored else 1])


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """What the display matrix asks for: swap rows and columns, then mirror left and right, then top and bottom.

    The matrix (ISO/IEC 14496-12, 8.5.2) sends a pixel to ``x' = a x + c y``, ``y' = b x + d y``. Its eight forms
    without a slant are honoured; of any other one, the nearest of them.
    """
    data = side_data(frame, "DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = struct.unpack_from("=5i", data)
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    across, down, rest = (c, b, (a, d)) if transposed else (a, d, (b, c))
    if max(map(abs, rest)) > 0.02 * max(abs(across), abs(down), 1):
        logger.warning("a frame is to be turned by %s degrees: the nearest quarter turn is shown", -frame.rotation)
    return transposed, across < 0, down < 0


def rgb(frame: VideoFrame, width: int, height: int) -> np.ndarray:
    """RGB pixels ``(height, width, 3)`` uint8 with the primaries of BT.709; HDR is mapped to what a screen can show.

    What is transparent is laid on white, as pictures are.
    """
    if frame.color_trc in TRANSFERS:
        linear = frame.reformat(width=width, height=height, format="gbrp16le")
        planes = [_plane(plane, width, height) for plane in linear.planes]  # green, blue, red
        channels = planes[2], planes[0], planes[1]
        return tone_mapped(channels, TRANSFERS[frame.color_trc], peak_of(frame), frame.color_primaries)
    if frame.colorspace == UNSPECIFIED and not frame.format.is_rgb:
        frame.colorspace = BT709 if frame.height >= LEAST_HD else SMPTE170M
    seen_through = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    kind = "rgba" if seen_through else "rgb24"
    pixels = _converted(frame, kind, width, height)
    colours = pixels if kind == "rgb24" else _on_white(pixels)
    if frame.color_primaries in TO_BT709.keys() - {BT709}:
        return to_bt709(colours, frame.color_primaries, frame.color_trc)
    return colours


def _converted(frame: VideoFrame, kind: str, width: int, height: int) -> np.ndarray:
    from av.error import FFmpegError

    try:
        pixels: np.ndarray = frame.to_ndarray(format=kind, width=width, height=height)
    except FFmpegError as error:
        raise MediaError(
            f"FFmpeg makes no RGB of this video's colours, {frame.format.name} with the matrix {frame.colorspace} of "
            f"ISO/IEC 23091-2 ({error.strerror}): convert it to yuv420p of BT.709 first"
        ) from error
    return pixels


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Pixels ``(height, width, 4)`` laid on white; a fourth channel of zeros alone is one that nobody filled."""
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() == OPAQUE or not alpha.any():
        return colours
    laid = 255 + (colours.astype(np.float32) - 255) * (alpha / np.float32(OPAQUE))
    return np.asarray(laid.round().astype(np.uint8))


def _plane(plane: object, width: int, height: int) -> np.ndarray:
    """A plane of 16-bit numbers, ``(height, width)``."""
    line: int = plane.line_size  # type: ignore[attr-defined]
    rows = np.frombuffer(plane, "<u2").reshape(height, line // 2)  # type: ignore[call-overload]
    return rows[:, :width]  # type: ignore[no-any-return]
