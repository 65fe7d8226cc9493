"""High dynamic range to what an ordinary screen shows: from PQ or HLG to BT.709, with the curve of John Hable.

The steps are those of FFmpeg's ``zscale=t=linear:npl=100, tonemap=hable:desat=0, zscale=t=bt709``, of which PyAV's
FFmpeg lacks the first and the last. Light is counted in units of 100 candelas per square metre.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from diffaccel.media.primaries import BT2020, TO_BT709

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

UNIT = 100.0
"""Candelas per square metre of the unit of light: the white of BT.1886."""
USUAL_PEAK = 10.0
"""Brightest light of a video that does not tell: 1000 candelas, what such videos are graded on."""
SMPTE2084, ARIB_STD_B67 = 16, 18


def pq(signal: np.ndarray) -> np.ndarray:
    """Light of a PQ signal in [0, 1] (SMPTE ST 2084, equation 4)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    return np.asarray((np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) * 10_000 / UNIT)


def hlg(signal: np.ndarray) -> np.ndarray:
    """Light of an HLG signal in [0, 1] on a display of 1000 candelas (ITU-R BT.2100, table 5), channel by channel."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return np.asarray(scene**1.2 * 1000 / UNIT)


TRANSFERS: dict[int, Callable[[np.ndarray], np.ndarray]] = {SMPTE2084: pq, ARIB_STD_B67: hlg}
"""From signal to light, by the number of ISO/IEC 23091-2."""


def hable(light: np.ndarray | float) -> np.ndarray:
    """The filmic curve of Uncharted 2 (J. Hable, GDC 2010), not yet scaled to its white."""
    x = np.asarray(light)
    a, b, c, d, e, f = 0.15, 0.50, 0.10, 0.20, 0.02, 0.30
    return np.asarray((x * (x * a + b * c) + d * e) / (x * (x * a + b) + d * f) - e / f)


@cache
def _know_newer_kinds() -> None:
    """Let PyAV take frames that carry what its list of kinds lacks, as photographs do (EXIF)."""
    from av.sidedata.sidedata import Type

    def newer(cls: Any, number: int) -> Any:
        kind = object.__new__(cls)
        kind._name_, kind._value_ = f"NUMBER_{number}", number
        return kind

    Type._missing_ = classmethod(newer)  # type: ignore[assignment]


def side_data(frame: VideoFrame, kind: str) -> bytes | None:
    """What a frame carries beside its pixels, as FFmpeg's structure of that kind."""
    _know_newer_kinds()
    data: Any = frame.side_data.get(kind)
    return None if data is None else bytes(data)


def peak_of(frame: VideoFrame) -> float:
    """Brightest light of a video: its MaxCLL, else that of the screen it was graded on, else `USUAL_PEAK`."""
    content = side_data(frame, "CONTENT_LIGHT_LEVEL")
    if content is not None and (brightest := struct.unpack_from("=I", content)[0]):
        return float(brightest / UNIT)
    screen = side_data(frame, "MASTERING_DISPLAY_METADATA")
    if screen is not None:
        numbers = struct.unpack_from("=22i", screen)  # primaries 12, white 4, least 2, most 2, has 2
        if numbers[21] and numbers[19]:
            return numbers[18] / numbers[19] / UNIT  # type: ignore[no-any-return]
    return USUAL_PEAK


@cache
def _table(transfer: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return transfer(np.arange(65_536) / 65_535).astype(np.float32)


def tone_mapped(
    channels: Sequence[np.ndarray],
    transfer: Callable[[np.ndarray], np.ndarray],
    peak: float,
    primaries: int,
) -> np.ndarray:
    """Pixels ``(H, W, 3)`` uint8 of BT.709.

    Args:
        channels: red, green and blue, ``(H, W)`` uint16 signals each.
        transfer: from signal to light.
        peak: the light that becomes white.
        primaries: number of the signals' primaries; unknown ones are taken for those of BT.2020.
    """
    table = _table(transfer)
    light = np.stack([table[channel] for channel in channels], axis=-1)  # (H, W, 3)
    light = light @ TO_BT709.get(primaries, TO_BT709[BT2020]).T
    brightest = np.maximum(light.max(-1, keepdims=True), 1e-6)
    light *= hable(brightest) / hable(peak) / brightest
    signal = np.clip(light, 0, 1) ** (1 / 2.4)  # ITU-R BT.1886
    return np.asarray((signal * 255).round().astype(np.uint8))
