"""What frames show to the network beside latents and prompts: one small class for each kind.

A `Condition` makes something of the frames that enter together, and what it made travels with them as `FrameInput`: it
adds keyword arguments to the network's calls, row by row, and has a last word on their latents behind each step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from diffaccel.networks.conditioning import Keywords
from diffaccel.networks.network import BESIDE, INTRABLOCK, Network
from diffaccel.sampling.samplers import NoiseLevel
from diffaccel.stream.images import Codec


@dataclass(frozen=True, eq=False)
class ControlImages:
    """What a group of frames shows to ControlNets or T2I-Adapters.

    Attributes:
        images: for each of them ``(frames, 3, H, W)`` in [0, 1].
    """

    images: tuple[torch.Tensor, ...]


class FrameInput:
    """What frames that entered together show, from stage to stage."""

    def keywords(self, scales: Sequence[float]) -> Keywords:  # noqa: ARG002
        """Arguments of the network, each ``(frames, ...)``, in lists where there are several.

        Args:
            scales: of the frames' settings, one for each control image.
        """
        return {}

    def settled(self, latents: torch.Tensor, level: NoiseLevel | None) -> torch.Tensor:  # noqa: ARG002
        """Latents ``(frames, C, h, w)`` that a step has led to a noise level, or (None) to the finished picture."""
        return latents

    def blank(self) -> FrameInput:
        """What rows see that are shown no picture."""
        return self


@dataclass(frozen=True, eq=False)
class Arrival:
    """Frames as they enter.

    Attributes:
        pixels: ``(frames, 3, H, W)`` in [-1, 1], None for text-to-image.
        source: their clean latents, before any feedback.
        noise: of their first stage, ``(frames, C, h, w)``.
        masks: 1 where they are painted anew, ``(frames, 1, H, W)``; None where no mask was given.
        control: their control images; the same object as that of the frames before where it shows the same.
    """

    pixels: torch.Tensor | None
    source: torch.Tensor | None
    noise: torch.Tensor
    masks: torch.Tensor | None = None
    control: ControlImages | None = None


class Condition(ABC):
    """A kind of input.

    Args:
        network: the denoiser.
        codec: encodes pictures.

    Attributes:
        needs: what each frame has to bring: "picture", "mask".
    """

    needs: tuple[str, ...] = ()

    def __init__(self, network: Network, codec: Codec) -> None:
        self.network, self.codec = network, codec

    def bare(self, masks: torch.Tensor | None) -> bool:  # noqa: ARG002
        """Whether frames under these masks begin as noise alone, where the first timestep of the grid is their first.

        So do those of the stock pipelines.
        """
        return bool(self.needs)

    @abstractmethod
    def enter(self, arrival: Arrival) -> FrameInput | None:
        """What frames that enter show; None for nothing."""


@dataclass(frozen=True, eq=False)
class Beside(FrameInput):
    """Channels ``(frames, channels, h, w)`` beside the latents."""

    channels: torch.Tensor

    def keywords(self, scales: Sequence[float]) -> Keywords:  # noqa: ARG002
        """The channels."""
        return {BESIDE: self.channels}

    def blank(self) -> FrameInput:
        """Nothing."""
        return Beside(torch.zeros_like(self.channels))


class MaskedPicture(Condition):
    """The mask, and the picture without what is painted anew: UNets that were trained to inpaint."""

    needs = ("picture", "mask")

    def enter(self, arrival: Arrival) -> FrameInput | None:
        """Grey stands where the picture is painted anew."""
        assert arrival.pixels is not None
        assert arrival.masks is not None
        mask = _small(arrival.masks, arrival.noise)
        return Beside(torch.cat([mask, self.codec.encode(arrival.pixels * (arrival.masks < 0.5))], 1))


class Instructed(Condition):
    """The picture that a prompt says how to change (InstructPix2Pix, arXiv 2211.09800)."""

    needs = ("picture",)

    def enter(self, arrival: Arrival) -> FrameInput | None:
        """Its latents as the autoencoder makes them, without their scale; CosXL Edit is shown them with it."""
        assert arrival.source is not None
        scaled = getattr(self.network.pipe, "is_cosxl_edit", False)
        return Beside(arrival.source if scaled else self.codec.unscaled(arrival.source))


@dataclass(frozen=True, eq=False)
class Kept(FrameInput):
    """Latents of what stays, and the mask and the noise they stay under."""

    mask: torch.Tensor
    source: torch.Tensor
    noise: torch.Tensor

    def settled(self, latents: torch.Tensor, level: NoiseLevel | None) -> torch.Tensor:
        """What stays is put back, at the noise level reached."""
        known = self.source if level is None else level.alpha * self.source + level.sigma * self.noise
        return torch.lerp(known, latents, self.mask)


class MaskedLatents(Condition):
    """What stays is put back behind every step: any network, frames with a mask."""

    def bare(self, masks: torch.Tensor | None) -> bool:
        """Only where there is a mask."""
        return masks is not None

    def enter(self, arrival: Arrival) -> FrameInput | None:
        """Only where there is a mask."""
        if arrival.masks is None or arrival.source is None:
            return None
        return Kept(_small(arrival.masks, arrival.noise), arrival.source, arrival.noise)


@dataclass(frozen=True, eq=False)
class Features(FrameInput):
    """What each T2I-Adapter made of its control image, for each block on the way down ``(frames, C, h, w)``."""

    made: tuple[Sequence[torch.Tensor], ...]

    def keywords(self, scales: Sequence[float]) -> Keywords:
        """Their sum, each by its scale."""
        scaled = [[scale * x for x in features] for scale, features in zip(scales, self.made, strict=True)]
        return {INTRABLOCK: [torch.stack(level).sum(0) for level in zip(*scaled, strict=True)]}


class Sketched(Condition):
    """Control images through T2I-Adapters (arXiv 2302.08453), which run once for all stages of a frame."""

    _last: tuple[ControlImages, Features] | None = None

    @torch.no_grad()
    def enter(self, arrival: Arrival) -> FrameInput | None:
        """Anew only where the control image is another one."""
        control = arrival.control
        assert control is not None
        if self._last is None or self._last[0] is not control:
            pairs = zip(self.network.adapters, control.images, strict=True)
            self._last = control, Features(tuple(_features(adapter, image) for adapter, image in pairs))
        return self._last[1]


def _features(adapter: Any, image: torch.Tensor) -> Sequence[torch.Tensor]:
    """Of one adapter; those for sketches take one channel."""
    if adapter.config.in_channels == 1:
        image = image.mean(1, keepdim=True)
    made: Sequence[torch.Tensor] = adapter(image.to(adapter.dtype))
    return made


def require_size(network: Network) -> None:
    """Raise ValueError where T2I-Adapters cannot divide the picture."""
    for adapter in network.adapters:
        multiple = adapter.total_downscale_factor
        if network.height % multiple or network.width % multiple:
            raise ValueError(
                f"this T2I-Adapter needs height and width to be multiples of {multiple}, not {network.height} and "
                f"{network.width}"
            )


def _small(masks: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Masks in the size of latents, as diffusers makes them."""
    return F.interpolate(masks, latents.shape[-2:]).to(latents)


_BY_CHANNELS: dict[str, Callable[[Network, Codec], Condition]] = {
    "": MaskedLatents,
    "masked": MaskedPicture,
    "instructed": Instructed,
}


def conditions_for(network: Network, codec: Codec) -> list[Condition]:
    """The kinds of input that a network takes."""
    sketched: list[Condition] = [Sketched(network, codec)] if network.adapters else []
    return [_BY_CHANNELS[network.beside](network, codec), *sketched]


def require_needs(conditions: Sequence[Condition], given: Mapping[str, Any]) -> None:
    """Raise ValueError where a frame lacks what a kind of input needs."""
    for condition in conditions:
        missing = [need for need in condition.needs if given[need] is None]
        if missing:
            kind = condition.network.beside
            raise ValueError(
                f"this UNet paints {kind} pictures, and the frame has no {missing[0]}: push(picture"
                f"{', mask=...' if 'mask' in condition.needs else ''})"
            )


def rows_of(shown: Sequence[tuple[Keywords, int]]) -> Keywords:
    """Keyword arguments of a call, given for each of its rows those of its slot and its place there."""
    names = dict.fromkeys(name for keywords, _ in shown for name in keywords)
    return {name: _rows([(keywords[name], k) for keywords, k in shown]) for name in names}


def _rows(values: Sequence[tuple[Any, int]]) -> Any:
    first = values[0][0]
    if isinstance(first, torch.Tensor):
        return torch.cat([value[k : k + 1] for value, k in values])
    return [_rows([(value[i], k) for value, k in values]) for i in range(len(first))]
