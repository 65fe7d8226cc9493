"""Text-to-image along a control image: ControlNets of Stable Diffusion and SDXL, and RelaCtrl adapters of PixArt.

    pipe = DiffusionPipeline.from_pretrained(
        model, controlnet=net, custom_pipeline="pipelines/fast_control.py", trust_remote_code=True
    )
    pipe("a red heart", control_image=lines, cache="controlcache:interval=3").images[0]

`control_image` and `control_scale` mean the same for all of them; `cache`, `guidance` and `gate` take a method, its
text or its dictionary. A control image of another size is fitted to the picture's, as `fit` says.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)

import diffaccel.pipelines.base
from diffaccel import models
from diffaccel.config.checks import number
from diffaccel.control import Attached, RelaCtrlAdapter, attach
from diffaccel.stream.control import MOST_SCALE
from diffaccel.stream.images import Fit, to_unit_frames

SDXL_LATENT_SCALE = 0.13025


class FastControlPipeline(
    diffaccel.pipelines.base.FastPipeline,
    stock=(
        StableDiffusionControlNetPipeline,
        StableDiffusionXLControlNetPipeline,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
    ),
):
    """The stock pipeline of its components, which follows a control image.

    Attributes:
        adapter: control blocks for a PixArt-like transformer, from `load_control`.
        control: the same at work on the transformer.
    """

    adapter: RelaCtrlAdapter | None = None
    control: Attached | None = None

    @classmethod
    def choose(cls, components: Any) -> type:
        """As for every custom pipeline; the two PixArts, whose components have the same types, are told apart here."""
        stock: type = super().choose(components)
        alpha = stock is PixArtAlphaPipeline
        sigma = alpha and components["vae"].config.get("scaling_factor") == SDXL_LATENT_SCALE
        return PixArtSigmaPipeline if sigma else stock

    def load_control(self, adapter: RelaCtrlAdapter | str | os.PathLike[str]) -> None:
        """Put an adapter's control blocks on the transformer, in place of those before.

        Args:
            adapter: a `RelaCtrlAdapter`, the folder that its `save_pretrained` wrote, or a bundled name.

        Raises:
            ValueError: the pipeline has no transformer, or the adapter is for another one; the message names widths.
        """
        if getattr(self, "transformer", None) is None:
            raise ValueError(
                "this pipeline has no transformer: adapters are for PixArt-like ones; give a UNet its ControlNet as "
                "controlnet=..."
            )
        if not isinstance(adapter, RelaCtrlAdapter):
            place = os.fspath(adapter)
            adapter = RelaCtrlAdapter.from_pretrained(models.path(place) if place in models.names("adapter") else place)
        found = adapter.to(self.transformer.device, self.transformer.dtype).eval()
        self.unload_control()
        self.control, self.adapter = attach(self.transformer, found), found

    def unload_control(self) -> None:
        """Take the control blocks off; harmless where there are none."""
        if self.control is not None:
            self.control.detach()
        self.control = self.adapter = None

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        control_image: Any = None,
        control_scale: float | Sequence[float] = 1.0,
        fit: Fit = "crop",
        **kwargs: Any,
    ) -> Any:
        """The stock call under control.

        Args:
            args, kwargs: of the stock call, and `cache`, `guidance` and `gate`.
            control_image: PIL, array or tensor in [0, 1], one for all pictures or one for each; for several ControlNets
                a list of these. White lines on black for nets of edges.
            control_scale: how closely it is followed, in [0, 10]; for several ControlNets one each, if they differ.
            fit: how a control image of another size gets the picture's: "crop", "pad" or "stretch".

        Raises:
            ValueError: for a scale out of range, and a control image where there is neither ControlNet nor adapter, or
                none where there is one.
        """
        if self.stock_class is None:
            raise TypeError(f"{type(self).__name__} was built without components")
        for scale in control_scale if isinstance(control_scale, Sequence) else (control_scale,):
            number("control_scale", scale, 0.0, MOST_SCALE)
        if getattr(self, "controlnet", None) is not None:
            return super().__call__(*args, **self._of_controlnet(control_image, control_scale, fit, kwargs), **kwargs)
        if self.control is None:
            if control_image is not None:
                raise ValueError("a control image needs an adapter: call load_control(adapter) first")
            return super().__call__(*args, **kwargs)
        return self._under_adapter(args, control_image, control_scale, fit, kwargs)

    def _of_controlnet(
        self, image: Any, scale: float | Sequence[float], fit: Fit, given: dict[str, Any]
    ) -> dict[str, Any]:
        """What the stock call takes of a ControlNet; its own names win."""
        if image is None:
            if "image" not in given:
                raise ValueError("this pipeline's ControlNet needs a control image: give control_image=...")
            return {}
        several = hasattr(self.controlnet, "nets")
        if several and not isinstance(image, list | tuple):
            image = [image] * len(self.controlnet.nets)
        fitted = [self._fitted(one, fit, given) for one in image] if several else self._fitted(image, fit, given)
        scales = list(scale) if isinstance(scale, Sequence) else [scale] * len(fitted) if several else scale
        return {"image": fitted, "controlnet_conditioning_scale": scales}

    def _under_adapter(
        self, args: tuple[Any, ...], image: Any, scale: float | Sequence[float], fit: Fit, given: dict[str, Any]
    ) -> Any:
        if image is None:
            raise ValueError("the adapter needs a control image: give control_image=..., or call unload_control()")
        if isinstance(scale, Sequence):
            raise ValueError(f"an adapter takes one control_scale, not {list(scale)}")
        assert self.control is not None
        latents = self._encoded(self._fitted(image, fit, given))
        copies = given.get("num_images_per_prompt") or 1
        self.control.set_control(latents.repeat_interleave(copies, 0) if len(latents) > 1 else latents, scale)
        try:
            return super().__call__(*args, **given)
        finally:
            self.control.set_control(None)

    def _fitted(self, image: Any, fit: Fit, given: dict[str, Any]) -> torch.Tensor:
        """Control images ``(n, 3, height, width)`` in [0, 1] of the picture's size."""
        denoiser = getattr(self, "unet", None) or self.transformer
        side = denoiser.config.sample_size * self.vae_scale_factor
        size = given.get("height") or side, given.get("width") or side
        listed = image if isinstance(image, list | tuple) else [image]
        try:
            return torch.cat([to_unit_frames(one, *size, fit, behind="black") for one in listed])
        except (TypeError, ValueError) as error:
            raise type(error)(f"the control image cannot be used: {error}") from error

    def _encoded(self, images: torch.Tensor) -> torch.Tensor:
        """Their latents as the transformer's are scaled, ``(n, C, h, w)``."""
        encoded = self.vae.encode((images * 2 - 1).to(self.vae.device, self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents * self.vae.config.scaling_factor
