"""Video networks that chunks of frames are driven through: how each encodes a prompt, and is called on rows of frames.

The contract is `Network`, with latents ``(rows, C, frames, h, w)`` and one timestep a row. Networks of pictures with
temporal layers are called with one frame a row, so that nothing but attention joins frames: no norm, no modulation.
"""

# ruff: noqa: ARG002 - subclasses share one signature and need different parts of it

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.networks.calls import UNet
from diffaccel.networks.compiled import has_compiled_forward, is_compiled
from diffaccel.networks.conditioning import Conditioning, Keywords
from diffaccel.networks.image_prompts import adapters_of
from diffaccel.networks.network import ADDED, Network

TEXT_LENGTH = 512
"""Tokens of a prompt in the calls of Wan's pipelines; `encode_prompt` by itself has fewer."""


def folded(latents: torch.Tensor) -> torch.Tensor:
    """One frame a row: ``(rows, C, frames, h, w)`` as ``(rows * frames, C, 1, h, w)``."""
    return latents.transpose(1, 2).flatten(0, 1)[:, :, None]


def unfolded(prediction: torch.Tensor, rows: int) -> torch.Tensor:
    """The inverse of `folded`."""
    return prediction[:, :, 0].reshape(rows, -1, prediction.shape[1], *prediction.shape[3:]).transpose(1, 2)


def _by_frame(value: torch.Tensor, frames: int) -> torch.Tensor:
    """What rows are told, for each of their frames."""
    return value.repeat_interleave(frames, 0)


class MotionUNet(UNet):
    """UNetMotionModel: AnimateDiff on Stable Diffusion 1.x and SDXL."""

    def _check(self) -> None:
        if (takes := int(self.model.config.in_channels)) != self.channels:
            raise ValueError(
                f"this UNet takes {takes} channels for {self.channels} of latents, such as a picture to set in motion: "
                "use a text-to-video one"
            )
        for there, what in ((self.controlnets, "ControlNets"), (adapters_of(self.model), "IP-Adapters")):
            if there:
                raise ValueError(f"{what} show nothing to a video that is made chunk by chunk: load the model without")

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Call the UNet on single frames."""
        rows, frames = latents.shape[0], latents.shape[2]
        told = {name: _by_frame(_whole(value), frames) for name, value in inputs.items()}
        prediction: torch.Tensor = self.model(
            folded(latents),
            _by_frame(timesteps, frames),
            encoder_hidden_states=told["encoder_hidden_states"],
            timestep_cond=told.get("timestep_cond"),
            added_cond_kwargs={name: told[name] for name in ADDED if name in told} or None,
            return_dict=False,
        )[0]
        return unfolded(prediction, rows)


class LatteNetwork(Network):
    """LatteTransformer3DModel; a learned variance is dropped."""

    patch = 2
    ragged = ("encoder_hidden_states",)

    def _widths(self) -> dict[str, int]:
        return {"prompt_embeds": self.model.config.caption_channels}

    def _embed(self, text: str, negative: bool, **skip: int) -> dict[str, torch.Tensor]:
        """Text embeddings, as many as the prompt has tokens."""
        embeds, _ = self.pipe.encode_prompt(text, False, device=self.device, clean_caption=False)
        return {"prompt_embeds": embeds}

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Call the transformer on single frames."""
        rows, frames = latents.shape[0], latents.shape[2]
        embeds, bias = padded(inputs["encoder_hidden_states"])
        out: torch.Tensor = self.model(
            folded(latents),
            timestep=_by_frame(timesteps, frames),
            encoder_hidden_states=_by_frame(embeds, frames),
            encoder_attention_mask=None if bias is None else _by_frame(bias, frames),
            return_dict=False,
        )[0]
        return unfolded(out[:, : latents.shape[1]], rows)


class Wan(Network):
    """WanTransformer3DModel: Wan 2.1, and 2.2, whose first transformer this is where there are two."""

    patch = 2

    def _check(self) -> None:
        config = self.model.config
        if config.get("image_dim") is not None or config.out_channels not in (None, config.in_channels):
            raise ValueError("image-to-video transformers need an image beside the frames: use a text-to-video one")

    def _widths(self) -> dict[str, int]:
        return {"prompt_embeds": self.model.config.text_dim}

    def _embed(self, text: str, negative: bool, **skip: int) -> dict[str, torch.Tensor]:
        """Text embeddings, padded to the length of the stock calls, as the padding is read, too."""
        options = {"max_sequence_length": TEXT_LENGTH, "device": self.device}
        embeds, _ = self.pipe.encode_prompt(text, do_classifier_free_guidance=False, **options)
        return {"prompt_embeds": embeds}

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Call the transformer; with one timestep for each token where the model is trained so."""
        if getattr(self.pipe.config, "expand_timesteps", False):
            tokens = latents.shape[2] * (latents.shape[3] // 2) * (latents.shape[4] // 2)
            timesteps = timesteps[:, None].expand(-1, tokens)
        out: torch.Tensor = self.model(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=_whole(inputs["encoder_hidden_states"]),
            return_dict=False,
            **self._more(len(latents)),
        )[0]
        return out

    def _more(self, rows: int) -> dict[str, Any]:
        return {}


class SkyReels(Wan):
    """SkyReelsV2Transformer3DModel, at 24 frames a second."""

    def _check(self) -> None:
        super()._check()
        if (block := int(self.model.config.num_frame_per_block)) > 1:
            raise ValueError(
                f"this transformer hides blocks of {block} frames from those before (num_frame_per_block), and here "
                "chunks say what is seen: call pipe.transformer.register_to_config(num_frame_per_block=1)"
            )

    def _more(self, rows: int) -> dict[str, Any]:
        return {"fps": [1] * rows} if self.model.config.inject_sample_info else {}  # how its pipelines say 24 a second


@dataclass(frozen=True, eq=False)
class FarCache:
    """What an AnyFlowFARTransformer3DModel keeps of clean frames.

    Attributes:
        sizes: frames of each chunk that it is of.
        blocks: keys and values of each block, of compressed frames and of the last ones in full.
    """

    sizes: tuple[int, ...]
    blocks: dict[int, dict[str, torch.Tensor]]

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        """All keys and values."""
        return (tensor for block in self.blocks.values() for tensor in block.values())


class AnyFlow(Wan):
    """AnyFlowFARTransformer3DModel, which has a cache of its own, and is told where each step leads to."""

    @property
    def patch(self) -> int:  # type: ignore[override]
        """Side of the patches of compressed frames."""
        return int(self.model.config.compressed_patch_size[1])

    def lay_out(self, grid: Any, num_inference_steps: int, image_tokens: int) -> None:
        """Evenly from 1 to 0, then shifted, as FlowMapEulerDiscreteScheduler does in double precision."""
        even, shift = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64), float(grid.config.shift)
        grid.sigmas = shift * even / (1 + (shift - 1) * even)
        grid.timesteps = grid.sigmas[:-1] * grid.config.num_train_timesteps

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> torch.Tensor:
        """Not without a cache: see `from_cache`."""
        raise NotImplementedError("this network is called with a cache of its own: see from_cache")

    def cached(self, pieces: Sequence[torch.Tensor], prompts: Sequence[Conditioning]) -> FarCache:
        """The cache of clean frames, chunk by chunk ``(frames, C, h, w)``, under the last one's prompt."""
        sizes = tuple(len(piece) for piece in pieces)
        if not pieces:
            return FarCache((), self._room(sizes, (0, 0)))
        latents = torch.cat(list(pieces))[None].to(self.dtype)
        cache = FarCache(sizes, self._room(sizes, (latents.shape[3], latents.shape[4])))
        told = prompts[-1].tensors["encoder_hidden_states"]
        flag = {"num_cached_chunks": len(sizes) - 1, "is_cache_step": True}
        clean = torch.zeros(1, latents.shape[1], device=latents.device)
        self.model(
            hidden_states=latents, timestep=clean, r_timestep=clean, encoder_hidden_states=told,
            chunk_partition=list(sizes), kv_cache=cache.blocks, kv_cache_flag=flag, return_dict=False,
        )  # fmt: skip
        return cache

    def from_cache(
        self, latents: torch.Tensor, timestep: float, following: float, prompt: Conditioning, cache: FarCache
    ) -> torch.Tensor:
        """The mean velocity of a chunk ``(frames, C, h, w)`` from one timestep to the following one."""
        frames = len(latents)
        start, end = (torch.full((1, frames), float(t), device=latents.device) for t in (timestep, following))
        found: torch.Tensor = self.model(
            hidden_states=latents[None].to(self.dtype), timestep=start, r_timestep=end,
            encoder_hidden_states=prompt.tensors["encoder_hidden_states"],
            chunk_partition=[*cache.sizes, frames], kv_cache=cache.blocks,
            kv_cache_flag={"num_cached_chunks": len(cache.sizes), "is_cache_step": False}, return_dict=False,
        )[0]  # fmt: skip
        return found[0]

    def cache_bytes(self, sizes: Sequence[int], size: tuple[int, int]) -> int:
        """Bytes of a cache of chunks of so many frames, of latents of this height and width."""
        config = self.model.config
        width = 2 * config.num_attention_heads * config.attention_head_dim * config.num_layers
        return sum(self._tokens(sizes, size)) * int(width) * self.dtype.itemsize

    def _tokens(self, sizes: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
        """Tokens of compressed frames, and of those in full."""
        config = self.model.config
        split = max(0, len(sizes) - (config.full_chunk_limit - 1))
        sides = (config.compressed_patch_size[1], config.patch_size[1])
        small, full = ((size[0] // side) * (size[1] // side) for side in sides)
        return sum(sizes[:split]) * small, sum(sizes[split:]) * full

    def _room(self, sizes: Sequence[int], size: tuple[int, int]) -> dict[int, dict[str, torch.Tensor]]:
        """An empty cache."""
        config, counts = self.model.config, self._tokens(sizes, size)
        return {
            block: {
                name: torch.zeros(
                    2, 1, config.num_attention_heads, count, config.attention_head_dim, dtype=self.dtype,
                    device=self.device,
                )
                for name, count in zip(("compressed_cache", "full_cache"), counts, strict=True)
            }
            for block in range(config.num_layers)
        }  # fmt: skip


class SecondWan(Wan):
    """The second transformer of Wan 2.2, for low noise."""

    component = "transformer_2"


_VIDEO: dict[str, type[Network]] = {
    "AnyFlowFARTransformer3DModel": AnyFlow,
    "LatteTransformer3DModel": LatteNetwork,
    "SkyReelsV2Transformer3DModel": SkyReels,
    "UNetMotionModel": MotionUNet,
    "WanTransformer3DModel": Wan,
}


def video_network_for(pipe: Any, height: int, width: int) -> Network:
    """The family of a video pipeline's denoiser.

    Raises:
        TypeError: where no supported denoiser is found, or it was compiled as a whole.
    """
    for name in ("unet", "transformer"):
        model = _uncompiled(pipe, name)
        family = _VIDEO.get(type(model).__name__)
        if family is not None and hasattr(pipe, "encode_prompt"):
            return family(pipe, height, width)
    raise TypeError(
        f"{type(pipe).__name__} cannot make videos chunk by chunk: VideoEngine needs a text-to-video pipeline around "
        f"one of {', '.join(_VIDEO)}"
    )


def experts_of(network: Network) -> tuple[tuple[float, Network], ...]:
    """The networks that take turns in denoising, the first for most noise, each from which timestep on.

    Two for a Wan 2.2 with a `transformer_2` and a `boundary_ratio`; else the network alone.
    """
    pipe = network.pipe
    ratio = getattr(pipe.config, "boundary_ratio", None)
    if ratio is None or _uncompiled(pipe, SecondWan.component) is None:
        return ((0.0, network),)
    boundary = float(ratio) * int(pipe.scheduler.config.num_train_timesteps)
    return (boundary, network), (0.0, SecondWan(pipe, network.height, network.width))


def _uncompiled(pipe: Any, name: str) -> Any:
    """A network of a pipeline, or None.

    Raises:
        TypeError: for one that was compiled as a whole.
    """
    model = getattr(pipe, name, None)
    if model is not None and (is_compiled(model) or has_compiled_forward(model)):
        raise TypeError(
            f"the {name} was compiled as a whole, and its attentions cannot be reached: leave it uncompiled"
        )
    return model


def padded(embeds: torch.Tensor | list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings of unequal length as one tensor ``(rows, tokens, features)``, and what hides the padding.

    The bias ``(rows, 1, tokens)`` is None where nothing was padded.
    """
    if isinstance(embeds, torch.Tensor):
        return embeds, None
    whole = torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True)
    lengths = torch.tensor([len(each) for each in embeds], device=whole.device)
    hidden = torch.arange(whole.shape[1], device=whole.device)[None] >= lengths[:, None]
    return whole, hidden[:, None] * torch.tensor(-10000.0, dtype=whole.dtype, device=whole.device)


def _whole(embeds: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """Embeddings of all rows.

    Raises:
        ValueError: where they are of unequal length.
    """
    if isinstance(embeds, torch.Tensor):
        return embeds
    lengths = sorted({len(each) for each in embeds})
    raise ValueError(
        f"prompts of {' and '.join(map(str, lengths))} tokens cannot go through this network together: give a prompt "
        "and a negative prompt of the same length"
    )
