"""Run candidates on one workload and measure all of them: speed, cost, likeness, accuracy, memory, energy."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from diffaccel.attach.handle import Handle
from diffaccel.attach.macs import count_macs
from diffaccel.config.checks import check
from diffaccel.measure.accuracy import Accuracy, Judge, captions
from diffaccel.measure.candidates import Candidate
from diffaccel.measure.energy import joules
from diffaccel.measure.memory import peak_memory, watch_cache
from diffaccel.measure.quality import Quality, compare
from diffaccel.measure.timing import Timing, interleaved
from diffaccel.measure.workload import Workload, other_seeds
from diffaccel.networks import UnsupportedModelError, supports

log = logging.getLogger(__name__)
SHOWN = 4  # pictures of each candidate that are kept: there may be thousands


@dataclass(frozen=True)
class BenchRow:
    """Figures of one candidate.

    Attributes:
        name, kind: of the candidate.
        timing: of one picture.
        speedup: how many times as fast as the plain pipeline.
        macs: multiply-accumulates of one picture that were executed, text encoder and decoder included.
        ceiling: speed-up if time followed multiply-accumulates.
        quality: likeness to the plain pipeline's pictures.
        accuracy: whether pictures show their prompts; None where that cannot be judged.
        peak_bytes: growth of memory during a run; None where that cannot be measured.
        cache_bytes: stored features at their most, for one picture; None for what is not ours.
        joules: energy of one picture; None where there is no meter.
    """

    name: str
    kind: str
    timing: Timing
    speedup: float
    macs: int
    ceiling: float
    quality: Quality
    accuracy: Accuracy | None
    peak_bytes: int | None
    cache_bytes: int | None
    joules: float | None


@dataclass(frozen=True)
class Benchmark:
    """Figures of all candidates that ran, the plain pipeline first.

    Attributes:
        rows: the figures.
        failures: why each candidate that could not run did not.
        pictures: for each candidate its first pictures, at most `SHOWN`, (n, 3, height, width) in [0, 1].
        truth: the prompt of each picture.
        floor: likeness of the plain pipeline's pictures to its own at other seeds, which share the prompts alone.
        calls: for each candidate of ours what its network calls computed and measured, as SVG.
    """

    rows: tuple[BenchRow, ...]
    failures: dict[str, str]
    pictures: dict[str, torch.Tensor]
    truth: tuple[str, ...]
    floor: Quality
    calls: dict[str, str] = field(default_factory=dict)


@dataclass
class _Trial:
    """What was measured of a candidate without a clock."""

    candidate: Candidate
    pictures: torch.Tensor
    quality: Quality
    accuracy: Accuracy | None
    macs: int
    peak_bytes: int | None
    cache_bytes: int | None
    joules: float | None = None
    calls: str = ""


def bench(
    pipe: Any,
    workload: Workload,
    candidates: Sequence[Candidate],
    *,
    rounds: int = 5,
    judge: bool = False,
    progress: Callable[[str], None] = log.info,
) -> Benchmark:
    """Measure candidates.

    Quality is that of all pictures of the workload; time, memory, energy and multiply-accumulates are those of one
    picture, the first, made alone. Times are taken in turns. A candidate that raises is left out, with the reason.

    Args:
        pipe: the pipeline.
        workload: what to run.
        candidates: the plain pipeline first.
        rounds: timed runs of each.
        judge: whether the bundled emoji-clip is to say if pictures show their prompts.
        progress: told what is being done.

    Raises:
        ValueError: if the plain pipeline is not first, or two candidates have one name.
    """
    names = [candidate.name for candidate in candidates]
    check(bool(candidates) and candidates[0].kind == "plain", "the first candidate must be the plain pipeline")
    check(len(set(names)) == len(names), f"every candidate needs a name of its own; got {names}")
    plain, *others = candidates
    judged = Judge(list(dict.fromkeys([*captions(), *workload.prompts]))) if judge else None
    progress(f"measuring {plain.name}")
    trial, reference = _try(pipe, workload, plain, judged)
    trials, failures = {plain.name: trial}, {}
    progress("painting with other seeds")
    floor = compare(other_seeds(workload).pictures(pipe), reference)
    for candidate in others:
        progress(f"measuring {candidate.name}")
        try:
            trials[candidate.name], _ = _try(pipe, workload, candidate, judged, reference)
        except Exception as error:  # a peer may fail in any way; what failed is shown, never hidden
            written = candidate.kind == "diffaccel" and isinstance(error, UnsupportedModelError | ValueError)
            failures[candidate.name] = str(error) if written else f"{type(error).__name__}: {error}"
    progress("timing in turns")
    one = workload.first()
    timings = interleaved(
        {name: partial(one.pictures, pipe, **trial.candidate.changes) for name, trial in trials.items()},
        rounds,
        around={name: partial(trial.candidate.attach, pipe) for name, trial in trials.items()},
    )
    rows = tuple(_row(trial, trials[plain.name], timings) for trial in trials.values())
    pictures = {name: trial.pictures for name, trial in trials.items()}
    calls = {name: trial.calls for name, trial in trials.items() if trial.calls}
    return Benchmark(rows, failures, pictures, workload.truth, floor, calls)


def _try(
    pipe: Any, workload: Workload, candidate: Candidate, judge: Judge | None, reference: torch.Tensor | None = None
) -> tuple[_Trial, torch.Tensor]:
    """Everything about a candidate but its times, and all of its pictures; without `reference` they are their own."""
    one = partial(workload.first().pictures, pipe, **candidate.changes)
    with ExitStack() as stack:
        handle = stack.enter_context(candidate.attach(pipe))
        pictures = workload.pictures(pipe, **candidate.changes)
        sound = bool(pictures.isfinite().all())
        check(sound, "its pictures hold values that are not numbers, so that nothing can be said of them: try float32")
        peak, energy = peak_memory(one), joules(one)
        own = isinstance(handle, Handle)
        cache = _cache_bytes(pipe, handle, one) if own else None
        calls = handle.report().plot().svg if own else ""
        quality = compare(pictures, pictures if reference is None else reference)
        accuracy = None if judge is None else judge.accuracy(pictures, workload.truth)
        shown = pictures[:SHOWN].clone()
        return _Trial(candidate, shown, quality, accuracy, count_macs(one), peak, cache, energy, calls), pictures


def _cache_bytes(pipe: Any, handle: Handle, run: Callable[[], Any]) -> int:
    """The most that stored features take during a run, over all denoisers."""
    with ExitStack() as stack:
        models = [component for component in pipe.components.values() if supports(component)]
        watched = [stack.enter_context(watch_cache(handle, model)) for model in models]
        run()
    return max(memory.peak for memory in watched)


def _row(trial: _Trial, plain: _Trial, timings: dict[str, Timing]) -> BenchRow:
    """All figures of a candidate."""
    candidate = trial.candidate
    timing = timings[candidate.name]
    return BenchRow(
        candidate.name,
        candidate.kind,
        timing,
        timing.speedup(timings[plain.candidate.name]),
        trial.macs,
        plain.macs / trial.macs,
        trial.quality,
        trial.accuracy,
        trial.peak_bytes,
        trial.cache_bytes,
        trial.joules,
    )
