"""What a cache costs in quality, always beside the plain pipeline given as much time: fewer steps."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from typing import Any

import torch
from benchmarks.peers import Attach, first_block_cache
from benchmarks.tables import FLOOR, Tables

from diffaccel import (
    BlockCache,
    CalibratedCache,
    DeepCache,
    DeltaCache,
    EncoderPropagation,
    FeatureInheritance,
    Handle,
    IntervalCache,
    Report,
    ResidualGuidance,
    Taylor,
    TextKVCache,
    TGate,
    accelerate,
    calibrate,
)
from diffaccel.measure import Judge, Timing, captions, compare, interleaved
from diffaccel.measure.candidates import cache_dit, deepcache_package
from diffaccel.methods import Method
from diffaccel.models import load
from diffaccel.sampling.schedulers import sampler_named

BATCH = 4  # pictures at a time
OTHER_SEED = 500_000  # of the first picture of those that share the prompts alone
GUIDANCE = 2.0
OWN = {"emoji-sd": {}, "emoji-dit": {"use_resolution_binning": False, "clean_caption": False}}
SPEEDS = (1.1, 1.25, 1.5, 1.75, 2, 2.5, 3.5)  # of the runs with fewer steps; a method is held against the nearest
SHOWN_THEN = ("speed", "PSNR", "SSIM", "top-1")


class Run:
    """Draws one batch of captions after the other, again and again, and keeps the pictures of each.

    Args:
        model: name of the pipeline.
        pipe: the pipeline.
        steps: sampling steps.
        batches: captions of each batch.
        attach: what is put on the pipeline meanwhile.
        seed: of the first picture.

    Attributes:
        report: on the last batch, where methods of this package were attached.
    """

    def __init__(
        self, model: str, pipe: Any, steps: int, batches: list[list[str]], attach: Attach, seed: int = 0
    ) -> None:
        self.pipe, self.attach, self.seed = pipe, attach, seed
        self.settings = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "output_type": "pt", **OWN[model]}
        self._next = cycle(enumerate(batches))
        self.pictures: dict[int, torch.Tensor] = {}
        self.report: Report | None = None

    def __call__(self) -> None:
        """Draw the next batch; every picture has the noise that its place gives it."""
        index, prompts = next(self._next)
        generators = [torch.Generator().manual_seed(self.seed + 1000 * index + i) for i, _ in enumerate(prompts)]
        with self.attach() as handle:
            self.pictures[index] = self.pipe(prompts, generator=generators, **self.settings).images
        self.report = handle.report() if isinstance(handle, Handle) else None

    def all(self) -> torch.Tensor:
        """Pictures of all batches in order, (n, 3, 128, 128)."""
        return torch.cat([self.pictures[i] for i in sorted(self.pictures)])


def methods_for(model: str, pipe: Any, steps: int) -> dict[str, tuple[Method, ...]]:
    """The methods to measure."""
    if model == "emoji-sd":
        return {
            "TextKVCache": (TextKVCache(),),
            "DeepCache(2)": (DeepCache(interval=2),),
            "DeepCache(3)": (DeepCache(interval=3),),
            "DeepCache(5)": (DeepCache(interval=5),),
            "DeepCache(3), branch 3": (DeepCache(interval=3, branch=3),),
            "DeepCache(2), Taylor(1)": (DeepCache(interval=2, forecast=Taylor(1)),),
            "DeepCache(3), Taylor(1)": (DeepCache(interval=3, forecast=Taylor(1)),),
            "FeatureInheritance(layer, 2)": (FeatureInheritance("layer", interval=2),),
            "EncoderPropagation": (EncoderPropagation(),),
            "TGate(half)": (TGate(gate=steps // 2),),
            "DeepCache(3) + TGate + TextKV": (DeepCache(interval=3), TGate(gate=steps // 2), TextKVCache()),
            "ResidualGuidance": (ResidualGuidance(),),
        }
    calibration = calibrate(pipe, list(captions()[:4]), 0.15, num_inference_steps=steps, **_quiet(GUIDANCE))
    return {
        "TextKVCache": (TextKVCache(),),
        "BlockCache(0.1)": (BlockCache(threshold=0.1, warmup=3),),
        "BlockCache(0.2)": (BlockCache(threshold=0.2, warmup=3),),
        "BlockCache(0.2), Taylor(1)": (BlockCache(threshold=0.2, warmup=3, forecast=Taylor(1)),),
        "IntervalCache(2)": (IntervalCache(interval=2),),
        "IntervalCache(2), Taylor(1)": (IntervalCache(interval=2, forecast=Taylor(1)),),
        "IntervalCache(3), Taylor(1)": (IntervalCache(interval=3, forecast=Taylor(1)),),
        "DeltaCache(2)": (DeltaCache(interval=2),),
        "CalibratedCache(0.15)": (CalibratedCache(calibration),),
    }


def peers_for(model: str, pipe: Any, steps: int) -> dict[str, Attach]:
    """Other packages' caches, in settings like ours."""
    peers: dict[str, Attach] = {"diffusers FirstBlockCache(0.1)": partial(first_block_cache, pipe, 0.1)}
    if model == "emoji-sd":
        return {"DeepCache package(3)": partial(deepcache_package, pipe, 3), **peers}
    return {
        **peers,
        "diffusers FirstBlockCache(0.2)": partial(first_block_cache, pipe, 0.2),
        "cache-dit F1B0(0.1)": partial(cache_dit, pipe, 0.1, 3, num_inference_steps=steps),
        "cache-dit F1B0(0.2)": partial(cache_dit, pipe, 0.2, 3, num_inference_steps=steps),
    }


def _quiet(guidance_scale: float) -> dict[str, Any]:
    """Arguments of a run of emoji-dit whose pictures are not looked at."""
    return {"guidance_scale": guidance_scale, "output_type": "latent", **OWN["emoji-dit"]}


def against_fewer_steps(model: str, rounds: int, steps: int, *, ddim: bool = False) -> Tables:
    """Speed, likeness to the plain pictures and prompt accuracy of each method, and of fewer steps in the same time.

    Args:
        model: a bundled pipeline.
        rounds: interleaved rounds, each of which draws other captions.
        steps: sampling steps of the plain pipeline.
        ddim: sample with DDIM, as most papers on caching do, in place of the pipeline's own second-order sampler.
    """
    pipe, batches = _work(model, rounds, ddim=ddim)
    ways: dict[str, Attach] = {"plain": nullcontext}
    ways |= {name: partial(accelerate, pipe, *methods) for name, methods in methods_for(model, pipe, steps).items()}
    peers, refused = usable(peers_for(model, pipe, steps), partial(Run, model, pipe, steps, batches[:1]))
    make = partial(Run, model, pipe, steps)
    fewer = sorted({max(1, round(steps / speed)) for speed in SPEEDS})
    runs = {name: make(batches, attach) for name, attach in (ways | peers).items()}
    baselines = {f"plain, {n} steps": Run(model, pipe, n, batches, nullcontext) for n in fewer}
    times = interleaved(runs | baselines, rounds, warmup=0)
    rows = _rows(runs | baselines, times, [caption for batch in batches for caption in batch])
    rows[FLOOR] = floor(model, pipe, steps, batches, runs["plain"].all())
    for name in runs.keys() - {"plain"}:
        rows[name] |= _same_time(rows, times, name, list(baselines))
    sampler = type(pipe.scheduler).__name__.removesuffix("Scheduler")
    tables: Tables = {f"{model}, {steps} steps of {sampler}, {rounds * BATCH} pictures, guidance {GUIDANCE}": rows}
    return tables | ({f"{model}: do not run": refused} if refused else {})


def _work(model: str, rounds: int, *, ddim: bool) -> tuple[Any, list[list[str]]]:
    """The pipeline, and the captions of each batch."""
    pipe = load(model)
    if ddim:
        pipe.scheduler = sampler_named("ddim", pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    prompts = captions()[:: len(captions()) // (rounds * BATCH)]
    return pipe, [list(prompts[i * BATCH : (i + 1) * BATCH]) for i in range(rounds)]


def drawn(model: str, pipe: Any, steps: int, batches: list[list[str]], seed: int = 0) -> torch.Tensor:
    """The plain pipeline's pictures of all batches."""
    run = Run(model, pipe, steps, batches, nullcontext, seed)
    for _ in batches:
        run()
    return run.all()


def floor(model: str, pipe: Any, steps: int, batches: list[list[str]], plain: torch.Tensor) -> dict[str, float]:
    """How far pictures of other seeds are from the plain ones."""
    quality = compare(drawn(model, pipe, steps, batches, OTHER_SEED), plain)
    return {"PSNR": quality.psnr, "SSIM": quality.ssim}


def floor_alone(model: str, rounds: int, steps: int, *, ddim: bool) -> dict[str, float]:
    """The floor of `against_fewer_steps`, without all the rest."""
    torch.set_grad_enabled(False)
    pipe, batches = _work(model, rounds, ddim=ddim)
    return floor(model, pipe, steps, batches, drawn(model, pipe, steps, batches))


def usable(peers: Mapping[str, Attach], make: Callable[[Attach], "Run"]) -> tuple[dict[str, Attach], dict[str, Any]]:
    """Those of other packages' caches that run on this network, and what the others raised."""
    runs, refused = {}, {}
    for name, attach in peers.items():
        try:
            make(attach)()
            runs[name] = attach
        except Exception as error:
            refused[name] = {"raised": f"{type(error).__name__}: {str(error)[:100]}"}
    return runs, refused


def _rows(runs: Mapping[str, Run], times: Mapping[str, Timing], truth: list[str]) -> dict[str, dict[str, Any]]:
    """One row of figures for each way."""
    judge, plain, rows = Judge(captions()), runs["plain"].all(), {}
    for name, run in runs.items():
        pictures = run.all()
        quality, accuracy = compare(pictures, plain), judge.accuracy(pictures, truth)
        rows[name] = {
            "speed": times[name].speedup(times["plain"]),
            "PSNR": quality.psnr,
            "SSIM": quality.ssim,
            "top-1": accuracy.top1,
            "top-5": accuracy.top5,
        }
    return rows


def _same_time(
    rows: Mapping[str, Mapping[str, Any]], times: Mapping[str, Timing], name: str, baselines: list[str]
) -> dict[str, Any]:
    """The figures of fewer steps that take about as long."""
    nearest = min(baselines, key=lambda other: abs(times[other].median - times[name].median))
    own = rows[nearest]
    return {"in its time": nearest.removeprefix("plain, "), **{f"{key} then": own[key] for key in SHOWN_THEN}}
