"""From what a caller pushes to a slot at its first stage: checked, cut into frames, encoded, noised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from diffaccel.networks.network import Network
from diffaccel.stream.batch import FrameSettings, Slot
from diffaccel.stream.conditions import Arrival, ControlImages, conditions_for, require_needs, require_size
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.control import Given, functions_for, given_images, made_images
from diffaccel.stream.images import Codec, Picture, to_frames
from diffaccel.stream.masks import given_masks
from diffaccel.stream.motion import Motion, MotionNoise, entered_at
from diffaccel.stream.state import Frame, StreamState, entering_slot, first_noise

NO_CONTROL = (
    "this pipeline's ControlNet or T2I-Adapter needs a control image: give it with the frame, as control=..., or let "
    "the engine make it from the picture, as in StreamEngine(..., control='edges')"
)


class Input(NamedTuple):
    """One frame as it was pushed.

    Attributes:
        pixels: ``(1, 3, H, W)`` in [-1, 1], or None for text-to-image.
        noise: own noise ``(1, C, h, w)``, or None.
        control: control images that were given, ``(1, 3, H, W)`` in [0, 1] for each ControlNet, or None.
        mask: ``(1, 1, H, W)``, 1 where it is painted anew, or None.
    """

    pixels: torch.Tensor | None
    noise: torch.Tensor | None
    control: tuple[torch.Tensor, ...] | None
    mask: torch.Tensor | None = None


def latent_shape(config: StreamConfig, network: Network, codec: Codec) -> tuple[int, int, int]:
    """Latents of one frame, ``(C, h, w)``.

    Raises:
        ValueError: for a picture size that the autoencoder and the network's patches do not divide, and for an
            autoencoder of another number of channels.
    """
    if codec.channels is not None and codec.channels != network.channels:
        raise ValueError(
            f"{type(codec.vae).__name__} makes latents of {codec.channels} channels, and the network takes "
            f"{network.channels}: choose an autoencoder that belongs to this model, or leave vae out"
        )
    multiple = codec.factor * network.patch
    for name, size in (("height", config.height), ("width", config.width)):
        if size % multiple:
            near = max(multiple, round(size / multiple) * multiple)
            raise ValueError(f"{name} must be a multiple of {multiple} for this model, not {size}: try {near}")
    return network.channels, config.height // codec.factor, config.width // codec.factor


class Intake:
    """The way in.

    Args:
        network: the denoiser that frames are for.
        codec: encodes pictures.
        shape: latents of one frame, ``(C, h, w)``.
    """

    def __init__(self, network: Network, codec: Codec, shape: tuple[int, int, int]) -> None:
        self._codec, self._shape, self._device = codec, shape, network.device
        self._nets = network.control_images
        self._scheduler = network.pipe.scheduler
        require_size(network)
        self._conditions = conditions_for(network, codec)
        self._still: tuple[tuple[torch.Tensor, ...], ControlImages] | None = None
        if _asks_for_image_prompts(network.pipe):
            raise ValueError(
                "this pipeline has IP-Adapter layers, which a stream has no image prompts for: "
                "call pipe.unload_ip_adapter() first"
            )

    def needs(self, config: StreamConfig) -> tuple[str, ...]:
        """What each frame has to bring: "picture", "mask", "control image"."""
        given = ("control image",) if self._nets and config.control is None else ()
        return (*(need for condition in self._conditions for need in condition.needs), *given)

    def accept(
        self,
        image: Picture | None,
        latents: torch.Tensor | None,
        control: Given | None,
        config: StreamConfig,
        mask: Picture | None = None,
    ) -> list[Input]:
        """What was pushed, as frames, which share no storage with it: callers write into what they gave.

        Raises:
            TypeError, ValueError: for an unusable picture, noise, control image or mask, naming what is wrong.
        """
        if image is None and config.guidance.negative_source == "input":
            raise ValueError(
                "SelfNegative needs an input picture: for text-to-image use OneTimeNegative or FullGuidance"
            )
        self._require_control(image, control, config)
        require_needs(self._conditions, {"picture": image, "mask": mask})
        size = config.height, config.width, config.fit
        pixels = None if image is None else to_frames(image, *size)
        noise = None if latents is None else _checked(latents, self._shape).clone()
        images = () if control is None else tuple(x.clone() for x in given_images(control, self._nets, *size))
        masks = None if mask is None else given_masks(mask, image, *size)
        counts = [len(x) for x in (pixels, noise, *images[:1]) if x is not None] or [1]
        if masks is not None and len(masks) != counts[0]:
            raise ValueError(f"{counts[0]} frames need as many masks, not {len(masks)}")
        if noise is not None and len(noise) != counts[0]:
            raise ValueError(f"{counts[0]} pictures need as many latents, not {len(noise)}")
        if len(set(counts)) > 1:
            raise ValueError(f"{counts[0]} frames need as many control images, not {counts[-1]}")
        return [Input(_nth(pixels, k), _nth(noise, k), _nth_each(images, k), _nth(masks, k)) for k in range(counts[0])]

    def _require_control(self, image: Picture | None, control: Given | None, config: StreamConfig) -> None:
        if not self._nets or control is not None:
            return
        if config.control is None:
            raise ValueError(NO_CONTROL)
        if image is None:
            raise ValueError(
                "a text-to-image frame has no picture to make a control image from: give it, as control=..."
            )

    def slot(
        self, group: Sequence[Frame], padded: Sequence[Frame], settings: FrameSettings, state: StreamState,
        config: StreamConfig,
    ) -> Slot:  # fmt: skip
        """A slot of frames that enter together, noised to the first stage.

        Args:
            group: the frames.
            padded: the same, and repetitions of the last one where the frame buffer is not full.
            settings: how they are denoised.
            state: counts the time, and draws the noise of text-to-image frames.
            config: of the stream.
        """
        state.painted_under(settings)
        pictures = [f.pixels for f in padded if f.pixels is not None]
        if pictures and len(pictures) < len(padded):
            raise ValueError("one frame buffer cannot mix pictures and text-to-image frames: flush in between")
        masks = _masks(padded, self._device)
        bare = config.indices[0] == 0 and any(condition.bare(masks) for condition in self._conditions)
        pixels = source = encoded = None
        if pictures:
            if config.motion is not None and not bare:
                settings = self._moving(torch.cat(pictures), settings, state.motion, config.motion)
            with state.clock.stage("encode"):
                pixels = torch.cat(pictures).to(self._device, non_blocking=True)
                encoded = self._codec.encode(pixels)
                source = state.fed_back(encoded, config.feedback)
        noises = [state.noise(f, self._shape) if source is None else f.noise for f in group]
        noises += noises[-1:] * (len(padded) - len(group))
        noise = first_noise(settings, noises, self._device)
        slot = entering_slot(group, settings, source, noise, bare=bare)
        if self._nets:
            with state.clock.stage("control"):
                slot.control = self._control(padded, pixels, config)
        with state.clock.stage("encode"):
            arrival = Arrival(pixels, encoded, noise, masks, slot.control)
            slot.shown = tuple(shown for condition in self._conditions if (shown := condition.enter(arrival)))
        return slot

    def _moving(
        self, pictures: torch.Tensor, settings: FrameSettings, motion: Motion, noise: MotionNoise
    ) -> FrameSettings:
        """Settings by which pictures begin with less noise where they move."""
        timesteps = self._scheduler.config.num_train_timesteps
        still = settings.stages.timesteps[0] / timesteps
        strength = motion.strength(pictures, still, noise)
        return replace(settings, stages=entered_at(settings.stages, strength, still, timesteps))

    @torch.no_grad()
    def _control(self, frames: Sequence[Frame], pixels: torch.Tensor | None, config: StreamConfig) -> ControlImages:
        """Control images that were given with the frames, or are made from their pictures in [-1, 1]."""
        functions, size = functions_for(config.control, self._nets), (config.height, config.width, config.fit)
        images = []
        for k, frame in enumerate(frames):
            control = frame.control
            if control is None:
                if pixels is None or not functions:  # the engine's was taken away while the frame waited
                    raise ValueError(NO_CONTROL)
                control = made_images(pixels[k] / 2 + 0.5, functions, *size)
            images.append(control)
        return self._kept(tuple(torch.cat(column) for column in zip(*images, strict=True)))

    def _kept(self, images: tuple[torch.Tensor, ...]) -> ControlImages:
        """Those of the frames before where they show the same, so that what is made of them is kept.

        Images on a device are not compared, because that would wait for the device.
        """
        if self._still is None or not _are_same(images, self._still[0]):
            self._still = images, ControlImages(tuple(image.to(self._device) for image in images))
        return self._still[1]

    def blank(self, config: StreamConfig) -> Frame:
        """A black frame, to warm up with."""
        black = torch.zeros(1, 3, config.height, config.width)
        needs = self.needs(config)
        mask = black[:, :1] + 1 if "mask" in needs else None
        return Frame(0, 0.0, black, None, (black,) * self._nets if "control image" in needs else None, mask)


def _asks_for_image_prompts(pipe: Any) -> bool:
    """Whether IP-Adapters were loaded into the pipeline's transformer."""
    return getattr(getattr(pipe, "transformer", None), "image_proj", None) is not None


def _masks(frames: Sequence[Frame], device: torch.device) -> torch.Tensor | None:
    """The masks of frames, ``(frames, 1, H, W)``; a frame without one is painted anew everywhere."""
    given = [frame.mask for frame in frames]
    like = next((mask for mask in given if mask is not None), None)
    if like is None:
        return None
    return torch.cat([torch.ones_like(like) if mask is None else mask for mask in given]).to(device)


def _nth(frames: torch.Tensor | None, k: int) -> torch.Tensor | None:
    return None if frames is None else frames[k : k + 1]


def _nth_each(images: tuple[torch.Tensor, ...], k: int) -> tuple[torch.Tensor, ...] | None:
    return tuple(image[k : k + 1] for image in images) or None


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


def _are_same(images: tuple[torch.Tensor, ...], others: tuple[torch.Tensor, ...]) -> bool:
    """Whether two frames show the same to all ControlNets, as far as the host can tell."""
    pairs = list(zip(images, others, strict=True))
    return all(one.device.type == "cpu" == other.device.type and torch.equal(one, other) for one, other in pairs)
