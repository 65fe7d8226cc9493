"""Slot caches at work: hooks on a network and on its ControlNets, and the features that one engine keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from diffaccel.config.checks import check
from diffaccel.methods.base import Method
from diffaccel.networks import layout_of
from diffaccel.networks.inputs import Inputs as NetworkInputs
from diffaccel.reuse.branch import Part
from diffaccel.reuse.schedule import CallInfo as ScheduleCall
from diffaccel.runtime.attachment import Place, ReplayHook
from diffaccel.runtime.shared_hooks import Replays
from diffaccel.runtime.state import ActivePart, CacheState, map_tensors, relative_change
from diffaccel.stream.batch import Call, Slot

Run = Callable[[Call, bool], torch.Tensor]
"""Runs a network call, given also whether features are reused in it."""


class _Hooked:
    """Parts on one network: their hooks, which obey within `using` alone."""

    def __init__(self, model: torch.nn.Module, parts: Sequence[ActivePart]) -> None:
        self._parts = parts
        self._writes = layout_of(model).writes
        self._replays = Replays({model.get_submodule(name): hook for active in parts for name, hook in _hooks(active)})
        self.close = self._replays.close

    @contextmanager
    def using(self) -> Iterator[None]:
        """Within, the network's calls compute or reuse as the parts' states say."""
        writable = self._writes(NetworkInputs({}, ("sample", None, None)))
        for active in self._parts:
            active.state.writable = writable
        with self._replays.using():
            yield


def _hooks(active: ActivePart) -> list[tuple[str, ReplayHook]]:
    branch = active.part.branch
    places = [Place(active, i, keep=i >= len(branch.skipped)) for i, _ in enumerate(branch.modules)]
    return [(name, ReplayHook([place])) for name, place in zip(branch.modules, places, strict=True)]


@dataclass(frozen=True)
class _Follower:
    """A part of a ControlNet that does what a part of the denoiser, its leader, does in the same call."""

    active: ActivePart
    leader: ActivePart

    def follow(self, *, forced: bool) -> None:
        """Share the leader's decision."""
        if forced:
            self.active.state = CacheState(self.active.part)
        state, decided = self.active.state, self.leader.state
        state.step, state.compute, state.age, state.filled = decided.step, decided.compute, decided.age, True


def _followers(method: Method, model: torch.nn.Module, leaders: Sequence[ActivePart]) -> list[_Follower]:
    """What a ControlNet leaves out where the denoiser reuses; what it may reuse by itself is not taken over."""
    parts = method.companion_parts(layout_of(model))
    return [_Follower(ActivePart(part), leaders[leader]) for part, leader in parts if leader is not None]


class FeatureReuse(ABC):
    """A slot cache at work on a denoiser and the ControlNets before it, for one engine.

    Args:
        method: what is reused and when.
        model: the denoiser.
        companions: its ControlNets, which compute no more than the denoiser reads.
        scene_change: see `SlotCache`.

    Raises:
        UnsupportedModelError, ValueError: where the method does not fit the network.
        RuntimeError: where the network is accelerated already.
    """

    def __init__(
        self, method: Method, model: torch.nn.Module, companions: Iterable[torch.nn.Module], scene_change: float
    ) -> None:
        self.scene_change = scene_change
        self.active = [ActivePart(part) for part in method.parts(layout_of(model))]
        for active in self.active:
            active.part.schedule.validate(None)
        self._hooked = [_Hooked(model, self.active)]
        self.followers: list[_Follower] = []
        for companion in companions:
            followers = _followers(method, companion, self.active)
            self._hooked.append(_Hooked(companion, [f.active for f in followers]))
            self.followers += followers

    def close(self) -> None:
        """Take the hooks off."""
        for hooked in self._hooked:
            hooked.close()

    @abstractmethod
    def enter(self, pixels: torch.Tensor | None) -> None:
        """Note what enters with the next call, ``(frames, channels, H, W)`` in [-1, 1]; None for text-to-image."""

    @abstractmethod
    def forget(self) -> None:
        """Reuse nothing that was stored so far."""

    @abstractmethod
    def predict(self, run: Run, call: Call) -> torch.Tensor:
        """The network's prediction for ``call``, with features reused."""

    def _run(self, run: Run, call: Call) -> torch.Tensor:
        reuses = not all(active.state.compute for active in self.active)
        with ExitStack() as stack:
            for hooked in self._hooked:
                stack.enter_context(hooked.using())
            return run(call, reuses)


def decide(state: CacheState, part: Part, sample: torch.Tensor, *, forced: bool) -> None:
    """Decide whether ``part`` computes in the next call; a forced computation starts its schedule again."""
    if forced or not state.filled:
        state.step, state.compute = 0, True
    else:
        state.step += 1
        call = ScheduleCall(state.step, None, lambda: relative_change(sample, state.reference), state.age)
        state.compute = part.schedule.should_compute(call)
    state.age = 0 if state.compute else state.age + 1
    state.filled = True
    if state.compute and part.schedule.measures:
        state.reference = sample.clone()


class ByStage(FeatureReuse):
    """Row i reuses what row i stored: the frame before it, at the same stage.

    What a frame stored whose prediction is not finite would spoil those that follow it, so all rows compute then.
    """

    _rows: tuple[Any, ...] = ()
    _finite: torch.Tensor | None = None
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
        differences = (pixels - last).abs().flatten(1).mean(1)  # of each frame, whose pixels span 2 units
        return float(differences.max()) / 2 > self.scene_change

    def forget(self) -> None:
        """Compute everything in the next call."""
        self._rows = ()

    def _is_spoilt(self) -> bool:
        """Whether something that is not finite may have been stored; the last tick's output was waited for already."""
        return self._finite is not None and not bool(self._finite)

    def predict(self, run: Run, call: Call) -> torch.Tensor:
        """Compute where a schedule says so, after a change of scene, of prompts or of the rows; else reuse."""
        rows = (*(_told(s, negative) for s, negative in call.rows), call.inputs)
        same = len(rows) == len(self._rows) and all(_equal(a, b) for a, b in zip(rows, self._rows, strict=True))
        if self._new_scene:  # it has passed all stages when so many calls have computed
            self._new_scene, self._forced = False, max(len(s.settings.stages) for s, _ in call.rows)
        forced, self._forced = not same or self._forced > 0 or self._is_spoilt(), max(0, self._forced - 1)
        self._rows = rows
        for active in self.active:
            if forced:
                active.state = CacheState(active.part)
            decide(active.state, active.part, call.latents, forced=forced)
        for follower in self.followers:
            follower.follow(forced=forced)
        try:
            prediction = self._run(run, call)
        except BaseException:
            self._rows = ()
            raise
        self._finite = prediction.isfinite().all()
        return prediction


def _told(slot: Slot, negative: bool) -> tuple[object, object]:
    return slot.settings.stages, (negative, slot.stage, slot.settings.control_scales)


def _equal(a: Any, b: Any) -> bool:
    return a[0] is b[0] and a[1] == b[1] if isinstance(a, tuple) else a is b


@dataclass(eq=False)
class _Features:
    """What one frame's rows stored in each part, how often, and what they were told: prompt, stages, control scales."""

    state: CacheState
    told: tuple[object, object, object]
    entries: list[list[Any]] = field(default_factory=list)

    def knows(self, told: tuple[object, object, object]) -> bool:
        """Whether it was told the same."""
        return self.told[0] is told[0] and self.told[1] is told[1] and self.told[2] == told[2]


class ByFrame(FeatureReuse):
    """A frame reuses what it stored itself at an earlier stage; rows that compute make a call of their own."""

    def __init__(
        self, method: Method, model: torch.nn.Module, companions: Iterable[torch.nn.Module], scene_change: float
    ) -> None:
        parts, name = method.parts(layout_of(model)), type(method).__name__
        check(
            len(parts) == 1, f"{name} reuses {len(parts)} parts, and only one can travel with a frame: use key='stage'"
        )
        check(parts[0].forecast is None, "features that travel with a frame cannot be forecast: use key='stage'")
        super().__init__(method, model, companions, scene_change)
        self._parts = [*self.active, *(f.active for f in self.followers)]
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
        """A frame's features with the decision for this tick; new ones after a change of what it is told."""
        part, settings = self.active[0].part, slot.settings
        told = (settings.negative if negative else settings.positive, settings.stages, settings.control_scales)
        known = self._stored.get(slot, {}).get(negative)
        fresh = known is None or not known.knows(told)
        features = _Features(CacheState(part), told) if known is None or fresh else known
        decide(features.state, part, latents, forced=fresh)
        return features

    def _part_of(
        self, run: Run, call: Call, chosen: Sequence[int], features: Sequence[_Features], compute: bool
    ) -> torch.Tensor:
        for place, active in enumerate(self._parts):
            active.state = CacheState(active.part)
            active.state.compute, active.state.filled = compute, True
            if not compute:
                active.state.entries = _joined(active.part, [f.entries[place] for f in features])
        prediction = self._run(run, _selected(call, chosen))
        if compute:
            for k, f in enumerate(features):
                f.entries = [[_rows(entry, k, call.frames) for entry in active.state.entries] for active in self._parts]
        for active in self._parts:
            active.state = CacheState(active.part)
        return prediction


def _chunks(rows: torch.Tensor, frames: int) -> list[torch.Tensor]:
    return [rows[i : i + frames] for i in range(0, len(rows), frames)]


def _rows(entry: Any, group: int, frames: int) -> Any:
    """Rows of one group in everything stored."""
    return map_tensors(lambda x: x[group * frames : (group + 1) * frames], entry)


def _joined(part: Part, groups: Sequence[list[Any]]) -> list[Any]:
    """What several groups stored in a part, as rows of one call; where one stored nothing, all compute.

    Placeholders are expanded and take no storage.
    """
    joined: list[Any] = []
    for k, column in enumerate(zip(*groups, strict=True)):
        if any(entry is None for entry in column):
            joined.append(None)
        elif k < len(part.branch.skipped):
            joined.append(map_tensors(partial(_repeated, times=len(column)), column[0]))
        else:
            joined.append(_zipped(lambda *tensors: torch.cat(tensors), column))
    return joined


def _repeated(x: torch.Tensor, *, times: int) -> torch.Tensor:
    return x[:1].expand(times * x.shape[0], *x.shape[1:])


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
