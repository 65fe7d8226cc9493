"""From a configuration to the tensors frames are denoised with, and from one such setting to the next."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, get_args

import torch

from diffaccel.config.checks import one_of, whole
from diffaccel.networks.conditioning import Conditioning, GivenEmbeds, Interpolation, PromptEmbeds, blend
from diffaccel.networks.image_prompts import ImagePrompt
from diffaccel.networks.lora_rows import LORA_SCALES, adapters_loaded, require_scales, scales_of
from diffaccel.networks.network import Network
from diffaccel.sampling.guidance import Guidance
from diffaccel.sampling.samplers import sampler_for
from diffaccel.stream.batch import FrameSettings
from diffaccel.stream.config import Prompt, StreamConfig, weighted
from diffaccel.stream.control import functions_for, scales_for
from diffaccel.stream.images import as_images
from diffaccel.stream.motion import MotionNoise
from diffaccel.stream.regions import Region, RegionPrompt
from diffaccel.stream.seeds import SeededNoise, weighted_seeds
from diffaccel.stream.stages import Stages, build_stages

logger = logging.getLogger(__name__)
At = Literal["all", "new"]
MOVING = ("positive", "negative", "guidance", "control_scales", "image_guidance")
"""What of settings moves from one value to another."""


class SettingsBuilder:
    """Builds settings; what did not change between two configurations is the same object in both.

    Args:
        network: the denoiser.
        latent_shape: ``(C, h, w)``.
    """

    def __init__(self, network: Network, latent_shape: tuple[int, int, int]) -> None:
        self.network, self.latent_shape = network, latent_shape
        self._prompts: dict[object, Conditioning] = {}
        self._adapters = adapters_loaded(network.model)
        self._regions: dict[tuple[Region, Conditioning], RegionPrompt] = {}
        self._images: dict[tuple[ImagePrompt | None, bool], Mapping[str, torch.Tensor]] = {}
        self._stages: tuple[object, Stages] | None = None
        self._unread: object = None  # what was said last of a negative prompt without effect

    def check_loras(self, scales: Mapping[str, float]) -> None:
        """Raise where the pipeline's LoRAs cannot be scaled so; see `require_scales`."""
        told = getattr(self.network.pipe, "get_list_adapters", dict)  # some pipelines take no LoRAs
        loaded = sorted({name for names in told().values() for name in names}) if scales else []
        require_scales(self.network.model, loaded, scales)

    def scale_loras(self, scales: Mapping[str, float]) -> None:
        """Change the pipeline's scale of LoRAs by name, and encode prompts anew: text encoders have some."""
        self.network.pipe.set_adapters(list(scales), list(scales.values()))
        self._prompts.clear()
        self._images.clear()
        self._regions.clear()

    def build(self, config: StreamConfig) -> FrameSettings:
        """Settings of ``config``."""
        stages = self._build_stages(config)
        config.guidance.check(stages.alphas)
        if config.embedded_guidance_scale is not None and not self.network.told_scale:
            raise ValueError(
                f"embedded_guidance_scale={config.embedded_guidance_scale} is for networks that guidance was distilled "
                "into (LCM, FLUX-dev), and this one is told no scale: use guidance=FullGuidance(...)"
            )
        self._check_image_guidance(config)
        if config.motion is not None:
            self._check_motion(config.motion, stages)
        nets = self.network.control_images
        functions_for(config.control, nets)
        scales = scales_for(config.controlnet_scale, nets)
        asks = config.guidance.reads_negative_prompt
        if (config.negative_prompt or config.negative_prompt_embeds is not None) and not asks:
            self._tell_unread(config)
        positive = self._encode(config.prompt, config.prompt_embeds, config, negative=False)
        negative = None
        if asks:
            negative = self._encode(config.negative_prompt, config.negative_prompt_embeds, config, negative=True)
        regions = tuple(self._region(region, config) for region in config.regions)
        self._require_one_length(config, positive, negative, regions)
        self._trim()
        return FrameSettings(
            stages, positive, negative, config.guidance, scales, regions, float(config.image_guidance_scale)
        )

    def _check_image_guidance(self, config: StreamConfig) -> None:
        """Raise ValueError where guidance by the picture is asked for that cannot be had."""
        asked = f"image_guidance_scale={config.image_guidance_scale}"
        if config.image_guidance_scale == 1:
            return
        if self.network.beside != "instructed":
            raise ValueError(f"{asked} is for InstructPix2Pix, and this pipeline is none: leave it out")
        if config.guidance.negative_source != "predicted":
            raise ValueError(
                f"{asked} needs the negative prompt at every stage, which {config.guidance} does not see: use "
                "guidance=FullGuidance(scale) with another scale than 1"
            )

    def _check_motion(self, motion: MotionNoise, stages: Stages) -> None:
        """Raise ValueError where frames that move most would begin below the second stage."""
        timesteps = self.network.pipe.scheduler.config.num_train_timesteps
        first, second = (timestep / timesteps for timestep in (*stages.timesteps, 0)[:2])
        if motion.less >= first - second:
            below = f"the second one at {second:.2f}" if len(stages) > 1 else "there is none below it"
            raise ValueError(
                f"motion takes up to {motion.less} of all timesteps from the first stage, which begins at {first:.2f}, "
                f"and {below}: use MotionNoise(less=...) below {first - second:.2f}"
            )

    def _region(self, region: Region, config: StreamConfig) -> RegionPrompt:
        key = region, self._encode(region.prompt, None, config, negative=False)
        if key not in self._regions:
            _, h, w = self.latent_shape
            mask = region.small_mask(config.height, config.width, (h, w))
            self._regions[key] = RegionPrompt(key[1], mask.to(self.network.device))
        return self._regions[key]

    def _tell_unread(self, config: StreamConfig) -> None:
        """Say once that a negative prompt changes nothing."""
        said = repr(config.negative_prompt) if config.negative_prompt else "of negative_prompt_embeds"
        unread = f"the negative prompt {said} changes nothing under {config.guidance}"
        if unread != self._unread:
            logger.warning("%s: OneTimeNegative reads it, and FullGuidance at other scales than 1", unread)
        self._unread = unread

    def _require_one_length(
        self, config: StreamConfig, positive: Conditioning, negative: Conditioning | None, regions: Sequence[Any]
    ) -> None:
        """Raise ValueError where prompts that share calls are of other lengths, as embeddings may be."""
        others = [] if negative is None else [("the negative prompt", negative)]
        names = [f"the region {region.prompt!r}" for region in config.regions]
        others += zip(names, (region.positive for region in regions), strict=True)
        for name, other in others:
            if other.shapes(self.network.ragged) != positive.shapes(self.network.ragged):
                raise ValueError(
                    f"{name} has {other.tokens} tokens and the prompt {positive.tokens}, and rows of one call have "
                    "as many: give embeddings of one length, or words for both"
                )

    def _build_stages(self, config: StreamConfig) -> Stages:
        scheduler = self.network.pipe.scheduler
        sampler = config.sampler or sampler_for(scheduler)
        grid = config.indices, config.num_inference_steps
        drawn = weighted_seeds(config.seed), config.frame_buffer, config.shared_noise
        key = sampler, grid, drawn, config.add_noise
        if self._stages is None or self._stages[0] != key:
            noise = self._noise(config)
            stages = build_stages(scheduler, sampler, *grid, noise, self.lay_out, add_noise=config.add_noise)
            self._stages = key, stages
        return self._stages[1]

    def lay_out(self, grid: Any, num_inference_steps: int) -> None:
        """Set the timesteps of a flow-matching scheduler as the stock pipeline does."""
        _, h, w = self.latent_shape
        self.network.lay_out(grid, num_inference_steps, h * w // self.network.patch**2)

    def _noise(self, config: StreamConfig) -> torch.Tensor:
        """Per-stage noise, one draw on the CPU: ``(N * frame_buffer, C, h, w)``."""
        stages, frames = len(config.indices), config.frame_buffer
        drawn = stages if config.shared_noise else stages * frames
        noise = SeededNoise(config.seed).draw(drawn, *self.latent_shape)
        if config.shared_noise:
            noise = noise.repeat_interleave(frames, 0)
        return noise.to(self.network.device)

    def _encode(
        self, prompt: Prompt | None, embeds: GivenEmbeds, config: StreamConfig, *, negative: bool
    ) -> Conditioning:
        words = embeds if prompt is None or embeds is not None else weighted(prompt)
        said = config.blend, negative, config.embedded_guidance_scale, config.clip_skip, config.image_prompt
        key = (words, *said, *self._lora(config), *self.network.readers())
        if key not in self._prompts:
            told = self._told(words, config, negative)
            scales = torch.tensor([self._lora(config)], device=self.network.device)
            lora = {LORA_SCALES: scales} if self._adapters else {}
            self._prompts[key] = Conditioning({**told.tensors, **self._seen(config.image_prompt, negative), **lora})
        return self._prompts[key]

    def _lora(self, config: StreamConfig) -> list[float]:
        """The scales of all LoRAs that were there when the stream was opened."""
        return scales_of(self.network.model, self._adapters, config.lora)

    @torch.no_grad()
    def _told(self, words: Any, config: StreamConfig, negative: bool) -> Conditioning:
        """What the network is told of embeddings, or of pairs of text and weight."""
        scale, skip = config.embedded_guidance_scale, config.clip_skip
        if isinstance(words, PromptEmbeds):
            return self.network.told(words.tensors, scale)
        encode = self.network.encode
        parts = [(encode(text, negative=negative, embedded_scale=scale, clip_skip=skip), w) for text, w in words]
        return parts[0][0] if len(parts) == 1 else blend(parts, config.blend)

    @torch.no_grad()
    def _seen(self, prompt: ImagePrompt | None, negative: bool) -> Mapping[str, torch.Tensor]:
        """What an image prompt adds."""
        key = prompt, negative
        if key not in self._images:
            self._images[key] = self.network.encode_images(_with_images(prompt), negative=negative)
        return self._images[key]

    def _trim(self) -> None:
        kept: list[dict[Any, Any]] = [self._prompts, self._images, self._regions]
        for known in kept:
            while len(known) > 32:
                known.pop(next(iter(known)))


def _with_images(prompt: ImagePrompt | None) -> ImagePrompt | None:
    """An image prompt whose pictures are such as all image encoders read alike. Raises for what is no picture."""
    if prompt is None or prompt.images is None:
        return prompt
    try:
        return replace(prompt, images=as_images(prompt.images))
    except (TypeError, ValueError) as error:
        raise type(error)(f"the image prompt cannot be used: {error}") from error


def check_way(at: At, transition: int) -> None:
    """Raise ValueError for an unknown way from one setting to the next."""
    one_of("at", at, get_args(At))
    whole("transition", transition, 0)


class Course:
    """The settings of entering frames, which may be on their way from one to another.

    Attributes:
        settings: of the frames that enter now.
    """

    def __init__(self, settings: FrameSettings) -> None:
        self.settings = self._start = self._end = settings
        self._done = self._frames = 0
        self._at: At = "all"

    def require_company(self, end: FrameSettings, frames: int, at: At, ragged: Sequence[str]) -> None:
        """Raise ValueError where frames in flight could not share calls with those that follow.

        They do where other settings are for new frames alone, or are headed for over a number of `frames`, between
        which prompts are blended. Where a network is told `ragged` ones, only those have to be of one length.
        """
        if at == "all" and frames == 0:
            return
        ragged = () if frames else ragged
        for before, after in ((self.settings.positive, end.positive), (self.settings.negative, end.negative)):
            if before is None or after is None or before.shapes(ragged) == after.shapes(ragged):
                continue
            if before.tokens != after.tokens:
                raise ValueError(
                    f"prompts that share calls, or are blended, have as many tokens, and these have {before.tokens} "
                    f"and {after.tokens}: change all at once, with at='all' and transition=0"
                )
            raise ValueError(
                "image prompts that share calls have as many pictures: repeat one of them, or change all at once"
            )

    def turn(self, end: FrameSettings, frames: int, at: At) -> bool:
        """Head for other settings, over so many entering frames; 0 reaches them at once.

        While settings are on their way, the same end again changes nothing; and where another end is to be reached at
        once, what has the same value in both stays on its way.

        Returns:
            whether settings moved for frames in flight, too.
        """
        if self._done < self._frames:
            if end == self._end:
                return False
            if frames == 0 and (going_on := self._going_on(end)):
                both = [{name: getattr(before, name) for name in going_on} for before in (self._start, self.settings)]
                self._start, self.settings = (replace(end, **values) for values in both)
                self._end, self._at = end, at if at == "new" else self._at
                return at == "all"
        self._start, self._end, self._done, self._frames, self._at = self.settings, end, 0, frames, at
        if frames == 0:
            self.settings = end
        return frames == 0 and at == "all"

    def _going_on(self, end: FrameSettings) -> list[str]:
        """What is on its way to where another end has it, too."""
        same = [name for name in MOVING if getattr(end, name) == getattr(self._end, name)]
        return [name for name in same if getattr(self._start, name) != getattr(end, name)]

    def advance(self, frames: int, how: Interpolation) -> bool:
        """Let frames enter together; whether settings moved for frames in flight, too."""
        if self._done >= self._frames:
            return False
        self._done += frames
        self.settings = self._end if self._done >= self._frames else self._between(self._done / self._frames, how)
        return self._at == "all"

    def arrive(self) -> None:
        """Be at the end at once."""
        self.settings, self._done = self._end, self._frames

    def _between(self, weight: float, how: Interpolation) -> FrameSettings:
        start, end = self._start, self._end
        negative = end.negative or start.negative  # guidance that ends with none may ask for one on the way
        if start.negative is not None and end.negative is not None:
            negative = _between(start.negative, end.negative, weight, how)
        return replace(
            end,
            positive=_between(start.positive, end.positive, weight, how),
            negative=negative,
            guidance=_between_guidances(start.guidance, end.guidance, weight),
            control_scales=_between_scales(start.control_scales, end.control_scales, weight),
            image_guidance=(1 - weight) * start.image_guidance + weight * end.image_guidance,
        )


def _between(start: Conditioning, end: Conditioning, weight: float, how: Interpolation) -> Conditioning:
    return end if start is end else blend([(start, 1 - weight), (end, weight)], how)


def _between_scales(start: tuple[float, ...], end: tuple[float, ...], weight: float) -> tuple[float, ...]:
    return end if start == end else tuple((1 - weight) * a + weight * b for a, b in zip(start, end, strict=True))


def _between_guidances(start: Guidance, end: Guidance, weight: float) -> Guidance:
    """Move scale and delta where both guidances are of one kind; else the new guidance counts at once."""
    if type(start) is not type(end):
        return end
    moved = {f.name: (1 - weight) * getattr(start, f.name) + weight * getattr(end, f.name) for f in fields(start)}
    return replace(end, **moved)
