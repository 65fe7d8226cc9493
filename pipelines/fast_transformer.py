"""Text-to-image with diffusion transformers (PixArt, SD3, FLUX, Sana), accelerated by call arguments.

    pipe = DiffusionPipeline.from_pretrained(
        model, custom_pipeline="pipelines/fast_transformer.py", trust_remote_code=True
    )
    pipe("a red heart", cache="blockcache:threshold=0.08").images[0]

`cache` and `guidance` take a method, its text or its dictionary; without them the call is the stock one.
"""

from collections.abc import Mapping
from typing import Any

from diffusers import (
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
)

import diffaccel.pipelines.base

SDXL_LATENT_SCALE = 0.13025
"""The scaling factor of SDXL's autoencoder, by which PixArt-Sigma differs from PixArt-Alpha."""


class FastTransformerPipeline(
    diffaccel.pipelines.base.FastPipeline,
    stock=(PixArtAlphaPipeline, PixArtSigmaPipeline, SanaPipeline, StableDiffusion3Pipeline, FluxPipeline),
):
    """The stock text-to-image pipeline of its components, with `cache` and `guidance`."""

    @classmethod
    def choose(cls, components: Mapping[str, Any]) -> type:
        """As for every custom pipeline; the two PixArts, whose components have the same types, are told apart here."""
        stock = super().choose(components)
        sigma = stock is PixArtAlphaPipeline and components["vae"].config.get("scaling_factor") == SDXL_LATENT_SCALE
        return PixArtSigmaPipeline if sigma else stock
