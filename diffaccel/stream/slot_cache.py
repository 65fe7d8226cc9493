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

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from diffaccel.config import Config
from diffaccel.config.checks import check, number, one_of
from diffaccel.methods.base import Method
from diffaccel.stream.feature_reuse import ByFrame, ByStage, FeatureReuse

Key = Literal["stage", "frame"]


@dataclass(frozen=True)
class SlotCache(Config):
    """Reuse of features between the rows of successive ticks.

    A deeper branch skips less and keeps much more. By stage, the error grows with the motion of the picture, which a
    ``Threshold`` schedule answers by computing more often; by frame, it hardly depends on it, but the rows that compute
    need a call of their own. On the bundled model, with two stages and by stage, ``DeepCache(schedule=Threshold(0.15,
    max_reuse=3), branch=3, forecast=Taylor(2))`` stays 60, 44 and 48 dB from the uncached stream for slow, medium and
    fast motion, and makes the network 1.9 times as fast unless the motion is fast; to show every picture twice costs as
    much and stays at 38, 28 and 22 dB (`python scripts/bench.py stream --part cache`).

    Args:
        method: what is reused and when, such as ``DeepCache(interval=2, branch=0)``; its schedule counts ticks (by
            stage) or stages (by frame).
        key: "stage" or "frame", see the module's description.
        scene_change: mean absolute difference of two frames in a row, in [0, 1], above which a scene has changed and
            everything computes until the new scene has passed all stages. Only by stage. Frames on a device are not
            compared, because that would wait for the device.

    Raises:
        ValueError: for a method that also changes what the network is called with, or a value out of range.
    """

    method: Method
    key: Key = "stage"
    scene_change: float = 0.1

    def __post_init__(self) -> None:
        check(
            isinstance(self.method, Method),
            f"method must be a caching method such as DeepCache(2), not {self.method!r}",
        )
        one_of("key", self.key, get_args(Key))
        number("scene_change", self.scene_change, 0.0, 1.0)
        name = type(self.method).__name__
        check(
            type(self.method).wrapper is Method.wrapper,
            f"{name} changes what the network is called with and cannot work in a stream: "
            "use a method that only reuses features, such as DeepCache",
        )

    def build(self, model: torch.nn.Module, companions: Iterable[torch.nn.Module] = ()) -> FeatureReuse:
        """The cache at work on ``model`` and the ControlNets before it.

        Raises:
            UnsupportedModelError, ValueError: where the method does not fit the network.
            RuntimeError: where the network is accelerated already.
        """
        kind = ByStage if self.key == "stage" else ByFrame
        return kind(self.method, getattr(model, "_orig_mod", model), companions, self.scene_change)


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
