"""Pictures in and out: checked and fitted frames, VAE encoding and decoding, finished pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffaccel.stream.work import Work, WorkRunner

Fit = Literal["crop", "pad", "stretch"]
OutputType = Literal["pil", "np", "pt", "latent"]
Picture = Image.Image | np.ndarray | torch.Tensor

MARGIN = 4
"""How many times longer than what is shown of it a picture may be, before the rest is cut off unresized."""
PIL_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")


def to_frames(image: Picture, height: int, width: int, fit: Fit) -> torch.Tensor:
    """Frames of ``image`` as ``(frames, 3, height, width)`` float32 in [-1, 1], a copy; see `to_unit_frames`."""
    return to_unit_frames(image, height, width, fit) * 2 - 1


def picture_size(image: Picture) -> tuple[int, int]:
    """Height and width of a picture as it was given. Raises as `to_unit_frames`."""
    height, width = _channels_first(image).shape[-2:]
    return int(height), int(width)


def laid_on(image: Image.Image, colour: str) -> Image.Image:
    """A PIL image as RGB, on a colour where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    laid = Image.new("RGB", image.size, colour)
    laid.paste(image, mask=image.getchannel("A"))
    return laid


def to_unit_frames(image: Picture, height: int, width: int, fit: Fit, behind: str = "white") -> torch.Tensor:
    """Frames of ``image`` as ``(frames, 3, height, width)`` float32 in [0, 1].

    Args:
        image: PIL image; array ``(H, W, 3)`` or ``(frames, H, W, 3)``; tensor ``(3, H, W)`` or ``(frames, 3, H, W)``.
            Numbers are uint8, or floating point in [0, 1].
        height, width: target size in pixels.
        fit: "crop" the longer side, "pad" the shorter one with black, or "stretch".
        behind: colour behind what is transparent in a PIL image.

    Raises:
        TypeError: for another type or dtype.
        ValueError: for another mode or shape, an empty picture, or values outside [0, 1] (NaN included).
    """
    pixels = _unit_range(_channels_first(image, behind))
    return pixels if pixels.shape[-2:] == (height, width) else fit_to(pixels, height, width, fit)


def as_images(pictures: Any) -> Any:
    """Pictures, in lists as they are, as PIL images in their own size: RGB of 8 bits. Raises as `to_unit_frames`."""
    if isinstance(pictures, list | tuple):
        return [as_images(picture) for picture in pictures]
    frames = _unit_range(_channels_first(pictures))
    if len(frames) != 1:
        raise ValueError(f"give one picture, or a list of pictures, not {len(frames)} frames")
    return finish(frames * 2 - 1, "pil")[0]


def _channels_first(image: Picture, behind: str = "white") -> torch.Tensor:
    if isinstance(image, Image.Image):
        if image.mode not in PIL_MODES:
            deep = image.mode[0] in "IF"  # which PIL would cut off at 255
            remedy = "scale its values to [0, 1] and give an array (H, W, 3)" if deep else "use image.convert('RGB')"
            raise ValueError(f"image mode {image.mode!r} is not a picture of 8 bits a channel: {remedy}")
        image = np.array(laid_on(image, behind))
    if isinstance(image, np.ndarray):
        if image.ndim not in (3, 4) or image.shape[-1] != 3:
            raise ValueError(f"arrays must have the shape (H, W, 3) or (frames, H, W, 3), not {image.shape}")
        array = np.ascontiguousarray(image)  # PyTorch warns of arrays that may not be written to, as screens give
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy()).movedim(-1, -3)
    elif isinstance(image, torch.Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3:
            raise ValueError(f"tensors must have the shape (3, H, W) or (frames, 3, H, W), not {tuple(image.shape)}")
        tensor = image
    else:
        raise TypeError(f"a frame must be a PIL image, a numpy array or a tensor, not {type(image).__name__}")
    if tensor.numel() == 0:
        raise ValueError(f"the frame is empty: shape {tuple(tensor.shape)}")
    return tensor if tensor.ndim == 4 else tensor[None]


def _unit_range(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point():
        raise TypeError(f"frames must be uint8 or floating point in [0, 1], not {tensor.dtype}")
    tensor = tensor.float()
    if tensor.device.type == "cpu":  # elsewhere this would wait for the device; outputs are checked in any case
        low, high = (float(v) for v in tensor.aminmax())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"frame values must lie in [0, 1], found {low} to {high}: pass uint8, or divide by 255")
    return tensor


def fit_to(pixels: torch.Tensor, height: int, width: int, fit: Fit) -> torch.Tensor:
    """Resize ``(frames, 3, H, W)`` with antialiasing: crop the middle, pad with black around, or stretch."""
    h, w = pixels.shape[-2:]
    choose = {"crop": max, "pad": min}.get(fit)
    if choose is not None:
        ratio = choose(height / h, width / w)
        pixels = _near_middle(pixels, height / ratio, width / ratio)
        h, w = (max(1, round(side * ratio)) for side in pixels.shape[-2:])
    else:
        h, w = height, width
    resized = F.interpolate(pixels, (h, w), mode="bilinear", antialias=True).clamp(0, 1)
    top, left = (height - h) // 2, (width - w) // 2
    return F.pad(resized, (left, width - w - left, top, height - h - top))  # negative padding crops


def _near_middle(pixels: torch.Tensor, height: float, width: float) -> torch.Tensor:
    """The middle of a picture that is many times longer than what is shown of it.

    All of one of 1 x 2048 pixels, enlarged until its short side fills a square of 512, would take 12 GB.
    """
    for side, shown in ((-2, height), (-1, width)):
        most = MARGIN * math.ceil(shown)
        if pixels.shape[side] > most:
            pixels = pixels.narrow(side, (pixels.shape[side] - most) // 2, most)
    return pixels


class Codec:
    """A VAE as two functions between pictures in [-1, 1] and latents of unit scale, its downsampling and its channels.

    Encoding takes the mode of the posterior: sampling it would make a still picture flicker. The VAE gets its input
    with channels last, in which its convolutions are up to twice as fast; its weights stay as they are.

    Args:
        vae: the autoencoder.
        calls: runs it, perhaps on pictures of other streams at the same time.
    """

    def __init__(self, vae: Any, calls: WorkRunner) -> None:
        config = getattr(vae, "config", {})
        self.vae, self._calls = vae, calls
        blocks = config.get("encoder_block_out_channels") or config.get("block_out_channels")
        if blocks is None or not hasattr(vae, "decode"):
            raise TypeError(f"{type(vae).__name__} is not an image autoencoder that StreamEngine knows")
        self.dtype = vae.dtype
        self.factor = 2 ** (len(blocks) - 1)
        self.channels: int | None = config.get("latent_channels")
        self.scale: Any = float(config.get("scaling_factor") or 1.0)
        self.offset: Any = float(config.get("shift_factor") or 0.0)
        moments = [config.get(f"latents_{name}") for name in ("mean", "std")]
        if None not in moments:  # of each channel, as Playground's has them
            self.offset, deviation = (torch.tensor(values).view(1, -1, 1, 1) for values in moments)
            self.scale = self.scale / deviation
        if config.get("force_upcast") and self.dtype == torch.float16:
            raise ValueError(
                f"{type(vae).__name__} overflows in float16 (force_upcast): "
                "call pipe.vae.to(torch.float32), or pass an AutoencoderTiny as vae="
            )

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents ``(frames, C, h, w)`` in float32 of ``(frames, 3, H, W)``."""
        return self._run("encode", self._encode, pixels)

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the autoencoder has them."""
        scale, offset = self._levels(latents)
        result: torch.Tensor = latents / scale + offset
        return result

    def _levels(self, like: torch.Tensor) -> tuple[Any, Any]:
        """Scale and offset: numbers, or of each channel where `like` is."""
        both = self.scale, self.offset
        return tuple(x.to(like) if isinstance(x, torch.Tensor) else x for x in both)  # type: ignore[return-value]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures ``(frames, 3, H, W)`` in float32, about [-1, 1]."""
        return self._run("decode", self._decode, latents)

    def _run(self, kind: str, function: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
        work = Work(kind, id(self.vae), lambda rows: function(rows["frames"]), {"frames": frames}, len(frames))
        result: torch.Tensor = self._calls.run(work)
        return result

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        encoded = self.vae.encode(pixels.to(self.dtype, memory_format=torch.channels_last))
        for name in ("latents", "latent"):
            if hasattr(encoded, name):
                latents = getattr(encoded, name)
                break
        else:
            latents = encoded.latent_dist.mode()
        scale, offset = self._levels(latents.float())
        result: torch.Tensor = (latents.float() - offset) * scale
        return result

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        raw = self.unscaled(latents).to(self.dtype, memory_format=torch.channels_last)
        result: torch.Tensor = self.vae.decode(raw, return_dict=False)[0]
        return result.float()


def finish(images: torch.Tensor, output_type: OutputType) -> list[Any]:
    """Finished pictures, one per frame; None where a value is NaN or infinite.

    ``images`` is ``(frames, 3, H, W)`` in [-1, 1], or the latents. Gives PIL images, arrays ``(H, W, 3)`` in [0, 1],
    tensors ``(3, H, W)`` in [0, 1], or latents ``(C, h, w)``. This is where the host waits for the device, once.
    """
    finite = images.abs().amax((1, 2, 3)).isfinite()  # NaN wins, too
    if output_type == "latent":
        return _keep(images, finite)
    unit = (images / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return _keep(unit, finite)
    if output_type == "np":
        return _keep(unit.movedim(1, -1).cpu().numpy(), finite)
    pixels = _keep((unit * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy(), finite)
    return [None if p is None else Image.fromarray(p) for p in pixels]


def _keep(values: Any, finite: torch.Tensor) -> list[Any]:
    return [value if ok else None for value, ok in zip(values, finite.tolist(), strict=True)]
