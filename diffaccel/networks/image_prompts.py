"""Image prompts: pictures that IP-Adapters (arXiv 2308.06721) show to a network beside the words of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from diffaccel.config.checks import check, number

EMBEDS, SCALES = "image_embeds", "image_scales"
"""Names of what a prompt's conditioning holds for them: one tensor of embeddings an adapter, and the scales of all."""
MOST_SCALE = 10.0
BLACK = Image.new("RGB", (8, 8))


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """What a picture says beside the words. Compared by identity.

    Args:
        images: a picture in any form that a frame may have, or for several IP-Adapters one each; where an adapter is to
            see several, a list of them.
        scale: how strongly; one number, or one for each adapter. It multiplies what ``pipe.set_ip_adapter_scale`` set.
        embeds: instead of pictures what ``pipe.prepare_ip_adapter_image_embeds`` made of them with guidance: for each
            adapter negative and positive ones, ``(2, pictures, ...)``; of InstructPix2Pix ``(3, pictures, ...)``; of
            FLUX those of black pictures and of these, joined.

    Raises:
        ValueError: for scales that are not from 0 to 10, and for both or neither of pictures and embeddings.
    """

    images: Any = None
    scale: float | Sequence[float] = 1.0
    embeds: Sequence[torch.Tensor] | None = None

    def __post_init__(self) -> None:
        check((self.images is None) != (self.embeds is None), "give an ImagePrompt either images or embeds=")
        for scale in self.scale if isinstance(self.scale, Sequence) else (self.scale,):
            number("scale", scale, 0.0, MOST_SCALE)

    def images_for(self, adapters: int) -> list[Any]:
        """What each of so many adapters sees. Raises ValueError where that cannot be told."""
        images = self.images if isinstance(self.images, list | tuple) else [self.images]
        if adapters == 1 and len(images) > 1:
            return [list(images)]
        check(
            len(images) == adapters,
            f"this pipeline has {adapters} IP-Adapters, and the image prompt {len(images)} pictures: give one for "
            "each, or a list of pictures for each",
        )
        return list(images)

    def scales_for(self, adapters: int) -> list[float]:
        """The scale of each of so many adapters. Raises ValueError for another number of scales."""
        scales = list(self.scale) if isinstance(self.scale, Sequence) else [self.scale] * adapters
        check(
            len(scales) == adapters,
            f"this pipeline has {adapters} IP-Adapters, and the image prompt {len(scales)} scales: give one for each",
        )
        return [float(scale) for scale in scales]


def adapters_of(model: Any) -> tuple[Any, ...]:
    """The image projections of the IP-Adapters that were loaded into a UNet, or FLUX's transformer."""
    if getattr(model.config, "encoder_hid_dim_type", None) != "ip_image_proj":  # loading sets it as an attribute
        return ()
    return tuple(model.encoder_hid_proj.image_projection_layers)


def shown_in(inputs: Mapping[str, Any]) -> list[Any]:
    """The embeddings for each adapter among the inputs of a call, ``(rows, pictures, ...)``."""
    return [value for name, value in inputs.items() if name.startswith(EMBEDS)]


def scaled_modules(model: Any) -> tuple[tuple[str, int], ...]:
    """Modules whose outputs a scale multiplies, the values that image prompts have in attentions, and whose scale."""
    return tuple(
        (f"{name}.processor.to_v_ip.{index}", index)
        for name, module in model.named_modules()
        for index, _ in enumerate(getattr(getattr(module, "processor", None), "to_v_ip", ()))
    )


@torch.no_grad()
def embeddings(
    pipe: Any, model: Any, prompt: ImagePrompt | None, device: torch.device
) -> tuple[list[torch.Tensor], ...]:
    """Of an image prompt, for each adapter: the positive ones and the negative ones, ``(1, pictures, ...)``.

    Without a prompt both are zeros.

    Raises:
        ValueError: for what is no picture, another number of pictures, and a pipeline without an image encoder.
    """
    adapters = adapters_of(model)
    if prompt is None:
        blank = [torch.zeros(1, 1, *_shape(layer), device=device, dtype=model.dtype) for layer in adapters]
        return blank, blank
    if prompt.embeds is not None:
        return _parted([x.to(device, copy=True) for x in _fitting(prompt.embeds, adapters)])
    check(
        getattr(pipe, "image_encoder", None) is not None and pipe.feature_extractor is not None,
        "an image prompt needs the pipeline's image_encoder and feature_extractor: load_ip_adapter brings them",
    )
    return _parted(_made(pipe, prompt.images_for(len(adapters)), device))


def _made(pipe: Any, images: list[Any], device: torch.device) -> list[torch.Tensor]:
    """What the pipeline makes of pictures with guidance; FLUX's makes one kind at a time, negative ones of black."""
    make = pipe.prepare_ip_adapter_image_embeds
    if hasattr(pipe, "unet"):
        made: list[torch.Tensor] = make(images, None, device, 1, True)
        return made
    black = [[BLACK] * len(each) if isinstance(each, list) else BLACK for each in images]
    return [torch.cat(pair) for pair in zip(*(make(kind, None, device, 1) for kind in (black, images)), strict=True)]


def _parted(made: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Positive and negative ones of each adapter, which pipelines have in the order of their guidance.

    That is negative and positive, and on InstructPix2Pix positive, negative and negative.
    """
    negative_first = [x if len(x) == 2 else x[:2].flip(0) for x in made]
    return [x[1:] for x in negative_first], [x[:1] for x in negative_first]


def _fitting(embeds: Sequence[torch.Tensor], adapters: Sequence[Any]) -> Sequence[torch.Tensor]:
    """Embeddings that were made for these adapters. Raises ValueError for others."""
    check(len(embeds) == len(adapters), f"{len(adapters)} IP-Adapters need as many embeds, not {len(embeds)}")
    for place, (embed, layer) in enumerate(zip(embeds, adapters, strict=True)):
        wanted = _shape(layer)
        check(
            isinstance(embed, torch.Tensor), f"embeds of the image prompt must be tensors, not {type(embed).__name__}"
        )
        check(
            embed.dim() == 2 + len(wanted) and len(embed) in (2, 3) and embed.shape[-1] == wanted[-1],
            f"embeds[{place}] of the image prompt have the shape {tuple(embed.shape)}, and the IP-Adapter takes (2, "
            f"pictures, ..., {wanted[-1]}): make them with this pipeline's prepare_ip_adapter_image_embeds",
        )
        check(bool(embed.isfinite().all()), f"embeds[{place}] of the image prompt hold NaN or infinite values")
    return embeds


def _shape(layer: Any) -> tuple[int, ...]:
    """The shape of what an adapter is told of one picture, all zeros."""
    if hasattr(layer, "image_embeds"):  # ImageProjection
        return (layer.image_embeds.in_features,)
    if hasattr(layer, "proj_in"):  # IPAdapterPlusImageProjection
        return (1, layer.proj_in.in_features)
    return (layer.ff.net[0].proj.in_features,)  # IPAdapterFullImageProjection
