"""What a caller pushes, checked and cut into frames; and the shape of their latents."""

from __future__ import annotations

import torch

from diffaccel.stream.config import StreamConfig
from diffaccel.stream.images import Codec, Picture, to_frames
from diffaccel.stream.networks import Network

Input = tuple[torch.Tensor | None, torch.Tensor | None]


def latent_shape(config: StreamConfig, network: Network, codec: Codec) -> tuple[int, int, int]:
    """Latents of one frame, ``(C, h, w)``.

    Raises:
        ValueError: for a picture size that the autoencoder and the network's patches do not divide.
    """
    multiple = codec.factor * network.patch
    for name, size in (("height", config.height), ("width", config.width)):
        if size % multiple:
            near = max(multiple, round(size / multiple) * multiple)
            raise ValueError(f"{name} must be a multiple of {multiple} for this model, not {size}: try {near}")
    return network.channels, config.height // codec.factor, config.width // codec.factor


def accept(
    image: Picture | None, latents: torch.Tensor | None, config: StreamConfig, shape: tuple[int, int, int]
) -> list[Input]:
    """Frames as pairs of pixels ``(1, 3, H, W)`` in [-1, 1] and own noise ``(1, C, h, w)``, either None.

    Raises:
        TypeError, ValueError: for an unusable picture or noise, naming what is wrong.
    """
    if image is None and config.guidance.negative_source == "input":
        raise ValueError("SelfNegative needs an input picture: for text-to-image use OneTimeNegative or FullGuidance")
    pixels = None if image is None else to_frames(image, config.height, config.width, config.fit)
    noise = None if latents is None else _checked(latents, shape)
    count = len(pixels) if pixels is not None else len(noise) if noise is not None else 1
    if noise is not None and len(noise) != count:
        raise ValueError(f"{count} pictures need as many latents, not {len(noise)}")
    return [
        (None if pixels is None else pixels[k : k + 1], None if noise is None else noise[k : k + 1])
        for k in range(count)
    ]


def _checked(latents: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Initial noise as ``(frames, C, h, w)``."""
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        raise TypeError(
            f"latents must be a floating-point tensor, not {getattr(latents, 'dtype', type(latents).__name__)}"
        )
    if latents.ndim not in (3, 4) or tuple(latents.shape[-3:]) != shape or latents.numel() == 0:
        raise ValueError(f"latents must have the shape {shape}, or frames of it, not {tuple(latents.shape)}")
    if latents.device.type == "cpu" and not latents.isfinite().all():
        raise ValueError("latents must be finite: they hold NaN or infinite values")
    return latents if latents.ndim == 4 else latents[None]
