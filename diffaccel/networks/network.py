"""The contract of a denoiser that streams drive: how a prompt is encoded, and how the network is called on rows."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch

from diffaccel.config.checks import check
from diffaccel.models.controlnet import require_fit
from diffaccel.models.tokenizing import ONE_AT_A_TIME
from diffaccel.networks import is_companion, layout_of
from diffaccel.networks.compiled import unwrapped
from diffaccel.networks.conditioning import Conditioning, Keywords
from diffaccel.networks.image_prompts import EMBEDS, SCALES, ImagePrompt, adapters_of, embeddings
from diffaccel.networks.lora_rows import at_work

READERS = tuple(f"{part}{number}" for part in ("tokenizer", "text_encoder") for number in ("", "_2", "_3", "_4"))
"""What may read prompts in a pipeline, by name."""


class Network(ABC):
    """A pipeline's denoiser behind one contract.

    Args:
        pipe: a loaded diffusers pipeline; only read.
        height, width: picture size in pixels.

    Attributes:
        controlnets: the pipeline's ControlNets.
        adapters: its T2I-Adapters, where it has no ControlNets.
        ragged: names of conditionings whose rows may have other lengths each.
        names: of a prompt's embeddings, as pipelines take them, and as the network does.
    """

    component: ClassVar[str] = "transformer"
    patch: ClassVar[int] = 1
    ragged: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[Mapping[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "pooled_prompt_embeds": "pooled_projections",
        "prompt_attention_mask": "encoder_attention_mask",
    }

    def __init__(self, pipe: Any, height: int, width: int) -> None:
        self.pipe, self.height, self.width = pipe, height, width
        self.controlnets = controlnets_of(pipe)
        self.adapters = () if self.controlnets else t2i_adapters_of(pipe)
        self._image_adapters = adapters_of(self.model)
        self._check()

    @property
    def model(self) -> Any:
        """The denoiser, as it is on the pipeline now."""
        return getattr(self.pipe, self.component)

    @cached_property
    def device(self) -> torch.device:
        """Where the pipeline runs; asked once, because diffusers searches all modules for the answer."""
        return torch.device(self.pipe._execution_device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Type of the network's weights, asked once."""
        dtype = self.model.dtype
        return dtype if isinstance(dtype, torch.dtype) else torch.float32

    @property
    def control_images(self) -> int:
        """How many control images a frame shows."""
        return len(self.controlnets or self.adapters)

    @property
    def beside(self) -> str:
        """What the network is given in channels beside the latents: "masked" pictures, "instructed" ones, or ""."""
        return ""

    @property
    def told_scale(self) -> bool:
        """Whether it is told a guidance scale, as networks are that guidance was distilled into."""
        return False

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.model.config.in_channels)

    def _check(self) -> None:  # noqa: B027 - most families have nothing to check
        """Raise ValueError where this pipeline's network needs more than latents and a prompt."""

    def readers(self) -> tuple[Any, ...]:
        """What reads prompts, as far as it changes while a stream is open: learned words and LoRAs of text encoders."""
        parts = [part for name in READERS if (part := getattr(self.pipe, name, None)) is not None]
        words = [len(part) for part in parts if hasattr(part, "__len__")]
        return (*words, *(at_work(part) for part in parts if isinstance(part, torch.nn.Module)))

    def encode(
        self, text: str, *, negative: bool = False, embedded_scale: float | None = None, clip_skip: int | None = None
    ) -> Conditioning:
        """Encode one prompt.

        ``embedded_scale`` is the guidance scale that guidance-distilled networks are told, None for the family's
        default; ``clip_skip`` how many last layers of CLIP encoders do not count, which pipelines ask of positive
        prompts alone.

        Raises:
            ValueError: for a ``clip_skip`` that the encoders do not have.
        """
        skip = {} if clip_skip is None or negative else {"clip_skip": self._checked_skip(clip_skip)}
        with ONE_AT_A_TIME:
            embeds = self._embed(text, negative, **skip)
        return self._conditioning(embeds, embedded_scale)

    def told(self, embeds: Mapping[str, torch.Tensor], embedded_scale: float | None = None) -> Conditioning:
        """Conditioning of embeddings, by the names under which pipelines take them.

        Raises:
            ValueError: for names, shapes and widths that are not the network's.
        """
        widths = self._widths()
        if set(embeds) != {*widths, *self._masks}:
            names = ", ".join([*widths, *self._masks])
            raise ValueError(f"{type(self.model).__name__} is told {names}: give these, not {', '.join(embeds)}")
        for name, value in embeds.items():
            shape = (1, *value.shape[1:-1], widths.get(name, value.shape[-1]))
            if value.ndim != (3 if name == "prompt_embeds" else 2) or tuple(value.shape) != shape:
                wanted = "(1, tokens, {})" if name == "prompt_embeds" else "(1, {})"
                wanted = wanted.format(widths.get(name, "tokens"))
                raise ValueError(f"{name} of {type(self.model).__name__} are {wanted}, not {tuple(value.shape)}")
        on_device = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in embeds.items()
        }
        return self._conditioning(on_device, embedded_scale)

    def _checked_skip(self, clip_skip: int) -> int:
        encoder = getattr(self.pipe, "text_encoder", None)
        layers = int(getattr(getattr(encoder, "config", None), "num_hidden_layers", 0))
        encode = getattr(self.pipe, "encode_prompt", None)  # InstructPix2Pix has none
        if encode is None or "clip_skip" not in inspect.signature(encode).parameters:
            raise ValueError(f"{type(self.pipe).__name__} knows no clip_skip, which is for CLIP encoders: leave it out")
        if clip_skip >= layers:
            raise ValueError(f"clip_skip must be below {layers}, the text encoder's layers; got {clip_skip}")
        return clip_skip

    _masks: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def _widths(self) -> dict[str, int]:
        """Widths of a prompt's embeddings, by the names under which pipelines take them."""

    @abstractmethod
    def _embed(self, text: str, negative: bool, **skip: int) -> dict[str, torch.Tensor]:
        """A prompt's embeddings, by the same names."""

    def _conditioning(self, embeds: Mapping[str, torch.Tensor], embedded_scale: float | None) -> Conditioning:  # noqa: ARG002
        """What the network is told, by its own names."""
        return Conditioning({self.names[name]: value for name, value in embeds.items()})

    def encode_images(self, prompt: ImagePrompt | None, *, negative: bool) -> dict[str, torch.Tensor]:
        """Embeddings for each IP-Adapter of the network, and scales; zeros without a prompt.

        Raises:
            ValueError: for an image prompt where there is no IP-Adapter, or that does not fit.
            RuntimeError: as `require_same_adapters`.
        """
        self.require_same_adapters()
        adapters = self._image_adapters
        if not adapters:
            check(prompt is None, NO_ADAPTER)
            return {}
        found = embeddings(self.pipe, self.model, prompt, self.device)[negative]
        scales = [0.0] * len(adapters) if prompt is None else prompt.scales_for(len(adapters))
        named = {f"{EMBEDS}.{place}": embeds.to(self.dtype) for place, embeds in enumerate(found)}
        return {**named, SCALES: torch.tensor([scales], device=self.device)}

    def require_same_adapters(self) -> None:
        """Raise RuntimeError where IP-Adapters came or went, which change what a call is told."""
        if adapters_of(self.model) != self._image_adapters:
            raise RuntimeError(
                "IP-Adapters were loaded or unloaded since this stream was opened: open another one, or undo that"
            )

    @abstractmethod
    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """One network call: latents ``(rows, C, h, w)``, timesteps ``(rows,)``, stacked conditionings."""

    def lay_out(self, grid: Any, num_inference_steps: int, image_tokens: int) -> None:
        """Set the timesteps of a flow-matching scheduler as the stock pipeline does."""
        grid.set_timesteps(num_inference_steps, **dynamic_shift(grid.config, image_tokens))


def dynamic_shift(config: Any, image_tokens: int) -> dict[str, float]:
    """``mu`` of dynamic time shifting for this picture size, where the scheduler wants it."""
    if not config.use_dynamic_shifting:
        return {}
    base, top = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return {"mu": low + (high - low) * (image_tokens - base) / (top - base)}


NO_ADAPTER = "an image prompt needs an IP-Adapter of SD, SDXL or FLUX: call pipe.load_ip_adapter(...) first"
ADDED = ("text_embeds", "time_ids")
INTRABLOCK = "down_intrablock_additional_residuals"
"""Name of what T2I-Adapters add to the blocks on the way down."""
BESIDE = "beside"
"""Name of the channels that a network is given beside the latents, ``(rows, channels, h, w)``."""


def t2i_adapters_of(pipe: Any) -> tuple[Any, ...]:
    """The T2I-Adapters of a pipeline, of a MultiAdapter each.

    Raises:
        ValueError: where one was made for another UNet.
    """
    whole = getattr(pipe, "adapter", None)
    adapters = () if whole is None else tuple(getattr(whole, "adapters", (whole,)))
    for adapter in adapters:
        made, has = (tuple(c) for c in (adapter.config.channels, pipe.unet.config.block_out_channels))
        if made[: len(has)] != has[: len(made)]:
            raise ValueError(
                f"this T2I-Adapter was made for a UNet of {', '.join(map(str, made))} channels, and the pipeline's has "
                f"{', '.join(map(str, has))}: load one for this base model"
            )
    return adapters


def controlnets_of(pipe: Any) -> tuple[Any, ...]:
    """The ControlNets of a pipeline, of a MultiControlNetModel each.

    Raises:
        TypeError: for other kinds than ControlNetModel.
        ValueError: where one does not fit the pipeline's UNet.
    """
    whole = getattr(pipe, "controlnet", None)
    if whole is None:
        return ()
    bare = unwrapped(whole)
    nets = tuple(unwrapped(net) for net in getattr(bare, "nets", (bare,)))
    for net in nets:
        if not (is_companion(net) and layout_of(net).depths):
            raise TypeError(
                f"{type(net).__name__} cannot stream: StreamEngine runs ControlNetModel and MultiControlNetModel, on "
                "UNets of Stable Diffusion and SDXL"
            )
        require_fit(net, pipe.unet)
        shrinks = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
        if shrinks != pipe.vae_scale_factor:
            raise ValueError(
                f"this ControlNet was made for another autoencoder: it makes control images {shrinks} times smaller, "
                f"and the pipeline's pictures {pipe.vae_scale_factor} times smaller; load one for this base model"
            )
    return nets
