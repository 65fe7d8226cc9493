"""Measure what MagCache and TeaCache must know: magnitudes of residuals, and what inputs tell of outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffaccel.config.checks import check
from diffaccel.methods.base import Method
from diffaccel.methods.curves import MagCurve, TeaCurve
from diffaccel.methods.tea_cache import first_attention
from diffaccel.networks.layout import Layout, UnsupportedModelError
from diffaccel.reuse.schedule import Always
from diffaccel.runtime.act import Part, PartState
from diffaccel.runtime.lanes import Lanes
from diffaccel.runtime.observe_act import ENTERING, LEAVING, MODULATED, Observe

DEGREE = 4  # of TeaCache's polynomial, as in the paper


def block_watch(*, modulated: bool) -> _BlockWatch:
    """What measures; `modulated` is whether the input of the first attention is watched, too."""
    return _BlockWatch(modulated)


class _BlockWatch(Method):
    """Computes everything, and watches all blocks from outside.

    Args:
        modulated: whether the input of the first attention is watched, too.
    """

    def __init__(self, modulated: bool) -> None:
        self.modulated = modulated
        self.layout: Layout | None = None
        self.before: dict[tuple[Lanes, str], torch.Tensor] = {}
        self.now: dict[str, torch.Tensor] = {}
        self.ratios: dict[int, list[float]] = {}
        self.changes: list[tuple[float, float]] = []
        self.last = -1

    def parts(self, layout: Layout) -> list[Part]:
        """One part, which reuses nothing."""
        layout.require("calibrate", "blocks")
        if self.layout is not None:
            raise ValueError("calibrate takes a pipeline with one denoiser; this one has several")
        self.layout = layout
        unit = first_attention(layout) if self.modulated else ""
        return [Part(Observe(layout.blocks[0], layout.blocks[-1], unit, self.tell), Always())]

    def start_run(self) -> None:
        """Forget the run before."""
        self.before.clear()
        self.last = -1

    def calls(self) -> int:
        """Network calls of the run."""
        return self.last + 1

    def tell(self, state: PartState, what: str, value: torch.Tensor) -> None:
        """Take note; behind the last block compare with the call before."""
        self.now[what] = value
        if what != LEAVING:
            return
        entering = self.now[ENTERING]
        if value.shape != entering.shape:
            raise UnsupportedModelError(
                f"the blocks of this network make {tuple(value.shape)} of {tuple(entering.shape)}, which have no "
                "residual: use BlockCache or IntervalCache"
            )
        step, lanes = state.steps[0], state.row_lanes
        self.last = max(self.last, step)
        self.now["residual"] = value - entering
        found = {name: (tensor, self.before.get((lanes, name))) for name, tensor in self.now.items()}
        if found["residual"][1] is not None:
            self.ratios.setdefault(step, []).append(mean_ratio(*found["residual"]))  # type: ignore[arg-type]
            if self.modulated:
                self.changes.append((relative(*found[MODULATED]), relative(*found[LEAVING])))  # type: ignore[arg-type]
        self.before.update({(lanes, name): tensor for name, tensor in self.now.items()})

    def mag_curve(self, total: int, source: str) -> MagCurve:
        """The mean ratios of a run of `total` calls."""
        assert self.layout is not None
        _require_several(total)
        alone = next((step for step in range(1, total) if step not in self.ratios), None)
        check(
            alone is None,
            f"calibrate compares each network call with the one before it, and call {alone} of these runs had no row "
            "with the same prompts and shapes there, as where guidance ends in mid-run: calibrate without that",
        )
        ratios = [1.0, *(float(np.mean(self.ratios[step])) for step in range(1, total))]
        return MagCurve(self.layout.model, self.layout.fingerprint, source, tuple(round(r, 5) for r in ratios))

    def tea_curve(self, total: int, source: str) -> TeaCurve:
        """The polynomial that fits the changes of runs of `total` calls best, of a lower degree where there are few."""
        assert self.layout is not None
        _require_several(total)
        inputs, outputs = np.array(self.changes).T
        degree = min(DEGREE, max(0, len(set(self.changes)) - 1))
        fitted: Any = np.polyfit(inputs, outputs, degree)
        return TeaCurve(self.layout.model, self.layout.fingerprint, source, tuple(float(c) for c in fitted))


def _require_several(total: int) -> None:
    """Raise ValueError for runs whose calls have none before them."""
    check(
        total > 1,
        f"calibrate compares each network call with the one before it, and these runs have {total}: give "
        "num_inference_steps=2 or more",
    )


def mean_ratio(residual: torch.Tensor, before: torch.Tensor) -> float:
    """Mean over tokens of ||r|| / ||r_before||, ``(..., features)``."""
    norms = [r.float().norm(dim=-1) for r in (residual, before)]
    return float((norms[0] / (norms[1] + 1e-8)).mean())


def relative(value: torch.Tensor, before: torch.Tensor) -> float:
    """mean|x - x_before| / mean|x_before|"""
    return float((value - before).abs().mean(dtype=torch.float32) / before.abs().mean(dtype=torch.float32))
