"""Steadiness between frames: a row's self-attention also sees keys and values of earlier frames at its stage.

StreamDiffusion (arXiv 2312.12491, section 3.2) and StreamV2V (arXiv 2405.15757, section 3.2) keep them in a bank, in
whose order they do not matter. What a row sees are those of its own stream, stage, prompt and scene alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffaccel.config import Config
from diffaccel.config.checks import check, number, whole
from diffaccel.networks.causal import picture_layout_of
from diffaccel.networks.compiled import is_compiled
from diffaccel.reuse.schedule import Always
from diffaccel.runtime.act import Part
from diffaccel.runtime.causal_context import CausalContext
from diffaccel.runtime.extend_act import ExtendKeyValues
from diffaccel.runtime.lanes import Lane, LaneMemory, Lanes, Span
from diffaccel.stream.batch import Slot
from diffaccel.stream.slot_cache import Scenes


@dataclass(frozen=True)
class CrossFrame(Config):
    """Self-attention of a frame sees the frames before it.

    Args:
        frames: how many earlier frames are seen; 0 for none.
        blocks: beginnings of the names of the attentions that see them, such as ``("up_blocks",)``; none for all.
        scene_change: mean absolute difference of two frames in a row, in [0, 1], above which a scene has changed and
            nothing is seen of the frames before. Frames on a device are not compared.

    Raises:
        ValueError: for values out of range.
    """

    frames: int = 4
    blocks: tuple[str, ...] = ()
    scene_change: float = 0.1

    def __post_init__(self) -> None:
        whole("frames", self.frames, 0)
        blocks = (self.blocks,) if isinstance(self.blocks, str) else tuple(self.blocks)
        check(
            all(isinstance(block, str) and block for block in blocks),
            f"blocks must be names of parts of the network such as 'up_blocks', not {self.blocks!r}",
        )
        object.__setattr__(self, "blocks", blocks)
        number("scene_change", self.scene_change, 0.0, 1.0)

    def part(self, model: torch.nn.Module) -> Part | None:
        """What it does in a network; None for no frames.

        Raises:
            UnsupportedModelError, ValueError: where the network has no such attentions.
        """
        if not self.frames:
            return None
        check(
            not is_compiled(model),
            "steadiness changes attentions within the network, and this one was compiled as a whole: give the network "
            "that was not compiled, or steadiness=None",
        )
        context = CausalContext(window=self.frames)
        act = ExtendKeyValues(picture_layout_of(model, self.blocks), context, whole=False)
        return Part(act, Always(), lifetime="video")


class FramesBefore:
    """Whose earlier frames each row of a stream sees.

    Args:
        steadiness: how many; None for none.
    """

    def __init__(self, steadiness: CrossFrame | None) -> None:
        self._scenes = None if steadiness is None else Scenes(steadiness.scene_change)

    def enter(self, slot: Slot, pixels: torch.Tensor | None) -> None:
        """Note what enters; frames of text-to-image all show one scene."""
        if self._scenes is not None and pixels is not None:
            slot.shot = self._scenes.of(pixels)

    def lanes(self, rows: Sequence[tuple[Slot, bool, int]]) -> Lanes:
        """The lane of each row. Frames under other prompts or stages see nothing of those before."""
        return tuple(Lane(_told(slot), (slot.stage, negative, k)) for slot, negative, k in rows)

    def spans(self, rows: Sequence[tuple[Slot, bool, int]]) -> tuple[Span, ...]:
        """Which frame each row shows, counted in slots."""
        return () if self._scenes is None else tuple(Span(slot.number, 1, commits=True) for slot, _, _ in rows)


def _told(slot: Slot) -> tuple[Any, ...]:
    settings = slot.settings
    return slot.shot, settings.positive, settings.negative, settings.stages.table, settings.control_scales


def kept_with(lanes: Lanes, memory: LaneMemory) -> Lanes:
    """Lanes that later rows may read where these are read now: of all stages, also those that no row is at."""
    groups = {lane.group for lane in lanes}
    return tuple(lane for lane in memory.lanes if lane.group in groups)
