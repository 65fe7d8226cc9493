"""ControlNets before the denoiser (arXiv 2302.05543): one call a tick, on all rows of the stream batch.

A ControlNet sees the same latents, timesteps and prompts as the denoiser and the control image of each row's frame.
The layers that embed control images run once per frame: the embedding travels with it from stage to stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from diffaccel._diffusers import Hook, hooks_of
from diffaccel.networks.conditioning import Keywords
from diffaccel.networks.network import ADDED, controlnets_of
from diffaccel.runtime.attachment import HOOK
from diffaccel.runtime.shared_hooks import Replays, is_compiled
from diffaccel.stream.batch import Call, ControlImages, Memo
from diffaccel.stream.text_kv import TextKeysValues

EMBEDDING = "controlnet_cond_embedding"


class ControlNets:
    """The ControlNets of a pipeline at work in one engine.

    Args:
        pipe: the pipeline, with or without ControlNets.

    Attributes:
        models: the ControlNets that hooks can be put on: not where they are compiled as a whole.
    """

    def __init__(self, pipe: Any) -> None:
        nets = controlnets_of(pipe)
        whole = getattr(pipe, "controlnet", None)
        self.models = () if is_compiled(whole) else tuple(net for net in nets if not is_compiled(net))
        self._pipe = pipe
        self._dtype = next((p.dtype for net in nets for p in net.parameters()), torch.float32)
        self._pooled = [bool(net.config.get("global_pool_conditions")) for net in nets]
        self._several = hasattr(getattr(whole, "_orig_mod", whole), "nets")
        self._once = [_Once(net, k) for k, net in enumerate(nets) if net in self.models]
        self._scales: Memo[list[torch.Tensor] | None] = Memo()

    def residuals(self, latents: torch.Tensor, call: Call) -> Keywords:
        """What is added to the denoiser's skip connections, as its keyword arguments; nothing where all scales are 0.

        ``latents`` are those of the call, in the denoiser's type.
        """
        scales = self._scales_of(call) if self._pooled else None
        if scales is None:
            return {}
        images = self._images(call)
        added = {name: call.inputs[name] for name in ADDED if name in call.inputs}
        with ExitStack() as stack:
            for once in self._once:
                stack.enter_context(once.using(call))
            down, middle = self._pipe.controlnet(
                latents.to(self._dtype),
                call.timesteps,
                encoder_hidden_states=call.inputs["encoder_hidden_states"],
                controlnet_cond=images if self._several else images[0],
                conditioning_scale=scales if self._several else scales[0],
                added_cond_kwargs=added or None,
                return_dict=False,
            )
        return {
            "down_block_additional_residuals": [x.to(latents.dtype) for x in down],
            "mid_block_additional_residual": middle.to(latents.dtype),
        }

    def _images(self, call: Call) -> list[torch.Tensor]:
        """For each ControlNet the control images of all rows, ``(rows, 3, H, W)``."""
        groups = [_control(slot).images for slot, _ in call.rows]
        return [torch.cat(column).to(self._dtype) for column in zip(*groups, strict=True)]

    def _scales_of(self, call: Call) -> list[torch.Tensor] | None:
        """For each ControlNet the scale of each row, ``(rows, 1, 1, 1)``; None where all are 0.

        As in diffusers, a ControlNet whose residuals are pooled (shuffle) leaves negative rows alone.
        """

        def compute() -> list[torch.Tensor] | None:
            rows = [
                [0.0 if negative and pooled else s for s, pooled in zip(scales, self._pooled, strict=True)]
                for scales, negative in told
            ]
            if not any(map(any, rows)):
                return None
            table = torch.tensor(rows, dtype=self._dtype, device=call.latents.device)
            return [column.repeat_interleave(call.frames).view(-1, 1, 1, 1) for column in table.unbind(1)]

        told = [(slot.settings.control_scales, negative) for slot, negative in call.rows]
        return self._scales.get([part for pair in told for part in pair], compute)

    def close(self) -> None:
        """Take all hooks off."""
        for once in self._once:
            once.close()


def _control(slot: Any) -> ControlImages:
    if slot.control is None:
        raise ValueError("this frame has no control image")
    control: ControlImages = slot.control
    return control


class _Embedding(Hook):
    """The layers that embed control images: gives what a frame's own are known to give, or runs them."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self._place = place
        self.controls: Sequence[ControlImages] = ()

    def new_forward(self, module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Embeddings ``(rows, C, h, w)`` of control images ``(rows, 3, H, W)``."""
        embedded = []
        for control, group in zip(self.controls, images.chunk(len(self.controls)), strict=True):
            if self._place not in control.embedded:
                control.embedded[self._place] = self.original(group)
            embedded.append(control.embedded[self._place])
        return torch.cat(embedded)


class _Once:
    """What a ControlNet need not compute in every tick: keys and values of a prompt, embeddings of control images."""

    def __init__(self, net: torch.nn.Module, place: int) -> None:
        self._text = TextKeysValues(net)
        layers = net.get_submodule(EMBEDDING)
        self._hooks = {} if HOOK in hooks_of(layers) else {layers: _Embedding(place)}
        self._replays = Replays(self._hooks)

    @contextmanager
    def using(self, call: Call) -> Iterator[None]:
        """Within, the ControlNet's calls are about the frames and prompts of ``call``."""
        for hook in self._hooks.values():
            hook.controls = [_control(slot) for slot, _ in call.rows]
        with self._text.using(call), self._replays.using():
            yield

    def close(self) -> None:
        """Take the hooks off."""
        self._text.close()
        self._replays.close()
