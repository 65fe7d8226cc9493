"""ControlNets before the denoiser (arXiv 2302.05543): one call a tick, on all rows of the stream batch.

A ControlNet sees the same latents, timesteps and prompts as the denoiser and the control image of each row's frame.
The layers that embed control images run once per frame: the embedding travels with it from stage to stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from diffaccel._diffusers import hooks_of
from diffaccel.methods.base import Method
from diffaccel.methods.companions import embedding, tied_parts
from diffaccel.networks import UnsupportedModelError, layout_of
from diffaccel.networks.compiled import is_compiled, unwrapped
from diffaccel.networks.conditioning import Keywords
from diffaccel.networks.inputs import Inputs
from diffaccel.networks.network import ADDED, controlnets_of
from diffaccel.runtime.act import Lifetime
from diffaccel.runtime.attachment import HOOK
from diffaccel.runtime.call import Call
from diffaccel.runtime.lanes import Lane, Lanes
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.session import RunNetwork
from diffaccel.stream.machine import Machine
from diffaccel.stream.memo import Memo
from diffaccel.stream.work import Rows, Work, WorkRunner


class ControlNets:
    """The ControlNets of a pipeline at work in one engine.

    Args:
        pipe: the pipeline, with or without ControlNets.
        methods: what the denoiser reuses, and so need not be fed, and when ControlNets compute.
        calls: runs them, perhaps on rows of other streams at the same time.

    Raises:
        UnsupportedModelError, ValueError: where a method does not fit them.
    """

    def __init__(self, pipe: Any, methods: Sequence[Method], calls: WorkRunner) -> None:
        nets = controlnets_of(pipe)
        whole = getattr(pipe, "controlnet", None)
        hooked = () if is_compiled(whole) else tuple(net for net in nets if not is_compiled(net))
        self._pipe, self._calls = pipe, calls
        self._dtype = next((p.dtype for net in nets for p in net.parameters()), torch.float32)
        self._pooled = [bool(net.config.get("global_pool_conditions")) for net in nets]
        self._several = hasattr(unwrapped(whole), "nets")
        needing = [type(method).__name__ for method in methods if method.needs_controlnet]
        if needing and not nets:
            raise UnsupportedModelError(f"{needing[0]} needs a ControlNet, and this pipeline has none: leave it out")
        self._machines = [_machine(net, pipe, methods, nets.index(net)) for net in hooked]
        self._scales: Memo[list[torch.Tensor] | None] = Memo()

    def residuals(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        inputs: Mapping[str, Any],
        rows: Sequence[Any],
        call: Call,
        led_by: Memory,
    ) -> Keywords:
        """What is added to the denoiser's skip connections, as its keyword arguments; nothing where all scales are 0.

        Args:
            latents, timesteps, inputs: of the denoiser's call, in its type.
            rows: for each row its slot, whether it sees the negative prompt, and its place in the slot.
            call: the denoiser's, whose lanes and decisions the ControlNets share.
            led_by: the denoiser's memory.
        """
        scales = self._scales_of(rows, latents.device) if self._pooled else None
        if scales is None:
            return {}
        images = self._images(rows)
        values = {
            "sample": latents.to(self._dtype),
            "timesteps": timesteps,
            "prompt": inputs["encoder_hidden_states"],
            "images": images,
            "scales": scales,
            "added": {name: inputs[name] for name in ADDED if name in inputs},
        }
        own = replace(call, inputs=Inputs(values, ("sample", "timesteps", None)), lanes=_pictured(call.lanes))
        network: RunNetwork = self._call
        for machine in self._machines:
            network = machine.around(network, led_by)
        down, middle = network(own)
        return {
            "down_block_additional_residuals": [x.to(latents.dtype) for x in down],
            "mid_block_additional_residual": middle.to(latents.dtype),
        }

    def _call(self, call: Call) -> Any:
        """One call of the ControlNets on its rows, perhaps with those of other streams."""
        values = dict(call.inputs.values)
        return self._calls.run(Work("controlnet", id(self._pipe.controlnet), self._together, values, call.count))

    def _together(self, rows: Rows) -> Any:
        """Residuals of all rows, behind each block on the way down and behind the middle."""
        return self._pipe.controlnet(
            rows["sample"],
            rows["timesteps"],
            encoder_hidden_states=rows["prompt"],
            controlnet_cond=rows["images"] if self._several else rows["images"][0],
            conditioning_scale=rows["scales"] if self._several else rows["scales"][0],
            added_cond_kwargs=rows["added"] or None,
            return_dict=False,
        )

    def _images(self, rows: Sequence[Any]) -> list[torch.Tensor]:
        """For each ControlNet the control images of all rows, ``(rows, 3, H, W)``."""
        each = [[image[k : k + 1] for image in slot.control.images] for slot, _, k in rows]
        return [torch.cat(column).to(self._dtype) for column in zip(*each, strict=True)]

    def _scales_of(self, rows: Sequence[Any], device: torch.device) -> list[torch.Tensor] | None:
        """For each ControlNet the scale of each row, ``(rows, 1, 1, 1)``; None where all are 0.

        As in diffusers, a ControlNet whose residuals are pooled (shuffle) leaves negative rows alone.
        """

        def compute() -> list[torch.Tensor] | None:
            table = [
                [0.0 if negative and pooled else s for s, pooled in zip(scales, self._pooled, strict=True)]
                for scales, negative in told
            ]
            if not any(map(any, table)):
                return None
            columns = torch.tensor(table, dtype=self._dtype, device=device).unbind(1)
            return [column.view(-1, 1, 1, 1) for column in columns]

        told = [(slot.settings.control_scales, negative) for slot, negative, _ in rows]
        return self._scales.get([part for pair in told for part in pair], compute)

    def keep(self, lanes: Mapping[Lifetime, Lanes]) -> None:
        """Forget all but what some rows may read again."""
        for machine in self._machines:
            machine.memory.keep(_pictured(lanes))

    def drop(self, lanes: Lanes, images: Lanes) -> None:
        """Forget features of some lanes of the denoiser, whose control images are these."""
        for machine in self._machines:
            machine.memory.drop([*lanes, *_pictured({"run": lanes, "frame": images})["control"]])

    def forget(self) -> None:
        """Reuse nothing that was stored so far."""
        for machine in self._machines:
            machine.memory.clear()

    def close(self) -> None:
        """Take all hooks off."""
        for machine in self._machines:
            machine.close()


def _machine(net: torch.nn.Module, pipe: Any, methods: Sequence[Method], index: int) -> Machine:
    """What a ControlNet leaves out where the denoiser reuses, and what it need not compute in every tick."""
    layout = layout_of(net)
    unet = unwrapped(pipe.unet)
    found = [one for one in tied_parts(methods, layout, layout_of(unet), index) if one.tie] if methods else []
    parts, ties = [one.part for one in found], [one.tie for one in found]
    if not any(HOOK in hooks_of(net.get_submodule(name)) for name in layout.control):
        parts.append(embedding(layout))
        ties.append(None)
    return Machine(net, parts, ties)


def _pictured(lanes: Mapping[Lifetime, Lanes]) -> dict[Lifetime, Lanes]:
    """The lanes of a call, with those that last as long as the control image stays the same."""
    pairs = zip(lanes["run"], lanes["frame"], strict=True)
    return {**lanes, "control": tuple(Lane(own.group, (own.place, image)) for own, image in pairs)}
