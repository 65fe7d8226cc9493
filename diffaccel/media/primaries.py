"""From the wider primaries of BT.2020 and of P3 to those of BT.709; what no screen of BT.709 can show is cut off.

libswscale can do it, too, but computes a table for it in every picture, which takes seconds.
"""

from __future__ import annotations

from functools import cache

import numpy as np

BT709, BT2020, SMPTE431, SMPTE432 = 1, 9, 11, 12
"""Numbers of ISO/IEC 23091-2: BT.709, BT.2020, and P3 with the white of cinemas and with that of screens."""
SRGB = 13
"""Number of the transfer of IEC 61966-2-1."""

TO_BT709 = {
    BT709: np.eye(3, dtype=np.float32),
    BT2020: np.array(
        ((1.6604910, -0.5876411, -0.0728499), (-0.1245505, 1.1328999, -0.0083494), (-0.0181508, -0.1005789, 1.1187297)),
        np.float32,
    ),  # ITU-R BT.2087, annex 2
    SMPTE431: np.array(
        ((1.1575164, -0.1549624, -0.0025540), (-0.0415001, 1.0455679, -0.0040679), (-0.0180500, -0.0785783, 1.0966283)),
        np.float32,
    ),  # its white adapted by Bradford's matrix
    SMPTE432: np.array(
        ((1.2249402, -0.2249402, 0.0), (-0.0420570, 1.0420570, 0.0), (-0.0196376, -0.0786360, 1.0982736)),
        np.float32,
    ),
}
"""From light of red, green and blue to the same of BT.709."""


@cache
def _light(transfer: int) -> np.ndarray:
    """Light of a signal of 8 bits."""
    signal = np.arange(256, dtype=np.float32) / 255
    curve = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return curve if transfer == SRGB else signal**2.4


def to_bt709(pixels: np.ndarray, primaries: int, transfer: int) -> np.ndarray:
    """Pixels ``(H, W, 3)`` uint8 of BT.709, with the transfer that they had.

    Args:
        pixels: the same of other primaries.
        primaries: one of `TO_BT709`.
        transfer: number of the transfer: that of sRGB, or another, which is taken for that of BT.1886.
    """
    light = np.clip(_light(transfer)[pixels] @ TO_BT709[primaries].T, 0, 1)
    signal = light ** np.float32(1 / 2.4)
    if transfer == SRGB:
        signal = np.where(light <= 0.0031308, light * 12.92, 1.055 * signal - 0.055)
    return np.asarray((signal * 255).round().astype(np.uint8))
