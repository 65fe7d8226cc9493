"""Frames of a video as latents and back: one latent a frame, or one for several with what came before in mind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook

from diffaccel.stream.images import Codec
from diffaccel.stream.work import WorkRunner

_brought: Callable[[Any], Any] = apply_forward_hook(lambda vae: vae)
"""An autoencoder where it runs: what offload has put on it is not passed by where its parts are called."""


class FrameCodec(Codec):
    """An autoencoder of pictures: each frame by itself.

    Attributes:
        pictures: how many pictures a latent frame is, after the first.
    """

    pictures = 1

    @property
    def begun(self) -> bool:
        """Whether the next picture is a latent frame with those after it, and not by itself."""
        return True

    def restart(self) -> None:
        """Another video begins."""

    def follow(self, latents: torch.Tensor) -> None:
        """Take note of latents ``(frames, C, h, w)`` whose pictures nobody asks for."""


class WanCodec(FrameCodec):
    """AutoencoderKLWan, decoded chunk by chunk with what its causal convolutions keep of the frames before.

    The first latent frame is one picture, each later one four. Latents are normalised as Wan's pipelines do.
    """

    def __init__(self, vae: Any) -> None:
        config = vae.config
        self.vae, self.dtype = vae, vae.dtype
        self.factor, self.pictures = int(config.scale_factor_spatial), int(config.scale_factor_temporal)
        self.channels = int(config.z_dim)
        if vae.use_tiling:
            raise ValueError("a tiled autoencoder forgets the frames before a chunk: call pipe.vae.disable_tiling()")
        shape = (1, -1, 1, 1, 1)
        self._mean, self._std = (torch.tensor(x).reshape(shape) for x in (config.latents_mean, config.latents_std))
        self._features: list[Any] | None = None
        self._encoded: list[Any] | None = None

    def restart(self) -> None:
        """Forget the features of the frames before."""
        self._features = self._encoded = None

    @property
    def begun(self) -> bool:
        """Whether pictures of this video have been encoded: the first one is a latent frame by itself."""
        return self._encoded is not None

    def follow(self, latents: torch.Tensor) -> None:
        """Decode for the features alone."""
        self.decode(latents)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents ``(frames, C, h, w)`` of the next pictures ``(4 n, 3, H, W)``, or first ones ``(1 + 4 n, 3, H, W)``.

        Pictures beyond such a number are left out.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        vae, each = _brought(self.vae), self.pictures
        whole = pixels.to(self.dtype).transpose(0, 1)[None]
        if vae.config.patch_size is not None:
            whole = patchify(whole, patch_size=vae.config.patch_size)
        features = None if self._encoded is None else list(self._encoded)
        starts = range(0 if features is not None else 1, whole.shape[2] - each + 1, each)
        parts = [(start, start + each) for start in starts]
        if features is None:
            vae.clear_cache()
            features, parts = [None] * vae._enc_conv_num, [(0, 1), *parts]
        hidden = [vae.encoder(whole[:, :, a:b], feat_cache=features, feat_idx=[0]) for a, b in parts]
        self._encoded = features
        mode = vae.quant_conv(torch.cat(hidden, 2)).chunk(2, 1)[0].float()
        latents: torch.Tensor = (mode - self._mean.to(mode)) / self._std.to(mode)
        return latents[0].transpose(0, 1)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures ``(pictures, 3, H, W)`` in float32 of the next latents ``(frames, C, h, w)``, about [-1, 1]."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        vae, own = _brought(self.vae), latents.transpose(0, 1)[None]
        own = (own * self._std.to(own) + self._mean.to(own)).to(self.dtype)
        hidden, pictures = vae.post_quant_conv(own), []
        features = None if self._features is None else list(self._features)  # as it was, where decoding fails
        for frame in range(hidden.shape[2]):
            first = {"first_chunk": True} if features is None else {}
            if features is None:
                vae.clear_cache()
                features = [None] * vae._conv_num
            part = hidden[:, :, frame : frame + 1]
            pictures.append(vae.decoder(part, feat_cache=features, feat_idx=[0], **first))
        self._features = features
        whole = torch.cat(pictures, 2)
        if vae.config.patch_size is not None:
            whole = unpatchify(whole, patch_size=vae.config.patch_size)
        return whole[0].transpose(0, 1).float()


def frame_codec_for(vae: Any, calls: WorkRunner) -> FrameCodec:
    """The codec of an autoencoder; one of pictures is run by ``calls``, perhaps with pictures of streams.

    Raises:
        TypeError: for one that is neither of pictures nor Wan's.
    """
    return WanCodec(vae) if type(vae).__name__ == "AutoencoderKLWan" else FrameCodec(vae, calls)


def model_size(pipe: Any, factor: int) -> dict[str, int]:
    """Picture size that a model was made for, in pixels; nothing where its configuration does not say."""
    model = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    size = getattr(model, "config", {}).get("sample_size")
    return {} if size is None else {"height": int(size) * factor, "width": int(size) * factor}
