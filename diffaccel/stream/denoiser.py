"""The network of one engine and its ControlNets: called on rows, with or without a slot cache, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from diffaccel.networks.compiled import unwrapped
from diffaccel.networks.conditioning import Keywords
from diffaccel.networks.image_prompts import SCALES
from diffaccel.networks.inputs import Inputs
from diffaccel.networks.lora_rows import LORA_SCALES, one_layer_of_each, require_at_work, require_loaded
from diffaccel.networks.network import Network
from diffaccel.runtime.act import Lifetime, Part, PartState
from diffaccel.runtime.call import Call
from diffaccel.runtime.lanes import Lane, Lanes
from diffaccel.stream.batch import Slot, Tick
from diffaccel.stream.conditions import rows_of
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.controlnet import ControlNets
from diffaccel.stream.machine import Machine, lora_part, scaling_part
from diffaccel.stream.slot_cache import Scenes, as_slot_cache
from diffaccel.stream.steadiness import FramesBefore, kept_with
from diffaccel.stream.work import Rows, Work, WorkRunner

Row = tuple[Slot, bool, int]
"""A row of a call: its slot, whether it sees the negative prompt, and which frame of the slot it is."""
LATENTS, TIMESTEPS, ROWS = "latents", "timesteps", "rows"


@dataclass(frozen=True)
class NetworkWork:
    """Network calls, rows whose prediction they made, and the rows among them that reused features."""

    calls: int = 0
    rows: int = 0
    replayed: int = 0

    def with_call(self, rows: int, states: Sequence[PartState]) -> NetworkWork:
        """With one more call on so many rows; late ones among them have a call of their own."""
        kept = rows - len({row for state in states for row in state.late})
        replayed = 0 if all(state.compute for state in states) else kept
        return NetworkWork(self.calls + 1, self.rows + kept, self.replayed + replayed)


class Denoiser:
    """Runs network calls.

    Args:
        network: what is called.
        config: whose cache is used.
        calls: runs the network, perhaps on rows of other streams at the same time.

    Attributes:
        work: what was done.

    Raises:
        UnsupportedModelError, ValueError: where the cache does not fit the network, or a stream.
        RuntimeError: where the network is accelerated already.
    """

    def __init__(self, network: Network, config: StreamConfig, calls: WorkRunner) -> None:
        self.network, self.calls = network, calls
        self._config = config
        self.work = NetworkWork()
        cache, model = as_slot_cache(config.cache), unwrapped(network.model)
        self._cache = cache
        self._parts = [] if cache is None else cache.parts(model, len(config.indices))
        wrappers = [] if cache is None else cache.wrappers(model, len(config.indices))
        self._by_prompt = any(part.schedule.reads_prompt for part in self._parts)
        steady = None if config.steadiness is None else config.steadiness.part(network.model)
        self._before = FramesBefore(config.steadiness if steady else None)
        beside = [part for part in (steady, scaling_part(model)) if part is not None]
        beside += [] if config.lora is None else [lora_part(model)]
        self._loras = {} if config.lora is None else one_layer_of_each(model)
        self._machine = Machine(model, [*self._parts, *beside], wrappers=wrappers)
        self._control = ControlNets(network.pipe, () if cache is None else cache.methods, self.calls)
        by_latents = bool(wrappers) or any(part.schedule.measures for part in self._parts)
        self._scenes = Scenes(0.0 if cache is None else cache.scene_change, beside=by_latents)
        self._doubtful: tuple[torch.Tensor, Call] | None = None

    def enter(self, slot: Slot, pixels: torch.Tensor | None) -> None:
        """Note what enters with the next call, ``(frames, channels, H, W)``; None for text-to-image."""
        if self._cache is not None:
            slot.scene = self._scenes.of(pixels)
        self._before.enter(slot, pixels)

    @torch.no_grad()
    def predict(self, tick: Tick) -> torch.Tensor:
        """Prediction for the rows of a tick, ``(rows, C, h, w)``."""
        self.network.require_same_adapters()
        for name in self._config.lora or ():
            require_loaded(unwrapped(self.network.model), name)
            require_at_work([self._loras[name]], name)
        self.calls.begin()
        call, before = self._call(tick), self.work.rows
        self._forget_what_is_spoilt()
        prediction: torch.Tensor = self._machine.run(call, self._run)
        self.calls.end()
        skipped = call.count - (self.work.rows - before)  # rows that the network did not see
        self.work = replace(self.work, rows=self.work.rows + skipped, replayed=self.work.replayed + skipped)
        if self._cache is not None or call.spans:
            finite = prediction.isfinite().flatten(1).all(1)  # read with the next tick, whose frames wait for this one
            self._doubtful = finite, call
        self._machine.memory.keep(self._lasting(call))
        self._control.keep(call.lanes)
        return prediction

    def _forget_what_is_spoilt(self) -> None:
        """Drop what rows stored whose prediction was not finite: it would spoil the frames that follow them."""
        if self._doubtful is None:
            return
        (finite, call), self._doubtful = self._doubtful, None
        spoilt = [row for row, sound in enumerate(finite.tolist()) if not sound]
        own, images, video = (tuple(call.lanes[kind][row] for row in spoilt) for kind in ("run", "frame", "video"))
        self._machine.memory.drop([*own, *video])
        self._control.drop(own, images)

    def _lasting(self, call: Call) -> Mapping[Lifetime, Lanes]:
        """The lanes of a call, and those of earlier frames at all stages."""
        if not call.spans:
            return call.lanes
        memory = self._machine.memory.parts[len(self._parts)].lanes
        return {**call.lanes, "video": kept_with(call.lanes["video"], memory)}

    def _call(self, tick: Tick) -> Call:
        """The call of a tick: features by stage or frame, keys and values by prompt, embeddings by control image."""
        rows: list[Row] = [(slot, negative, k) for slot, negative in tick.groups for k in range(tick.frames)]
        told = {**tick.inputs, **_shown(rows)}
        values: dict[str, Any] = {**told, LATENTS: tick.latents, TIMESTEPS: tick.timesteps, ROWS: rows}
        if self._cache is None:
            features = tuple(Lane("stream", row) for row in range(len(rows)))
        else:
            features = tuple(self._cache.lane(*row, by_prompt=self._by_prompt) for row in rows)
        prompts = tuple(Lane(slot.settings.prompt(negative), k) for slot, negative, k in rows)
        images = tuple(Lane(slot.control, k) for slot, _, k in rows)
        by_frame = self._cache is not None and self._cache.key == "frame"
        places = tuple((slot.stage, len(slot.settings.stages)) for slot, _, _ in rows) if by_frame else ()
        lanes: dict[Lifetime, Lanes] = {
            "run": features,
            "prompt": prompts,
            "frame": images,
            "video": self._before.lanes(rows),
        }
        stages = [slot.settings.stages.levels[slot.stage] for slot, _, _ in rows]
        levels = tuple((level.alpha, level.sigma) for level in stages)
        roles = tuple("negative" if negative else "positive" for _, negative, _ in rows)
        return Call(
            Inputs(values, (LATENTS, TIMESTEPS, None)),
            lanes,
            places=places,
            roles=roles,
            levels=levels,
            spans=self._before.spans(rows),
        )

    def _run(self, call: Call) -> torch.Tensor:
        values = dict(call.inputs.values)
        latents, timesteps, rows = values.pop(LATENTS), values.pop(TIMESTEPS), values.pop(ROWS)
        for name in (SCALES, LORA_SCALES):
            values.pop(name, None)
        latents = latents.to(self.network.dtype)
        added = self._control.residuals(latents, timesteps, values, rows, call, self._machine.memory)
        prediction: torch.Tensor = self.calls.run(self._work(latents, timesteps, {**values, **added}))
        self.work = self.work.with_call(len(rows), self._machine.session.states[: len(self._parts)])
        return prediction

    def _work(self, latents: torch.Tensor, timesteps: torch.Tensor, inputs: Keywords) -> Work:
        """The call of the network; it does the same for every stream on pictures of this size."""
        network = self.network

        def predict(rows: Rows) -> torch.Tensor:
            others = {name: value for name, value in rows.items() if name not in (LATENTS, TIMESTEPS)}
            return network.predict(rows[LATENTS], rows[TIMESTEPS], others)

        alike = (type(network), id(network.model), network.height, network.width)
        rows = {LATENTS: latents, TIMESTEPS: timesteps, **inputs}
        return Work("network", alike, predict, rows, len(latents), network.ragged)

    def configured(self, config: StreamConfig) -> Denoiser:
        """The denoiser for a new configuration: this one, or another one where the cache changed; counts go on.

        Raises:
            UnsupportedModelError, ValueError, RuntimeError: where the cache does not fit; this one goes on then.
        """
        before, steady = self._config, config.steadiness == self._config.steadiness
        same_lora = (config.lora is None) == (before.lora is None)
        if config.cache == before.cache and len(config.indices) == len(before.indices) and steady and same_lora:
            self._config = config
            return self
        with self.calls.quiet():
            other = Denoiser(self.network, config, self.calls)
        other.work = self.work
        if steady and config.steadiness is not None and _within(self._parts) == _within(other._parts):
            other._before = self._before  # frames go on seeing those before
            other._machine.memory.parts[len(other._parts)] = self._machine.memory.parts[len(self._parts)]
        return other

    def forget(self) -> None:
        """Reuse nothing that was stored so far."""
        self._machine.memory.clear()
        self._control.forget()

    def close(self) -> None:
        """Take all hooks off the network."""
        with self.calls.quiet():
            self._machine.close()
            self._control.close()


def _within(parts: Sequence[Part]) -> list[Part]:
    """What works within attentions, and so says how many tokens of a frame they keep for those behind it."""
    return [part for part in parts if not part.act.exclusive]


def _shown(rows: Sequence[Row]) -> Keywords:
    """Arguments of the network by what each row's frame shows."""
    slots = {slot: [shown.keywords(slot.settings.control_scales) for shown in slot.shown] for slot, _, _ in rows}
    merged = {slot: {name: x for keywords in found for name, x in keywords.items()} for slot, found in slots.items()}
    return rows_of([(merged[slot], k) for slot, _, k in rows])
