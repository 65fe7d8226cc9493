"""Text-to-image along a control image: ControlNets of Stable Diffusion and SDXL, and RelaCtrl adapters of PixArt.

    pipe = DiffusionPipeline.from_pretrained(
        model, controlnet=net, custom_pipeline="pipelines/fast_control.py", trust_remote_code=True
    )
    pipe("a red heart", control_image=lines, cache="controlcache:interval=3").images[0]

`control_image` and `control_scale` mean the same for all of them; `cache`, `guidance` and `gate` take a method, its
text or its dictionary. A control image of another size is fitted to the picture's, as `fit` says.
"""

import inspect
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
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN

import diffaccel.pipelines.base
from diffaccel import models
from diffaccel.config.checks import number
from diffaccel.control import Attached, RelaCtrlAdapter, attach
from diffaccel.stream.control import MOST_SCALE
from diffaccel.stream.images import Fit, to_unit_frames

BINS = {32: ASPECT_RATIO_256_BIN, 64: ASPECT_RATIO_512_BIN, 128: ASPECT_RATIO_1024_BIN, 256: ASPECT_RATIO_2048_BIN}
"""The sizes at which PixArt draws, by that of its latents."""


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
        found = adapter.eval()
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
            args, kwargs: of the stock call, and `cache`, `guidance` and `gate`. Its own `image`, which is taken as it
                is, and `controlnet_conditioning_scale` will do, too.
            control_image: PIL, array or tensor in [0, 1], one for all pictures or one for each prompt; for several
                ControlNets a list of these. White lines on black for nets of edges.
            control_scale: how closely it is followed, in [0, 10]; for several ControlNets one each, if they differ.
            fit: how a control image of another size gets the picture's: "crop", "pad" or "stretch".

        Raises:
            ValueError: for a scale out of range, a control image or a scale that is given twice, a control image where
                there is neither ControlNet nor adapter, none where there is one, or another number of them than
                prompts.
            RuntimeError: where the transformer was replaced since `load_control`.
        """
        if self.stock_class is None:
            raise TypeError(f"{type(self).__name__} was built without components")
        for scale in control_scale if isinstance(control_scale, Sequence) else (control_scale,):
            number("control_scale", scale, 0.0, MOST_SCALE)
        given = self._by_name(args, kwargs)
        if getattr(self, "controlnet", None) is not None:
            return super().__call__(**given | self._of_controlnet(control_image, control_scale, fit, given))
        if self.control is None:
            if control_image is not None:
                raise ValueError("a control image needs an adapter: call load_control(adapter) first")
            return super().__call__(**given)
        return self._under_adapter(control_image, control_scale, fit, given)

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the stock call by their names, those by position too, which say how large pictures are."""
        names = list(inspect.signature(self.stock_class.__call__).parameters)[1:]  # type: ignore[union-attr]
        if len(args) > len(names) or not kwargs.keys().isdisjoint(names[: len(args)]):
            inspect.signature(self.stock_class.__call__).bind(self, *args, **kwargs)  # raises what Python would
        return dict(zip(names, args, strict=False)) | kwargs

    def _of_controlnet(
        self, image: Any, scale: float | Sequence[float], fit: Fit, given: dict[str, Any]
    ) -> dict[str, Any]:
        """What the stock call takes of a ControlNet, in place of what it was given under its own names."""
        for ours, changed, theirs in (
            ("control_image", image is not None, "image"),
            ("control_scale", scale != 1.0, "controlnet_conditioning_scale"),
        ):
            if changed and given.get(theirs) is not None:
                raise ValueError(f"{ours} and {theirs} mean the same: give one of them")
        several = len(self.controlnet.nets) if hasattr(self.controlnet, "nets") else 0
        taken: dict[str, Any] = {}
        if given.get("controlnet_conditioning_scale") is None:
            scales = list(scale) if isinstance(scale, Sequence) else [scale] * several if several else scale
            taken["controlnet_conditioning_scale"] = scales
        if image is None:
            if given.get("image") is None:
                raise ValueError("this pipeline's ControlNet needs a control image: give control_image=...")
            return taken
        if several and not isinstance(image, list | tuple):
            image = [image] * several
        size = self._size(given)
        fitted = [self._fitted(one, fit, size) for one in image] if several else self._fitted(image, fit, size)
        return taken | {"image": fitted}

    def _under_adapter(self, image: Any, scale: float | Sequence[float], fit: Fit, given: dict[str, Any]) -> Any:
        if image is None:
            raise ValueError("the adapter needs a control image: give control_image=..., or call unload_control()")
        if isinstance(scale, Sequence):
            raise ValueError(f"an adapter takes one control_scale, not {list(scale)}")
        assert self.control is not None
        assert self.adapter is not None
        self.control.require_on(self.transformer)
        # what the adapter's own method says to a number format is for those who mean to keep some parts in another
        torch.nn.Module.to(self.adapter, self._execution_device, self.transformer.dtype)
        fitted = self._fitted(image, fit, self._size(given))
        if (inner := self._inner_size(given)) != fitted.shape[-2:]:
            fitted = self._fitted(fitted, "pad", inner)  # of what is drawn there, the middle becomes the picture
        self.control.set_control(_for_each(self._encoded(fitted), given), scale)
        try:
            return super().__call__(**given)
        finally:
            self.control.set_control(None)

    def _size(self, given: dict[str, Any]) -> tuple[int, int]:
        """Height and width of the picture."""
        denoiser = getattr(self, "unet", None) or self.transformer
        sides = denoiser.config.sample_size
        height, width = sides if isinstance(sides, list | tuple) else (sides, sides)
        factor = self.vae_scale_factor
        return given.get("height") or height * factor, given.get("width") or width * factor

    def _inner_size(self, given: dict[str, Any]) -> tuple[int, int]:
        """Height and width at which PixArt draws the picture, before it is brought to its own."""
        size, bins = self._size(given), BINS.get(self.transformer.config.sample_size)
        if bins is None or not given.get("use_resolution_binning", True):
            return size
        found: tuple[int, int] = self.image_processor.classify_height_width_bin(*size, ratios=bins)
        return found

    def _fitted(self, image: Any, fit: Fit, size: tuple[int, int]) -> torch.Tensor:
        """Control images ``(n, 3, height, width)`` in [0, 1] of a size."""
        listed = image if isinstance(image, list | tuple) else [image]
        try:
            return torch.cat([to_unit_frames(one, *size, fit, behind="black") for one in listed])
        except (TypeError, ValueError) as error:
            raise type(error)(f"the control image cannot be used: {error}") from error

    def _encoded(self, images: torch.Tensor) -> torch.Tensor:
        """Their latents as the transformer's are scaled, ``(n, C, h, w)``."""
        encoded = self.vae.encode((images * 2 - 1).to(self._execution_device, self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents * self.vae.config.scaling_factor


def _for_each(latents: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """Latents of control images for all pictures of a call: one for all, or one for each, ``(n, C, h, w)``.

    Raises:
        ValueError: there are as many neither as prompts nor as pictures.
    """
    told, copies = given.get("prompt"), given.get("num_images_per_prompt") or 1
    embedded = given.get("prompt_embeds")
    prompts = len(told) if isinstance(told, list | tuple) else 1 if embedded is None else len(embedded)
    count = len(latents)
    if count not in (1, prompts, prompts * copies):
        raise ValueError(f"give one control image for all, or one for each prompt: got {count} for {prompts}")
    return latents.repeat_interleave(copies, 0) if count not in (1, prompts * copies) else latents
