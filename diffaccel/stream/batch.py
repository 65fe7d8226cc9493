"""The stream batch (StreamDiffusion, arXiv 2312.12491, section 3.1): frames at different stages share one network call.

A `Slot` is a group of frames in flight; it carries its own settings, so that new settings can reach only new frames.
A tick sends the rows of all slots through the network once and moves every slot to its next stage. The register of
clean latents that residual guidance needs (`source`, `anchor`) travels with the slot, which makes Eq. 5 exact for any
number of stages, with or without added noise, and while settings change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

import torch

from diffaccel.networks.conditioning import Conditioning, Keywords, stack
from diffaccel.sampling.guidance import Guidance
from diffaccel.sampling.samplers import NoiseLevel
from diffaccel.stream.conditions import ControlImages, FrameInput
from diffaccel.stream.memo import Memo
from diffaccel.stream.regions import RegionPrompt, composed
from diffaccel.stream.smoothing import Track
from diffaccel.stream.stages import StageRows, Stages, gather


@dataclass(frozen=True)
class FrameSettings:
    """How a frame is denoised: stages, prompts, guidance, the scale of each ControlNet, regions, image guidance.

    Stages and prompts are compared by identity.
    """

    stages: Stages
    positive: Conditioning
    negative: Conditioning | None
    guidance: Guidance
    control_scales: tuple[float, ...] = ()
    regions: tuple[RegionPrompt, ...] = ()
    image_guidance: float = 1.0

    @property
    def asks_unseen(self) -> bool:
        """Whether the network has to see rows with the negative prompt and without the picture (InstructPix2Pix)."""
        return self.image_guidance != 1 and self.guidance.negative_source == "predicted"

    @property
    def negative_prompt(self) -> Conditioning:
        """The encoded negative prompt.

        Raises:
            ValueError: where it was not encoded, because no guidance asked for it.
        """
        if self.negative is None:
            raise ValueError(f"{type(self.guidance).__name__} needs an encoded negative prompt")
        return self.negative

    def prompt(self, negative: bool) -> Conditioning:
        """The encoded prompt of a row; see `negative_prompt`."""
        return self.negative_prompt if negative else self.positive


class Estimate(NamedTuple):
    """Clean and noise estimates of a frame, and the noise level that its latents had."""

    level: NoiseLevel
    clean: torch.Tensor
    noise: torch.Tensor


@dataclass(eq=False)
class Slot:
    """A group of frames in flight.

    Attributes:
        frame_ids: ids of its frames; rows beyond them are padding.
        settings: how it is denoised from here on.
        latents: noisy latents at its stage, ``(frames, C, h, w)``; behind the last stage, the finished latents.
        source: clean latents of the input pictures, or None for text-to-image.
        stage: the next stage to run.
        anchor: clean estimate under the negative prompt, once it is known.
        estimate: what the last tick made of it.
        entered: when each frame was pushed, in seconds.
        control: its control images, where the pipeline has ControlNets.
        scene: number of the scene that it shows; features are not reused from one scene to another.
        number: its place among all slots of the stream.
        shot: number of the scene for what frames see of those before.
        shown: what its frames show beside latents and prompts.
        tracks: how each frame goes on from the one before it, where pictures are smoothed.
        whole: of what stands beside a slot in a call, the slot that it is a part of.
    """

    frame_ids: tuple[int, ...]
    settings: FrameSettings
    latents: torch.Tensor
    source: torch.Tensor | None = None
    stage: int = 0
    anchor: torch.Tensor | None = None
    estimate: Estimate | None = None
    entered: tuple[float, ...] = field(default=())
    control: ControlImages | None = None
    scene: int = 0
    number: int = 0
    shot: int = 0
    shown: tuple[FrameInput, ...] = ()
    tracks: tuple[Track, ...] = ()
    whole: Slot | None = None

    def parts(self) -> list[Slot]:
        """What stands beside it in a call: its frames under each region's prompt; and shown no picture, where asked."""
        settings = self.settings
        alone = [replace(settings, positive=region.positive, regions=()) for region in settings.regions]
        parts = [replace(self, settings=one, whole=self) for one in alone]
        if settings.asks_unseen:
            unseen = replace(settings, positive=settings.negative_prompt, regions=())
            parts.append(replace(self, settings=unseen, shown=tuple(x.blank() for x in self.shown), whole=self))
        return parts

    def settled(self, latents: torch.Tensor, level: NoiseLevel | None) -> torch.Tensor:
        """Latents at a noise level, or (None) finished, once what it shows has had its last word."""
        for shown in self.shown:
            latents = shown.settled(latents, level)
        return latents

    @property
    def finished(self) -> bool:
        """Whether it has left the last stage."""
        return self.stage >= len(self.settings.stages)

    @property
    def asks_negative(self) -> bool:
        """Whether the network has to see its rows with the negative prompt in this tick."""
        source = self.settings.guidance.negative_source
        return source == "predicted" or (source == "first" and self.anchor is None)

    def negative_estimate(self, predicted: torch.Tensor | None) -> torch.Tensor | None:
        """Clean estimate of the negative prediction; keeps the one that one-time guidance will need again."""
        source = self.settings.guidance.negative_source
        if source == "first":
            self.anchor = predicted if self.anchor is None else self.anchor
            return self.anchor
        return {"none": None, "predicted": predicted, "input": self.source}[source]

    def adopt(self, settings: FrameSettings) -> None:
        """Go on under new settings.

        New stages are joined at the first one that is less noisy than the level reached, by noising the clean
        estimate again; where there is none, the frame is finished. A frame that follows this rule never overtakes an
        older one.
        """
        old, self.settings = self.settings, settings
        if settings.negative is not old.negative:
            self.anchor = None
        if settings.stages is old.stages.table or self.estimate is None:
            return
        (reached, clean, noise), stages = self.estimate, settings.stages
        stage = stages.first_below(reached.timestep)
        if stage is None:
            self.stage, self.latents = len(stages), self.settled(clean, None)
            return
        weights = stages.transition(reached, stages.levels[stage])
        fresh = stages.noise_of(stage).to(self.latents)
        self.stage = stage
        latents = weights.clean * clean + weights.noise * noise + weights.fresh * fresh
        self.latents = self.settled(latents, stages.levels[stage])


@dataclass(frozen=True, eq=False)
class Tick:
    """One network call: every row's slot and whether it sees the negative prompt; rows are slot-major.

    Attributes:
        latents, timesteps, inputs: of all rows, ``(groups * frames, ...)``.
        groups: names each group of ``frames`` rows by ``(slot, is negative)``; negative groups come first, parts of
            slots last.
        frames: rows of a group.
        slots: all slots that move on, newest first.
        table: what their rows are multiplied by.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    inputs: Keywords
    groups: tuple[tuple[Slot, bool], ...]
    frames: int
    slots: tuple[Slot, ...]
    table: StageRows

    @property
    def asked(self) -> list[Slot]:
        """Slots whose rows also see the negative prompt."""
        return [slot for slot, negative in self.groups if negative]


Predict = Callable[[Tick], torch.Tensor]


class StreamBatch:
    """Frames in flight, newest first, and the tick that moves them on.

    A tick is prepared, run by whoever has the network, and absorbed, so that ticks of several batches can share a call.

    Args:
        frames: frames per slot.
        device: where the latents live.
    """

    def __init__(self, frames: int, device: torch.device) -> None:
        self.frames, self.device = frames, device
        self.slots: list[Slot] = []
        self._rows: Memo[StageRows] = Memo()
        self._inputs: Memo[Keywords] = Memo()

    def tick(self, predict: Predict, entering: Slot | None = None) -> list[Slot]:
        """Run every slot's next stage and return the finished ones, oldest first.

        Where ``predict`` raises, nothing has changed, and ``entering`` is not in flight.
        """
        tick = self.prepare(entering)
        return self.absorb(entering, tick, None if tick is None else predict(tick))

    @torch.no_grad()
    def prepare(self, entering: Slot | None = None) -> Tick | None:
        """The network call of the next tick, without changing anything; None where no slot has a stage to run."""
        slots = [s for s in ((entering,) if entering else ()) + tuple(self.slots) if not s.finished]
        if not slots:
            return None
        table = self._gather(slots)
        asked = [s for s in slots if s.asks_negative]
        parts = [part for s in slots for part in s.parts()]
        told = [*slots, *parts]
        conditionings = [s.settings.negative_prompt for s in asked] + [s.settings.positive for s in told]
        inputs = self._inputs.get(conditionings, lambda: stack(conditionings, self.frames))
        latents, timesteps = torch.cat([s.latents for s in (*asked, *told)]), table.timesteps
        if asked or parts:  # rows beside those of the slots themselves are at their timesteps
            whole = (s.whole or s for s in (*asked, *told))
            timesteps = torch.cat([self._of(slots, s, timesteps) for s in whole])
        groups = tuple((s, True) for s in asked) + tuple((s, False) for s in told)
        return Tick(latents, timesteps, inputs, groups, self.frames, tuple(slots), table)

    @torch.no_grad()
    def absorb(self, entering: Slot | None, tick: Tick | None, prediction: torch.Tensor | None) -> list[Slot]:
        """Move every slot of a tick on by its prediction, ``(rows, C, h, w)``; the finished slots, oldest first."""
        if tick is not None and prediction is not None:
            self._advance(tick, prediction.float())
        self.slots = ([entering] if entering else []) + self.slots
        finished = [s for s in reversed(self.slots) if s.finished]
        self.slots = [s for s in self.slots if not s.finished]
        return finished

    def _advance(self, tick: Tick, prediction: torch.Tensor) -> None:
        slots, rows, asked = tick.slots, tick.table, tick.asked
        own = slice(len(asked) * self.frames, (len(asked) + len(slots)) * self.frames)
        latents = tick.latents[own]  # (slots * frames, C, h, w)
        negatives = self._negatives(slots, asked, prediction, rows)
        together, unseen = self._composed(slots, prediction[own], prediction[own.stop :])
        clean = self._guide(slots, rows.clean(latents, together), negatives, latents, rows.alpha)
        clean = clean + self._seen(slots, negatives, unseen, rows) if unseen else clean
        denoised, noise = rows.denoised(latents, clean), rows.noise(latents, clean)
        following = self._corrected(slots, rows.advance(denoised, noise), denoised)
        for slot, x, d, n in zip(slots, *map(self._split, (following, denoised, noise)), strict=True):
            levels = slot.settings.stages.levels
            slot.estimate = Estimate(levels[slot.stage], d, n)
            slot.stage += 1
            slot.latents = slot.settled(x, None if slot.finished else levels[slot.stage])

    def _composed(
        self, slots: Sequence[Slot], own: torch.Tensor, others: torch.Tensor
    ) -> tuple[torch.Tensor, dict[Slot, torch.Tensor]]:
        """Predictions of all slots, with those of their regions in them; and those of frames that show nothing."""
        unseen: dict[Slot, torch.Tensor] = {}
        if not len(others):
            return own, unseen
        each, behind = list(self._split(own)), iter(self._split(others))
        for index, slot in enumerate(slots):
            regions = slot.settings.regions
            if regions:
                each[index] = composed(each[index], [next(behind) for _ in regions], regions)
            if slot.settings.asks_unseen:
                unseen[slot] = next(behind)
        return torch.cat(each), unseen

    def _seen(
        self,
        slots: Sequence[Slot],
        negatives: Sequence[torch.Tensor | None],
        unseen: Mapping[Slot, torch.Tensor],
        rows: StageRows,
    ) -> torch.Tensor:
        """What guidance by the picture adds to clean estimates (InstructPix2Pix, arXiv 2211.09800, Eq. 3)."""
        added = [torch.zeros_like(slot.latents) for slot in slots]
        for index, (slot, negative) in enumerate(zip(slots, negatives, strict=True)):
            if slot in unseen and negative is not None:
                blind = self._estimate(slots, slot, unseen[slot], rows)
                added[index] = (slot.settings.image_guidance - 1) * (negative - blind)
        return torch.cat(added)

    def _estimate(self, slots: Sequence[Slot], slot: Slot, prediction: torch.Tensor, rows: StageRows) -> torch.Tensor:
        """A slot's clean estimate by one of its predictions."""
        known, told = (self._of(slots, slot, column) for column in (rows.clean_latents, rows.clean_prediction))
        return known * slot.latents + told * prediction

    def _corrected(self, slots: Sequence[Slot], following: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """The next latents, by what multistep samplers learn from the estimate of the stage before."""
        for index, slot in enumerate(slots):
            before = slot.estimate
            weight = slot.settings.stages.correction(slot.stage, None if before is None else before.level)
            if before is not None and weight:
                own = slice(index * self.frames, (index + 1) * self.frames)
                following[own] += weight * (denoised[own] - before.clean)
        return following

    def _split(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(rows[i : i + self.frames] for i in range(0, len(rows), self.frames))

    def _gather(self, slots: Sequence[Slot]) -> StageRows:
        places = [(s.settings.stages, s.stage) for s in slots]
        key = [part for stages, i in places for part in (stages, stages.levels[i])]
        return self._rows.get(key, lambda: gather(places, self.frames, self.device))

    def _of(self, slots: Sequence[Slot], slot: Slot, values: torch.Tensor) -> torch.Tensor:
        start = slots.index(slot) * self.frames
        return values[start : start + self.frames]

    def _negatives(
        self, slots: Sequence[Slot], asked: Sequence[Slot], prediction: torch.Tensor, rows: StageRows
    ) -> list[torch.Tensor | None]:
        predicted = dict(zip(asked, self._split(prediction), strict=False))
        estimates = {s: self._estimate(slots, s, p, rows) for s, p in predicted.items()}
        return [s.negative_estimate(estimates.get(s)) for s in slots]

    def _guide(
        self,
        slots: Sequence[Slot],
        clean: torch.Tensor,
        negatives: Sequence[torch.Tensor | None],
        latents: torch.Tensor,
        alpha: torch.Tensor,
    ) -> torch.Tensor:
        guided, start = [], 0
        for guidance, group in groupby(zip(slots, negatives, strict=True), key=lambda pair: pair[0].settings.guidance):
            known = [n for _, n in group]
            end = start + len(known) * self.frames
            estimates = [n for n in known if n is not None]
            negative = torch.cat(estimates) if estimates else None
            guided.append(guidance.combine(clean[start:end], negative, latents[start:end], alpha[start:end]))
            start = end
        return guided[0] if len(guided) == 1 else torch.cat(guided)
