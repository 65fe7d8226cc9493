"""One small class per network family: how to encode a prompt, and how to call the network on rows.

Every class gives the same contract, `Network`: latents ``(rows, C, h, w)`` in, a prediction of the same shape out,
one timestep per row. The network is looked up on the pipeline at every call, so LoRA, offload, casting and compiling
take effect at once.
"""

# ruff: noqa: ARG002 - subclasses share one signature and need different parts of it

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from diffaccel._diffusers import text_model_of
from diffaccel.networks.compiled import unwrapped
from diffaccel.networks.conditioning import Conditioning, Keywords
from diffaccel.networks.image_prompts import EMBEDS, shown_in
from diffaccel.networks.network import ADDED, BESIDE, INTRABLOCK, Network, dynamic_shift


class _Falling(Network):
    """Networks whose pipelines lay sigmas out evenly."""

    def lay_out(self, grid: Any, num_inference_steps: int, image_tokens: int) -> None:
        """Evenly from 1 towards 0."""
        sigmas = [1 - i / num_inference_steps for i in range(num_inference_steps)]
        grid.set_timesteps(sigmas=sigmas, **dynamic_shift(grid.config, image_tokens))


class UNet(Network):
    """UNet2DConditionModel: Stable Diffusion 1.x / 2.x / Turbo, LCM, SDXL and SDXL-Turbo."""

    component = "unet"
    names: ClassVar[Mapping[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "pooled_prompt_embeds": "text_embeds",
    }

    def _check(self) -> None:
        config = self.model.config
        if self.pipe.config.get("requires_aesthetics_score"):
            raise ValueError(
                "this is a refiner, which is told a score and finishes what another model began: stream that model"
            )
        if config.class_embed_type is not None or config.num_class_embeds is not None:
            raise ValueError("this UNet is told a class or a picture in its place (unCLIP), which streams have none of")
        if config.in_channels - self.channels not in self._kinds:
            raise ValueError(
                f"this UNet takes {config.in_channels} input channels for {self.channels} of latents, such as depth: "
                "StreamEngine needs a network for text-to-image, image-to-image, inpainting or InstructPix2Pix"
            )

    @property
    def channels(self) -> int:
        """Latent channels, which are those of its prediction."""
        return int(self.model.config.out_channels)

    @property
    def _kinds(self) -> dict[int, str]:
        """What channels beside the latents are, by their number."""
        return {0: "", self.channels: "instructed", self.channels + 1: "masked"}

    @property
    def beside(self) -> str:
        """By the number of input channels."""
        return self._kinds[int(self.model.config.in_channels) - self.channels]

    @property
    def told_scale(self) -> bool:
        """Latent consistency models are."""
        return self.model.config.time_cond_proj_dim is not None

    @property
    def _is_xl(self) -> bool:
        return bool(self.model.config.addition_embed_type == "text_time")

    def _widths(self) -> dict[str, int]:
        config = self.model.config
        width = config.cross_attention_dim if config.get("encoder_hid_dim") is None else config.encoder_hid_dim
        widths = {"prompt_embeds": int(width if isinstance(width, int) else width[0])}
        if self._is_xl:
            six = 6 * config.addition_time_embed_dim  # sizes and corners, beside the pooled embeddings
            widths["pooled_prompt_embeds"] = int(config.projection_class_embeddings_input_dim) - six
        return widths

    def _embed(self, text: str, negative: bool, **skip: int) -> dict[str, torch.Tensor]:
        if not self._is_xl:
            return {"prompt_embeds": self._encode_text(text, **skip)}
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=text, device=self.device, do_classifier_free_guidance=False, **skip
        )
        if negative and not text and self.pipe.config.get("force_zeros_for_empty_prompt"):
            embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _conditioning(self, embeds: Mapping[str, torch.Tensor], embedded_scale: float | None) -> Conditioning:
        tensors = {self.names[name]: value for name, value in embeds.items()}
        if self._is_xl:
            sizes = torch.tensor([[self.height, self.width, 0, 0, self.height, self.width]], device=self.device)
            tensors["time_ids"] = sizes.to(embeds["prompt_embeds"].dtype)
        return Conditioning({**tensors, **self._timestep_cond(embedded_scale)})

    def _encode_text(self, text: str, **skip: int) -> torch.Tensor:
        """Embeddings of one encoder, ``(1, tokens, features)``."""
        if hasattr(self.pipe, "encode_prompt"):
            with text_model_of(self.pipe.text_encoder):
                return self.pipe.encode_prompt(text, self.device, 1, False, **skip)[0]  # type: ignore[no-any-return]
        return self.pipe._encode_prompt(text, self.device, 1, False)  # type: ignore[no-any-return]  # InstructPix2Pix

    def _timestep_cond(self, embedded_scale: float | None) -> dict[str, torch.Tensor]:
        if not self.told_scale:
            return {}
        size = self.model.config.time_cond_proj_dim
        scale = 8.5 if embedded_scale is None else embedded_scale
        embedding = self.pipe.get_guidance_scale_embedding(torch.tensor([scale - 1]), embedding_dim=size)
        return {"timestep_cond": embedding.to(self.device, self.dtype)}

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Call the UNet, with what ControlNets add to it."""
        added: dict[str, Any] = {k: inputs[k] for k in ADDED if k in inputs}
        if images := shown_in(inputs):
            added[EMBEDS] = images
        beside = inputs.get(BESIDE)
        result: torch.Tensor = self.model(
            latents if beside is None else torch.cat([latents, beside.to(latents)], 1),  # type: ignore[union-attr]
            timesteps,
            encoder_hidden_states=inputs["encoder_hidden_states"],
            timestep_cond=inputs.get("timestep_cond"),
            added_cond_kwargs=added or None,
            down_block_additional_residuals=inputs.get("down_block_additional_residuals"),
            mid_block_additional_residual=inputs.get("mid_block_additional_residual"),
            down_intrablock_additional_residuals=[x.to(latents) for x in inputs.get(INTRABLOCK, ())] or None,
            return_dict=False,
        )[0]
        return result


class SD3(Network):
    """SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

    patch = 2

    def _widths(self) -> dict[str, int]:
        config = self.model.config
        return {"prompt_embeds": config.joint_attention_dim, "pooled_prompt_embeds": config.pooled_projection_dim}

    def _embed(self, text: str, negative: bool, **skip: int) -> dict[str, torch.Tensor]:
        """Embeddings of three encoders, and pooled ones."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            text, None, None, device=self.device, do_classifier_free_guidance=False, **skip
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Call the transformer."""
        result: torch.Tensor = self.model(hidden_states=latents, timestep=timesteps, **inputs, return_dict=False)[0]
        return result


class Flux(_Falling):
    """FluxTransformer2DModel: FLUX.1 schnell and dev, whose latents are packed 2 x 2."""

    patch = 2

    def _check(self) -> None:
        if "Kontext" in type(self.pipe).__name__:
            raise ValueError(
                "FLUX Kontext reads a picture beside what it paints, and streams begin with it: use FLUX schnell or dev"
            )

    @property
    def channels(self) -> int:
        """Latent channels before packing."""
        return int(self.model.config.in_channels) // 4

    @property
    def told_scale(self) -> bool:
        """FLUX.1 dev is."""
        return bool(self.model.config.guidance_embeds)

    def _widths(self) -> dict[str, int]:
        config = self.model.config
        return {"prompt_embeds": config.joint_attention_dim, "pooled_prompt_embeds": config.pooled_projection_dim}

    def _embed(self, text: str, negative: bool, **skip: int) -> dict[str, torch.Tensor]:
        """T5 embeddings and pooled CLIP embeddings."""
        embeds, pooled, _ = self.pipe.encode_prompt(prompt=text, prompt_2=None, device=self.device)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def _conditioning(self, embeds: Mapping[str, torch.Tensor], embedded_scale: float | None) -> Conditioning:
        tensors = {self.names[name]: value for name, value in embeds.items()}
        if self.told_scale:
            scale = 3.5 if embedded_scale is None else embedded_scale
            tensors["guidance"] = torch.full((1,), scale, device=self.device)
        return Conditioning(tensors)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Call the transformer on packed latents."""
        rows, c, h, w = latents.shape
        packed = (
            latents.reshape(rows, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(rows, h * w // 4, c * 4)
        )
        text, images = inputs["encoder_hidden_states"], shown_in(inputs)
        out = self.model(
            hidden_states=packed,
            timestep=timesteps / 1000,
            **{name: value for name, value in inputs.items() if not name.startswith(EMBEDS)},
            joint_attention_kwargs={"ip_adapter_image_embeds": images} if images else None,
            txt_ids=torch.zeros(text[0].shape[0], 3, device=latents.device, dtype=latents.dtype),
            img_ids=_position_ids(h // 2, w // 2, latents),
            return_dict=False,
        )[0]
        unpacked: torch.Tensor = out.reshape(rows, h // 2, w // 2, c, 2, 2).permute(
            0, 3, 1, 4, 2, 5
        )  # (rows, C, h/2, 2, w/2, 2)
        return unpacked.reshape(rows, c, h, w)


def _position_ids(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    grid = torch.zeros(rows, columns, 3, device=like.device, dtype=like.dtype)
    grid[..., 1] += torch.arange(rows, device=like.device)[:, None]
    grid[..., 2] += torch.arange(columns, device=like.device)[None, :]
    return grid.reshape(rows * columns, 3)


class _Masked(Network):
    """Networks that are told which text tokens are real."""

    def _arguments(self) -> dict[str, Any]:
        return {}

    _masks = ("prompt_attention_mask",)

    def _widths(self) -> dict[str, int]:
        return {"prompt_embeds": self.model.config.caption_channels}

    def _embed(self, text: str, negative: bool, **skip: int) -> dict[str, torch.Tensor]:
        """Text embeddings and their attention mask."""
        arguments = {} if negative else self._arguments()
        embeds, mask, _, _ = self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, device=self.device, clean_caption=False, **arguments
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}


class Sana(_Masked):
    """SanaTransformer2DModel: flow matching on the latents of a deep-compression autoencoder."""

    def _check(self) -> None:
        if self.model.config.get("guidance_embeds"):
            raise ValueError("SANA-Sprint steps along another course than the samplers of streams: use SANA")

    def _arguments(self) -> dict[str, Any]:
        instruction = inspect.signature(self.pipe.__call__).parameters.get("complex_human_instruction")
        return {"complex_human_instruction": instruction.default} if instruction else {}

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Call the transformer."""
        scale = self.model.config.timestep_scale
        result: torch.Tensor = self.model(latents, timestep=timesteps * scale, **inputs, return_dict=False)[0]
        return result


class PixArt(_Masked):
    """PixArtTransformer2DModel and PTDiTTransformer2DModel: PixArt-alpha, -sigma, -LCM; a variance is dropped."""

    patch = 2

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Call the transformer."""
        out: torch.Tensor = self.model(
            latents, timestep=timesteps, **inputs, added_cond_kwargs=self._added(len(latents)), return_dict=False
        )[0]
        return out.chunk(2, dim=1)[0] if out.shape[1] == 2 * latents.shape[1] else out

    def _added(self, rows: int) -> dict[str, torch.Tensor | None]:
        if not self.model.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        size = torch.tensor([self.height, self.width], device=self.device, dtype=self.dtype).expand(rows, 2)
        return {"resolution": size, "aspect_ratio": (size[:, :1] / size[:, 1:])}


class ZImage(_Falling):
    """ZImageTransformer2DModel: takes lists, a reversed time, and predicts the negative velocity."""

    patch = 2
    ragged = ("cap_feats",)
    names: ClassVar[Mapping[str, str]] = {"prompt_embeds": "cap_feats"}

    def _widths(self) -> dict[str, int]:
        return {"prompt_embeds": self.model.config.cap_feat_dim}

    def _embed(self, text: str, negative: bool, **skip: int) -> dict[str, torch.Tensor]:
        """Caption features, as many as the prompt has tokens."""
        embeds, _ = self.pipe.encode_prompt(text, device=self.device, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds[0][None]}

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Call the transformer on lists of frames."""
        out = self.model(
            list(latents.unsqueeze(2).unbind(0)),
            (1000 - timesteps) / 1000,
            list(inputs["cap_feats"]),
            return_dict=False,
        )[0]
        return -torch.stack([row.float() for row in out]).squeeze(2)


_NETWORKS: dict[str, type[Network]] = {
    "UNet2DConditionModel": UNet,
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": Flux,
    "SanaTransformer2DModel": Sana,
    "PixArtTransformer2DModel": PixArt,
    "PTDiTTransformer2DModel": PixArt,
    "ZImageTransformer2DModel": ZImage,
}


def network_for(pipe: Any, height: int, width: int) -> Network:
    """The family of ``pipe``'s denoiser.

    Raises:
        TypeError: where no supported denoiser, encoder or VAE is found; names what can stream.
    """
    for name in ("unet", "transformer"):
        model = getattr(pipe, name, None)
        family = _NETWORKS.get(type(unwrapped(model)).__name__)
        encodes = hasattr(pipe, "encode_prompt") or hasattr(pipe, "_encode_prompt")
        if family is not None and family.component == name and encodes:
            return family(pipe, height, width)
    raise TypeError(
        f"{type(pipe).__name__} cannot stream: "
        "StreamEngine needs a text-to-image or image-to-image pipeline around one of " + ", ".join(_NETWORKS)
    )
