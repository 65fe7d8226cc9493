"""Control images, given with a frame or made from its picture; and how strongly ControlNets follow them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diffaccel.stream.images import Fit, Picture, to_unit_frames

ControlFunction = Callable[[torch.Tensor], Picture]
Control = str | ControlFunction
Given = Picture | Sequence[Picture]
MOST_SCALE = 10.0


def identity(picture: torch.Tensor) -> torch.Tensor:
    """The picture itself, for ControlNets that keep colours or details (tile, recolour)."""
    return picture


def edges(picture: torch.Tensor) -> torch.Tensor:
    """White edges on black, ``(3, H, W)``: the Sobel gradient of the mean of the colours.

    A step of half the range from black to white, or more, is white.
    """
    grey = F.pad(picture.mean(0)[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    along = grey[:-2] + 2 * grey[1:-1] + grey[2:]
    across = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    strength = torch.hypot(along[:, 2:] - along[:, :-2], across[2:] - across[:-2]) / 4
    return (2 * strength).clamp(0, 1).expand(3, -1, -1)


def canny(picture: torch.Tensor) -> np.ndarray:
    """Thin white edges on black, ``(H, W, 3)``: Canny's, through OpenCV, with the usual thresholds 100 and 200."""
    import cv2

    pixels = (picture * 255).round().to(torch.uint8).movedim(0, -1).contiguous().cpu().numpy()
    found: np.ndarray = cv2.Canny(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), 100, 200)
    return np.repeat(found[..., None], 3, -1)


CONTROLS: MappingProxyType[str, ControlFunction] = MappingProxyType(
    {"edges": edges, "canny": canny, "identity": identity}
)
"""Control functions by name."""


def functions_for(control: Control | Sequence[Control] | None, nets: int) -> tuple[ControlFunction, ...]:
    """One function for each of ``nets`` ControlNets; none where control images are given with the frames.

    Raises:
        TypeError: for what is neither a name nor a function.
        ValueError: for an unknown name, one that needs OpenCV without it, and another number of functions.
    """
    if control is None:
        return ()
    if not nets:
        raise ValueError("control makes images for a ControlNet, and this pipeline has none: leave it out")
    several = not isinstance(control, str) and isinstance(control, Sequence)
    found = tuple(_function(c) for c in (control if several else (control,)))  # type: ignore[union-attr]
    if not several:
        return found * nets
    if len(found) != nets:
        raise ValueError(f"{nets} ControlNets need as many control functions, not {len(found)}")
    return found


def _function(control: object) -> ControlFunction:
    if callable(control):
        return control
    if not isinstance(control, str):
        raise TypeError(f"control must be a function of a picture or one of {', '.join(CONTROLS)}, not {control!r}")
    if control not in CONTROLS:
        raise ValueError(f"control must be a function of a picture or one of {', '.join(CONTROLS)}, not {control!r}")
    if control == "canny" and find_spec("cv2") is None:
        raise ValueError("control 'canny' needs OpenCV: pip install 'diffaccel[camera]', or use control='edges'")
    return CONTROLS[control]


def scales_for(scale: float | Sequence[float], nets: int) -> tuple[float, ...]:
    """The conditioning scale of each ControlNet.

    Raises:
        TypeError: for what is not a number.
        ValueError: for NaN or infinity, a scale out of range, another number of scales, and a scale where there is no
            ControlNet.
    """
    scales = tuple(scale) if isinstance(scale, Sequence) else (scale,) * max(1, nets)
    if any(isinstance(s, bool) or not isinstance(s, Real) for s in scales):
        raise TypeError(f"controlnet_scale must be a number, or one for each ControlNet, not {scale!r}")
    if not all(map(math.isfinite, scales)):
        raise ValueError(f"controlnet_scale must be finite, not {scale!r}")
    if not all(0 <= s <= MOST_SCALE for s in scales):
        raise ValueError(f"controlnet_scale must be from 0, not at all, to {MOST_SCALE:g}, not {scale!r}")
    if not nets:
        if scale != 1.0:
            raise ValueError("controlnet_scale needs a ControlNet, and this pipeline has none: leave it out")
        return ()
    if len(scales) != nets:
        raise ValueError(f"{nets} ControlNets need as many values of controlnet_scale, not {len(scales)}")
    return tuple(float(s) for s in scales)


def given_images(control: Given, nets: int, height: int, width: int, fit: Fit) -> tuple[torch.Tensor, ...]:
    """Control images as they were pushed, ``(frames, 3, height, width)`` in [0, 1] for each ControlNet.

    Raises:
        TypeError, ValueError: for what is no picture, and other numbers of pictures.
    """
    if not nets:
        raise ValueError("a control image needs a ControlNet, and this pipeline has none: leave control out")
    if not isinstance(control, list | tuple):
        return (_checked(control, height, width, fit),) * nets
    if len(control) != nets:
        raise ValueError(f"{nets} ControlNets need as many control images, not {len(control)}")
    images = tuple(_checked(picture, height, width, fit) for picture in control)
    if len({len(image) for image in images}) > 1:
        raise ValueError(f"control images must be of as many frames each, not {[len(image) for image in images]}")
    return images


def made_images(
    picture: torch.Tensor, functions: Sequence[ControlFunction], height: int, width: int, fit: Fit
) -> tuple[torch.Tensor, ...]:
    """Control images ``(1, 3, height, width)`` in [0, 1] that functions make from a picture ``(3, height, width)``.

    Raises:
        TypeError, ValueError: where a function gives no picture.
    """
    images = {f: _checked(f(picture), height, width, fit) for f in dict.fromkeys(functions)}
    for image in images.values():
        if len(image) != 1:
            raise ValueError(f"a control function must give one picture, not {len(image)}")
    return tuple(images[f] for f in functions)


def _checked(picture: Any, height: int, width: int, fit: Fit) -> torch.Tensor:
    try:
        return to_unit_frames(picture, height, width, fit, behind="black")  # there is nothing to follow
    except (TypeError, ValueError) as error:
        raise type(error)(f"the control image cannot be used: {error}") from error
