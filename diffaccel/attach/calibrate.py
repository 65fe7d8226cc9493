"""Measure how fast the outputs of each kind of layer change, and when they may be reused (SmoothCache, 2411.10510)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from diffaccel.attach.calibrate_curves import block_watch
from diffaccel.attach.handle import accelerate
from diffaccel.config.checks import number, one_of, whole
from diffaccel.config.words import counted
from diffaccel.methods.base import Method
from diffaccel.methods.calibrated_cache import Calibration, KindSteps, of_kind
from diffaccel.methods.curves import MagCurve, TeaCurve
from diffaccel.networks.layout import Layout
from diffaccel.reuse.branch import Branch
from diffaccel.reuse.forecast import Forecast
from diffaccel.reuse.schedule import Always
from diffaccel.runtime.act import Part
from diffaccel.runtime.replay_act import Replay
from diffaccel.sampling.seeds import generator_of

METHODS = CALIBRATED, MAG, TEA = ("calibratedcache", "magcache", "teacache")


def calibrate(
    pipe: Any,
    prompts: Sequence[str | Mapping[str, Any]],
    alpha: float = 0.1,
    path: str | Path | None = None,
    *,
    max_reuse: int = 3,
    seed: int = 0,
    method: str = CALIBRATED,
    **settings: Any,
) -> Calibration | MagCurve | TeaCurve:
    """Run a pipeline on some prompts and find out when `CalibratedCache` may reuse each kind of layer.

    With `method="magcache"` or `"teacache"` what these must know is measured instead: the mean ratio of the residual's
    magnitudes from call to call, or a polynomial of degree 4 from the changes of the modulated input to those of the
    output of the blocks. `MagCache` and `TeaCache` take the result.

    For each kind, the mean over layers and prompts of ||F_t - F_s||_1 / ||F_t||_1 is measured for outputs F at network
    calls s < t. Going through a run, call t reuses the last computed call s iff that error is <= alpha (section 3 of
    the paper). About ten prompts are enough, as the errors hardly depend on them.

    Args:
        pipe: a diffusers pipeline with a transformer.
        prompts: for each run a prompt, or a dictionary of arguments such as {"class_labels": [207]}.
        alpha: relative error that is allowed, >= 0; 0.05 to 0.3 is usual.
        path: where to write the calibration as JSON; None does not write it.
        max_reuse: at most this many reused calls between two computed ones; as many outputs are kept while measuring.
        seed: of the noise; prompt i has seed + i.
        method: "calibratedcache", "magcache" or "teacache"; alpha and max_reuse are for the first one.
        settings: further arguments of every run, such as num_inference_steps, which the calibration is bound to.

    Raises:
        UnsupportedModelError: if the pipeline has no transformer with attentions known by name.
        ValueError: if there is no prompt, a number is out of range, the runs differ in their number of calls, or a call
            has none before it to be compared with.
    """
    number("alpha", alpha, 0.0)
    whole("max_reuse", max_reuse, 1)
    if not prompts:
        raise ValueError("calibrate needs at least one prompt; got none")
    one_of("method", method, METHODS)
    measure = _Measure(max_reuse) if method == CALIBRATED else block_watch(modulated=method == TEA)
    total = _run(pipe, measure, prompts, seed, settings)
    source = f"diffaccel.calibrate, {counted(len(prompts), 'prompt')}, {total} network calls"
    found: Calibration | MagCurve | TeaCurve
    if isinstance(measure, _Measure):
        found = measure.calibration(total, alpha)
    else:
        found = measure.tea_curve(total, source) if method == TEA else measure.mag_curve(total, source)
    if path is not None:
        found.save(path)
    return found


def _run(pipe: Any, measure: Any, prompts: Sequence[str | Mapping[str, Any]], seed: int, settings: Any) -> int:
    """Let `measure` see a run of each prompt; how many network calls each of them made."""
    totals: set[int] = set()
    with accelerate(pipe, measure):
        for index, prompt in enumerate(prompts):
            arguments = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
            generator = generator_of(seed + index)
            measure.start_run()
            pipe(**{"generator": generator, **settings, **arguments})
            totals.add(measure.calls())
    if len(totals) > 1:
        raise ValueError(f"all runs must make the same number of network calls; these made {sorted(totals)}")
    return totals.pop()


class _Errors(Forecast):
    """Stands where a forecast would, and measures how far each output is from those of the calls before it.

    Attributes:
        sums: for each (call, distance to an earlier call) the sum of relative errors, and how many there were.
        calls: network calls of the current run.
    """

    def __init__(self, max_reuse: int) -> None:
        self.max_reuse = max_reuse
        self.sums: dict[tuple[int, int], tuple[torch.Tensor, int]] = {}
        self.calls = 0

    def update(self, history: Any, feature: Any, step: int) -> Any:
        """The history, (call, output) of the last `max_reuse` calls, latest first."""
        past: list[tuple[int, Any]] = history or []
        for earlier, other in past:
            total, count = self.sums.get((step, step - earlier), (torch.zeros(()), 0))
            error = relative_error(feature, other)
            self.sums[step, step - earlier] = total.to(error.device) + error, count + 1
        self.calls = max(self.calls, step + 1)
        return [(step, feature), *past][: self.max_reuse]

    def steps(self, total: int, alpha: float) -> tuple[int, ...]:
        """Calls that must compute in a run of `total`."""
        computed = [0]
        for step in range(1, total):
            gap = step - computed[-1]
            summed, count = self.sums.get((step, gap), (torch.tensor(float("inf")), 1))
            if gap > self.max_reuse or not float(summed) / count <= alpha:
                computed.append(step)
        return tuple(computed)


class _Measure(Method):
    """Computes everything and measures errors by kind of layer."""

    def __init__(self, max_reuse: int) -> None:
        self.max_reuse = max_reuse
        self.errors: dict[str, _Errors] = {}
        self.layout: Layout | None = None

    def parts(self, layout: Layout) -> list[Part]:
        """One part for each kind of layer, whose outputs are compared."""
        layout.require("calibrate", "units")
        if self.layout is not None:
            raise ValueError("calibrate takes a pipeline with one denoiser; this one has several")
        self.layout = layout
        kinds = sorted({unit.kind for unit in layout.units})
        self.errors = {kind: _Errors(self.max_reuse) for kind in kinds}
        return [
            Part(Replay(Branch(of_kind(layout, kind).replayed)), Always(), errors)
            for kind, errors in self.errors.items()
        ]

    def start_run(self) -> None:
        """Count the calls of a new run."""
        for errors in self.errors.values():
            errors.calls = 0

    def calls(self) -> int:
        """Network calls of the run."""
        return max(errors.calls for errors in self.errors.values())

    def calibration(self, total: int, alpha: float) -> Calibration:
        """What was measured."""
        assert self.layout is not None
        kinds = tuple(KindSteps(kind, errors.steps(total, alpha)) for kind, errors in self.errors.items())
        return Calibration(self.layout.model, self.layout.fingerprint, total, alpha, kinds)


def relative_error(feature: Any, reference: Any) -> torch.Tensor:
    """||F - G||_1 / ||F||_1 of two outputs, over all their tensors; a scalar on their device."""
    leaves = zip(tree_leaves(feature), tree_leaves(reference), strict=True)
    pairs = [(a, b) for a, b in leaves if isinstance(a, torch.Tensor)]
    difference = torch.stack([(a - b).abs().sum(dtype=torch.float32) for a, b in pairs]).sum()
    return difference / torch.stack([a.abs().sum(dtype=torch.float32) for a, _ in pairs]).sum()
