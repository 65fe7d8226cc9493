"""Slot caches: the rows of a stream batch reuse features of the frame before them, or of their own earlier stage.

DeepCache (arXiv 2312.00858) reuses features between the steps of one picture. In a stream batch there are two more
neighbours, and neither needs an approximation of time:

- keyed by *stage*: row i holds the frame that follows the one it held a tick ago, at the same noise level and with the
  same fixed noise, so that the features differ only as far as the pictures do. All rows compute, or all reuse.
- keyed by *frame*: features travel with the frame from stage to stage; the newest row computes, older rows reuse.

In sequential mode every tick has another stage than the one before it: with several stages nothing is reused by stage
there, and by frame as in a stream batch.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from diffaccel.config import Config
from diffaccel.config.checks import check, number, one_of
from diffaccel.methods.base import Method
from diffaccel.networks import layout_of
from diffaccel.runtime.act import Part
from diffaccel.runtime.host import Host
from diffaccel.runtime.lanes import Lane
from diffaccel.runtime.wrapper import Wrapper
from diffaccel.stream.batch import Slot

Key = Literal["stage", "frame"]


@dataclass(frozen=True)
class SlotCache(Config):
    """Reuse of features between the rows of successive ticks.

    A deeper branch skips less and keeps much more. By stage, the error grows with the motion of the picture, which a
    ``Threshold`` schedule answers by computing more often; by frame, it hardly depends on it, but the rows that compute
    need a call of their own. ``docs/streaming.md`` has figures.

    Args:
        method: what is reused and when, such as ``DeepCache(interval=2, branch=0)``; its schedule counts ticks (by
            stage) or stages (by frame).
        key: "stage" or "frame", see the module's description.
        scene_change: mean absolute difference of two frames in a row, in [0, 1], above which a scene has changed and
            everything computes until the new scene has passed all stages. Only by stage. Frames on a device are not
            compared, because that would wait for the device. What decides by how much the latents move, such as
            ``Threshold``, does not see masks and given control images: where one changes, everything computes, too.
        control: when ControlNets compute, such as ``ControlCache(interval=3)``, beside the method. What they made is
            reused as long as the control image stays the same: while it is still (by stage), or of one frame (by
            frame).

    Raises:
        ValueError: for a method that also changes what the network is called with, or a value out of range.
    """

    method: Method
    key: Key = "stage"
    scene_change: float = 0.1
    control: Method | None = None

    def __post_init__(self) -> None:
        check(
            isinstance(self.method, Method),
            f"method must be a caching method such as DeepCache(2), not {self.method!r}",
        )
        one_of("key", self.key, get_args(Key))
        number("scene_change", self.scene_change, 0.0, 1.0)
        if (reason := self.method.no_stream) is not None:
            raise ValueError(f"{type(self.method).__name__} {reason}")
        fits = self.control is None or (isinstance(self.control, Method) and self.control.needs_controlnet)
        check(fits, f"control must be a method of ControlNets such as ControlCache(3), not {self.control!r}")
        for method in self.methods if self.key == "stage" else ():
            endless = method.needs_controlnet and method.ends.counts_run
            check(not endless, "cooldown counts from the end of a run, and by stage a stream has none: leave it out")

    @property
    def methods(self) -> tuple[Method, ...]:
        """The method, and that of ControlNets."""
        return (self.method,) if self.control is None else (self.method, self.control)

    def parts(self, model: torch.nn.Module, stages: int) -> list[Part]:
        """What is reused in a network.

        Args:
            model: the denoiser.
            stages: of a frame.

        Raises:
            UnsupportedModelError, ValueError: where the method does not fit the network, or a stream.
        """
        parts = self.method.bounded_parts(layout_of(model))
        for part in parts:
            if self.key == "stage":
                name = "cooldown" if part.ends.counts_run else type(part.schedule).__name__.removeprefix("_")
                check(
                    not part.counts_run,
                    f"{type(self.method).__name__} computes at places in a run of known length ({name}), and a stream "
                    "never ends: give it schedule=Uniform(3) or Threshold(0.15) where it takes one, or key='frame', "
                    "where a frame's stages are its run",
                )
            part.validate(None if self.key == "stage" else stages)
        return parts

    def wrappers(self, model: torch.nn.Module, stages: int) -> list[Wrapper]:
        """What stands between the stream and a network, whose layout is not asked for where nothing does.

        Raises:
            ValueError: where it does not fit a stream.
        """
        if type(self.method).wrapper is Method.wrapper:
            return []
        wrapper = self.method.wrapper(layout_of(model), Host())
        if wrapper is None:
            return []
        check(
            self.key == "frame" or not wrapper.ends.counts_run,
            f"cooldown={wrapper.ends.cooldown} needs a run of known length, and a stream never ends: leave it out, "
            "or use key='frame', where a frame's stages are its run",
        )
        wrapper.ends.validate(None if self.key == "stage" else stages)
        return [wrapper]

    def lane(self, slot: Slot, negative: bool, k: int, *, by_prompt: bool = False) -> Lane:
        """The lane of a slot's k-th frame. What it is told is part of the name: other settings find nothing stored.

        By prompt, rows of the prompt and of the negative prompt decide apart.
        """
        settings = slot.settings
        prompt = settings.negative if negative else settings.positive
        told: tuple[Hashable, ...] = (negative, prompt, settings.stages.table, settings.control_scales)
        if self.key == "frame":
            return Lane((slot.whole or slot, *told), k)
        return Lane(("stream", negative) if by_prompt else "stream", (slot.stage, slot.scene, k, *told))


def as_slot_cache(cache: object) -> SlotCache | None:
    """``cache`` in its one form: a method stands for the slot cache keyed by stage.

    Raises:
        TypeError: where it is no cache.
    """
    if cache is None or isinstance(cache, SlotCache):
        return cache
    if isinstance(cache, Method):
        return SlotCache(cache)
    raise TypeError(f"cache must be a method such as DeepCache(2), or a SlotCache, not {cache!r}")


class Scenes:
    """Numbers the scenes of a stream.

    Args:
        threshold: see `SlotCache.scene_change`.
        beside: whether any change of a mask or a given control image begins another one, too.
    """

    def __init__(self, threshold: float, *, beside: bool = False) -> None:
        self._threshold, self._beside = threshold, beside
        self._last: torch.Tensor | None = None
        self._number = 0

    def of(self, pixels: torch.Tensor | None) -> int:
        """The scene of entering frames, ``(frames, channels, H, W)`` in [-1, 1]; each text-to-image frame is one."""
        last, self._last = self._last, pixels
        if pixels is None or last is None or self._changed(pixels, last):
            self._number += 1
        return self._number

    def _changed(self, pixels: torch.Tensor, last: torch.Tensor) -> bool:
        if pixels.device.type != "cpu" or pixels.shape != last.shape:
            return pixels.shape != last.shape
        if self._beside and not torch.equal(pixels[:, 3:], last[:, 3:]):
            return True
        differences = (pixels - last).abs().flatten(1).mean(1)  # of each frame, whose pixels span 2 units
        return float(differences.max()) / 2 > self._threshold
