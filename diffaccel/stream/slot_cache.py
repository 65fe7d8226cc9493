"""Slot caches: the rows of a stream batch reuse features of the frame before them, or of their own earlier stage.

DeepCache (arXiv 2312.00858) reuses features between the steps of one picture. In a stream batch there are two more
neighbours, and neither needs an approximation of time:

- keyed by *stage*: row i holds the frame that follows the one it held a tick ago, at the same noise level and with the
  same fixed noise, so that the features differ only as far as the pictures do. All rows compute, or all reuse.
- keyed by *frame*: features travel with the frame from stage to stage; the newest row computes, older rows reuse.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary, finalize

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from diffaccel.branch import Part
from diffaccel.config import Config, check, number
from diffaccel.families import layout_of
from diffaccel.hooks import Place, ReplayHook
from diffaccel.methods.base import Method
from diffaccel.schedule import Call as ScheduleCall
from diffaccel.signature import Inputs as NetworkInputs
from diffaccel.state import ActivePart, CacheState, map_tensors
from diffaccel.stream.batch import Call, Slot
from diffaccel.stream.feature_hub import FeatureHub

Key = Literal["stage", "frame"]
Run = Callable[[Call], torch.Tensor]


@dataclass(frozen=True)
class SlotCache(Config):
    """Reuse of features between the rows of successive ticks.

    A deeper branch skips less and keeps much more. On the bundled model, with two stages and by stage,
    ``DeepCache(interval=3, branch=3, forecast=Taylor(1))`` makes the network 1.9 times as fast and stays 63, 44 and 32
    dB from the uncached stream for slow, medium and fast motion; to show every picture twice costs as much and stays at
    38, 28 and 22 dB (`python scripts/bench.py stream --part cache`). By stage, the error grows with the motion of the
    picture; by frame, it hardly depends on it, but the rows that compute need a call of their own.

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
        check(self.key in get_args(Key), f"key must be 'stage' or 'frame', not {self.key!r}")
        number("scene_change", self.scene_change, 0.0, 1.0)
        name = type(self.method).__name__
        check(
            type(self.method).wrapper is Method.wrapper,
            f"{name} changes what the network is called with and cannot work in a stream: "
            "use a method that only reuses features, such as DeepCache",
        )

    def build(self, model: torch.nn.Module) -> FeatureReuse:
        """The cache at work on ``model``.

        Raises:
            UnsupportedModelError, ValueError: where the method does not fit the network.
            RuntimeError: where the network is accelerated already.
        """
        kind = ByStage if self.key == "stage" else ByFrame
        return kind(self, getattr(model, "_orig_mod", model))


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


class FeatureReuse(ABC):
    """A slot cache at work: hooks on the network, features of one engine.

    Attributes:
        computed, replayed: rows that computed everything, and rows that reused features.
    """

    def __init__(self, config: SlotCache, model: torch.nn.Module) -> None:
        self.config = config
        layout = layout_of(model)
        self._writes = layout.writes
        self.active = [ActivePart(part) for part in config.method.parts(layout)]
        for active in self.active:
            active.part.schedule.validate(None)
        self._replays = {name: hook for active in self.active for name, hook in _hooks(active)}
        self._hub = FeatureHub.of(model)
        self._hub.acquire(self._replays)
        self._finalizer = finalize(self, self._hub.release, tuple(self._replays))
        self.computed = self.replayed = 0

    def close(self) -> None:
        """Take the hooks off."""
        self._finalizer()

    @abstractmethod
    def enter(self, pixels: torch.Tensor | None) -> None:
        """Note the pictures that enter with the next call, ``(frames, 3, H, W)`` in [-1, 1]; None for text-to-image."""

    @abstractmethod
    def forget(self) -> None:
        """Reuse nothing that was stored so far."""

    @abstractmethod
    def predict(self, run: Run, call: Call) -> torch.Tensor:
        """The network's prediction for ``call``, with features reused."""

    def _run(self, run: Run, call: Call) -> torch.Tensor:
        writable = self._writes(NetworkInputs({}, ("sample", None, None)))
        computes = all(active.state.compute for active in self.active)
        for active in self.active:
            active.state.writable = writable
        with self._hub.using(self._replays):
            prediction = run(call)
        if computes:
            self.computed += len(call.latents)
        else:
            self.replayed += len(call.latents)
        return prediction


def _hooks(active: ActivePart) -> list[tuple[str, ReplayHook]]:
    branch = active.part.branch
    places = [Place(active, i, keep=i >= len(branch.skipped)) for i, _ in enumerate(branch.modules)]
    return [(name, ReplayHook([place])) for name, place in zip(branch.modules, places, strict=True)]


def decide(state: CacheState, part: Part, sample: torch.Tensor, *, forced: bool) -> None:
    """Decide whether ``part`` computes in the next call; a forced computation starts its schedule again."""
    if forced or not state.filled:
        state.step, state.compute = 0, True
    else:
        state.step += 1
        call = ScheduleCall(state.step, None, lambda: _change(sample, state.reference), state.age)
        state.compute = part.schedule.should_compute(call)
    state.age = 0 if state.compute else state.age + 1
    state.filled = True
    if state.compute and part.schedule.measures:
        state.reference = sample.clone()


def _change(sample: torch.Tensor, reference: torch.Tensor | None) -> float:
    """mean|x - x_ref| / mean|x_ref|."""
    if reference is None or reference.shape != sample.shape:
        return float("inf")
    return float((sample - reference).abs().mean() / reference.abs().mean())


class ByStage(FeatureReuse):
    """Row i reuses what row i stored: the frame before it, at the same stage."""

    _rows: tuple[Any, ...] = ()
    _last: torch.Tensor | None = None
    _new_scene = False
    _forced = 0

    def enter(self, pixels: torch.Tensor | None) -> None:
        """Notice a change of scene; every text-to-image frame is one."""
        last, self._last = self._last, pixels
        if pixels is None or last is None or self._changed(pixels, last):
            self._new_scene = True

    def _changed(self, pixels: torch.Tensor, last: torch.Tensor) -> bool:
        if pixels.device.type != "cpu" or pixels.shape != last.shape:
            return pixels.shape != last.shape
        # Pixels span 2 units.
        return float((pixels - last).abs().mean()) / 2 > self.config.scene_change

    def forget(self) -> None:
        """Compute everything in the next call."""
        self._rows = ()

    def predict(self, run: Run, call: Call) -> torch.Tensor:
        """Compute where a schedule says so, after a change of scene, of prompts or of the rows; else reuse."""
        rows = (*((negative, s.settings.stages, s.stage) for s, negative in call.rows), call.inputs)
        same = len(rows) == len(self._rows) and all(_equal(a, b) for a, b in zip(rows, self._rows, strict=True))
        if self._new_scene:  # it has passed all stages when so many calls have computed
            self._new_scene, self._forced = False, max(len(s.settings.stages) for s, _ in call.rows)
        forced, self._forced = not same or self._forced > 0, max(0, self._forced - 1)
        self._rows = rows
        for active in self.active:
            if forced:
                active.state = CacheState(active.part)
            decide(active.state, active.part, call.latents, forced=forced)
        try:
            return self._run(run, call)
        except BaseException:
            self._rows = ()
            raise


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return a[0] == b[0] and a[1] is b[1] and a[2] == b[2]
    return a is b


@dataclass(eq=False)
class _Features:
    """What one frame's rows stored in the part: entries, its count of stages, its prompt and schedule."""

    state: CacheState
    told: tuple[object, object]
    entries: list[Any] = field(default_factory=list)


class ByFrame(FeatureReuse):
    """A frame reuses what it stored itself at an earlier stage; rows that compute make a call of their own."""

    def __init__(self, config: SlotCache, model: torch.nn.Module) -> None:
        parts, name = config.method.parts(layout_of(model)), type(config.method).__name__
        check(
            len(parts) == 1, f"{name} reuses {len(parts)} parts, and only one can travel with a frame: use key='stage'"
        )
        check(parts[0].forecast is None, "features that travel with a frame cannot be forecast: use key='stage'")
        super().__init__(config, model)
        self.forget()

    def enter(self, pixels: torch.Tensor | None) -> None:
        """Nothing: a frame only reuses its own features."""

    def forget(self) -> None:
        """Let every frame compute at its next stage."""
        self._stored: WeakKeyDictionary[Slot, dict[bool, _Features]] = WeakKeyDictionary()

    def predict(self, run: Run, call: Call) -> torch.Tensor:
        """Two calls where some rows compute and others reuse, one where all do the same."""
        rows = _chunks(call.latents, call.frames)
        features = [self._decided(slot, negative, x) for (slot, negative), x in zip(call.rows, rows, strict=True)]
        predictions: list[torch.Tensor | None] = [None] * len(features)
        for compute in (True, False):
            chosen = [i for i, f in enumerate(features) if f.state.compute is compute]
            if chosen:
                part = self._part_of(run, call, chosen, [features[i] for i in chosen], compute)
                for i, prediction in zip(chosen, _chunks(part, call.frames), strict=True):
                    predictions[i] = prediction
        for (slot, negative), f in zip(call.rows, features, strict=True):
            self._stored.setdefault(slot, {})[negative] = f
        return torch.cat([p for p in predictions if p is not None])

    def _decided(self, slot: Slot, negative: bool, latents: torch.Tensor) -> _Features:
        """A frame's features with the decision for this tick; new ones after a change of its prompt or stages."""
        part, settings = self.active[0].part, slot.settings
        told = (settings.negative if negative else settings.positive, settings.stages)
        known = self._stored.get(slot, {}).get(negative)
        fresh = known is None or known.told[0] is not told[0] or known.told[1] is not told[1]
        features = _Features(CacheState(part), told) if known is None or fresh else known
        decide(features.state, part, latents, forced=fresh)
        return features

    def _part_of(
        self, run: Run, call: Call, chosen: Sequence[int], features: Sequence[_Features], compute: bool
    ) -> torch.Tensor:
        active = self.active[0]
        active.state = CacheState(active.part)
        active.state.compute, active.state.filled = compute, True
        if not compute:
            skipped = len(active.part.branch.skipped)
            columns = zip(*(f.entries for f in features), strict=True)
            active.state.entries = [_joined(column, placeholder=k < skipped) for k, column in enumerate(columns)]
        prediction = self._run(run, _selected(call, chosen))
        if compute:
            for k, f in enumerate(features):
                f.entries = [_rows(entry, k, call.frames) for entry in active.state.entries]
        active.state = CacheState(active.part)
        return prediction


def _chunks(rows: torch.Tensor, frames: int) -> list[torch.Tensor]:
    return [rows[i : i + frames] for i in range(0, len(rows), frames)]


def _rows(entry: Any, group: int, frames: int) -> Any:
    """Rows of one group in everything stored."""
    return map_tensors(lambda x: x[group * frames : (group + 1) * frames], entry)


def _joined(entries: Sequence[Any], *, placeholder: bool) -> Any:
    """What several groups stored, as rows of one call; placeholders are expanded and take no storage."""
    if not placeholder:
        return _zipped(lambda *tensors: torch.cat(tensors), entries)
    groups = len(entries)
    return map_tensors(lambda x: x[:1].expand(groups * x.shape[0], *x.shape[1:]), entries[0])


def _zipped(function: Callable[..., torch.Tensor], trees: Sequence[Any]) -> Any:
    leaves = [tree_flatten(tree) for tree in trees]
    joined = [function(*tensors) for tensors in zip(*(flat for flat, _ in leaves), strict=True)]
    return tree_unflatten(joined, leaves[0][1])


def _selected(call: Call, chosen: Sequence[int]) -> Call:
    """The call with some of its row groups."""
    if len(chosen) == len(call.rows):
        return call

    def pick(values: Any) -> Any:
        if isinstance(values, list):
            return [values[i * call.frames + k] for i in chosen for k in range(call.frames)]
        return torch.cat([values[i * call.frames : (i + 1) * call.frames] for i in chosen])

    inputs = {name: pick(value) for name, value in call.inputs.items()}
    rows = tuple(call.rows[i] for i in chosen)
    return Call(pick(call.latents), pick(call.timesteps), inputs, rows, call.frames)
