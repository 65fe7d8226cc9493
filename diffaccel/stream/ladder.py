"""Ways for a stream to cost less, from its own settings down: longer intervals, shallower branches, fewer stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from diffaccel.methods.base import Method
from diffaccel.methods.deepcache import DeepCache
from diffaccel.methods.interval_cache import IntervalCache
from diffaccel.networks import UnsupportedModelError, layout_of
from diffaccel.networks.compiled import has_compiled_forward, is_compiled
from diffaccel.reuse.forecast import Taylor
from diffaccel.reuse.schedule import Uniform
from diffaccel.stream.config import StreamConfig
from diffaccel.stream.slot_cache import SlotCache

INTERVALS = (2, 3, 4)
LONGEST = 6
DEEPEST = 3
UNITS_REUSED = 0.15
"""What a transformer still costs where attentions and feed-forward networks are replayed, of 1: a first guess."""


@dataclass(frozen=True)
class Rung:
    """A way to denoise.

    Attributes:
        text: what is changed, for a report.
        stages: how many stages a frame runs through.
        share: of the network's time at the stream's own stages without a cache that it takes, in (0, 1]: a first guess.
        cache: instead of the stream's own; None leaves that.
    """

    text: str
    stages: int
    share: float
    cache: SlotCache | None = None

    @property
    def settle(self) -> int:
        """Ticks until it costs what it costs in the long run: features have to be stored, stages to be reached."""
        return self.stages + LONGEST

    def of(self, config: StreamConfig) -> StreamConfig:
        """A stream's configuration on this rung. Strength stays: the first stage is the same."""
        indices, count = config.indices, self.stages
        if count < len(indices):
            kept = tuple(indices[k * len(indices) // count] for k in range(count))
            config = replace(config, timestep_indices=kept, strength=None, num_steps=None)
        return config if self.cache is None else replace(config, cache=self.cache)


def ladder(model: torch.nn.Module, config: StreamConfig) -> list[Rung]:
    """The rungs for a stream on a network, the stream's own settings first, each cheaper than the one before."""
    stages = len(config.indices)
    rungs = [Rung("as set", stages, 1.0)]
    caches = list(_caches(model))
    for text, share, method in caches:
        rungs.append(Rung(text, stages, share, SlotCache(method)))
    cheapest = rungs[-1]
    for count in range(stages - 1, 0, -1):
        share, text = cheapest.share * count / stages, f"{count} of {stages} stages"
        text = f"{cheapest.text}, {text}" if caches else text
        rungs.append(Rung(text, count, share, cheapest.cache))
    return rungs


def _caches(model: torch.nn.Module) -> Iterator[tuple[str, float, Method]]:
    """Methods that reuse ever more, with a name and the share of the network's time that they take."""
    if is_compiled(model) or has_compiled_forward(model):
        return  # a graph for each decision, compiled while frames wait
    try:
        layout = layout_of(model)
    except UnsupportedModelError:
        return
    if layout.depths:
        last = len(layout.depths) - 1
        deep = min(DEEPEST, last)
        shallower = [(INTERVALS[-1], branch) for branch in range(deep - 1, -1, -1)]
        for interval, branch in [*((n, deep) for n in INTERVALS), *shallower, (LONGEST, 0)]:
            replayed = (branch + 1) / (last + 2)
            method = DeepCache(schedule=Uniform(interval), branch=branch, forecast=Taylor(1))
            yield f"interval {interval}, branch {branch}", _mean(interval, replayed), method
    elif layout.units:
        for interval in (*INTERVALS, LONGEST):
            cached = IntervalCache(schedule=Uniform(interval), forecast=Taylor(1))
            yield f"interval {interval}", _mean(interval, UNITS_REUSED), cached


def _mean(interval: int, replayed: float) -> float:
    """Mean of one call that computes and those that reuse."""
    return (1 + (interval - 1) * replayed) / interval
