"""A network in the hands of one engine: its session and memory, and hooks that obey within the engine's calls alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffaccel.networks import UnsupportedModelError, layout_of
from diffaccel.networks.compiled import compiled_around, has_compiled_forward, is_compiled
from diffaccel.networks.image_prompts import SCALES, scaled_modules
from diffaccel.networks.lora_rows import LORA_SCALES, adapters_loaded, scaled_layers
from diffaccel.reuse.schedule import Always, Once
from diffaccel.runtime.act import Part
from diffaccel.runtime.attachment import ActHook
from diffaccel.runtime.call import Call
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.projection_act import Projection
from diffaccel.runtime.scale_act import ScaleRows
from diffaccel.runtime.session import RunNetwork, Session, Tie
from diffaccel.runtime.shared_hooks import SharedHooks, require_plain
from diffaccel.runtime.wrapper import Wrapper, within


class Machine:
    """What one engine reuses in one network.

    Args:
        model: the network.
        parts: what is reused, beside the keys and values of prompts, which every stream projects once.
        ties: for each part of a ControlNet what else has a say in its decisions.
        wrappers: what stands between the engine and the network.

    Raises:
        RuntimeError: where the network is accelerated already.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parts: Sequence[Part] = (),
        ties: Sequence[Tie | None] = (),
        wrappers: Sequence[Wrapper] = (),
    ) -> None:
        require_plain([model])
        self._model, self._wrappers = model, tuple(wrappers)
        text = prompt_parts(model)
        self.session = Session(model, [*parts, *text], ties=[*(ties or [None] * len(parts)), *[None] * len(text)])
        self.memory = Memory(self.session.parts)
        places = self.session.places(model)
        self._hooks = SharedHooks({model.get_submodule(name): ActHook(found) for name, found in places.items()})
        self.close = self._hooks.close

    def run(self, call: Call, network: RunNetwork, led_by: Memory | None = None) -> Any:
        """One call; where it raises, everything is forgotten but videos, which it has not written to.

        Raises:
            RuntimeError: while the network is accelerated.
        """
        require_plain([self._model])
        try:
            inner: RunNetwork = lambda call: self.session.run(call, self.memory, network, led_by)  # noqa: E731
            with self._hooks.using():
                return within(self._wrappers if call.forced is None else (), self.memory, inner)(call)
        except BaseException:
            self.memory.forget_runs()
            raise

    def around(self, network: RunNetwork, led_by: Memory) -> RunNetwork:
        """A function that runs `network` on a call with this network's hooks at work, as the denoiser decided."""
        return lambda call: self.run(call, network, led_by)


def scaling_part(model: torch.nn.Module) -> Part | None:
    """How strongly each row follows its image prompt; None in a network without IP-Adapters."""
    scaled = scaled_modules(model)
    return Part(ScaleRows(scaled, SCALES), Always(), lifetime="prompt") if scaled else None


def lora_part(model: torch.nn.Module) -> Part:
    """How strongly each row follows the LoRAs of a network."""
    scaled = scaled_layers(model, adapters_loaded(model))
    return Part(ScaleRows(scaled, LORA_SCALES), Always(), lifetime="prompt")


def prompt_parts(model: torch.nn.Module) -> list[Part]:
    """The projections of prompts to keys and values, which depend on neither frame nor noise level.

    None where they are compiled (a hook would break the graph), with the network or in blocks, or where no prompt is
    projected. Beneath adapters the layers themselves are kept, so that adapters may come and go.
    """
    if is_compiled(model) or has_compiled_forward(model):
        return []
    try:
        layout = layout_of(model)
    except UnsupportedModelError:
        return []
    plain = [
        f"{n}.base_layer" if hasattr(model.get_submodule(n), "base_layer") else n for n in layout.conditioning_only
    ]
    if not plain or any(compiled_around(model, name) for name in plain):
        return []
    return [Part(Projection(tuple(plain), layout.conditioning_path, of_prompt=True), Once(), lifetime="prompt")]
