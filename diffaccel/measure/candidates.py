"""What can be compared: the plain pipeline, methods of this package, fewer steps, and installed peers."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

from diffaccel._diffusers import first_block_cache
from diffaccel.attach.calibrate import calibrate
from diffaccel.attach.handle import Handle, accelerate
from diffaccel.config.words import counted
from diffaccel.measure.workload import Workload
from diffaccel.methods import CalibratedCache, Calibration, Method

Attach = Callable[[Any], AbstractContextManager[Any]]
CALIBRATION = 4  # most prompts that calibrate
WARMUP = 1  # calls that cache-dit computes first: as many as the block caches here


@dataclass(frozen=True)
class Candidate:
    """One way to run a pipeline.

    Attributes:
        name: for tables.
        kind: "plain", "diffaccel", "steps" or "peer".
        attach: puts it on a pipeline and takes it off again; yields a `Handle` where it is a method of this package.
        changes: settings of the run that differ.
    """

    name: str
    kind: str
    attach: Attach
    changes: Mapping[str, Any] = field(default_factory=dict)


PLAIN = Candidate("plain", "plain", lambda _: nullcontext())


def ours(methods: Sequence[Method], name: str | None = None) -> Candidate:
    """Some methods of this package together."""
    label = name or " + ".join(method.to_text() for method in methods)
    return Candidate(label, "diffaccel", lambda pipe: accelerate(pipe, *methods))


def calibrated(workload: Workload, alpha: float) -> Candidate:
    """`CalibratedCache`, calibrated on a workload's first prompts when it is put on a pipeline for the first time."""
    known: list[Calibration] = []

    def attach(pipe: Any) -> Handle:
        if not known:
            settings = workload.arguments(pipe) | {"output_type": "latent"}
            found = calibrate(pipe, workload.prompts[:CALIBRATION], alpha, seed=workload.seeds[0], **settings)
            assert isinstance(found, Calibration)
            known.append(found)
        return accelerate(pipe, CalibratedCache(known[0]))

    return Candidate(f"calibratedcache, alpha {alpha:g}", "diffaccel", attach)


def fewer_steps(steps: int) -> Candidate:
    """The plain pipeline in fewer steps, the baseline that caching must beat."""
    return Candidate(counted(steps, "step"), "steps", lambda _: nullcontext(), {"num_inference_steps": steps})


def peers(pipe: Any) -> list[Candidate]:
    """The installed packages that are made for such a pipeline, in usual settings, and diffusers' own cache."""
    if getattr(pipe, "transformer", None) is None:
        rows = {
            "DeepCache": [
                Candidate(f"DeepCache 1:{n}", "peer", partial(deepcache_package, interval=n)) for n in (2, 3, 5)
            ],
            "tomesd": [Candidate("tomesd 0.5", "peer", _tomesd)],
        }
    else:
        rows = {
            "cache_dit": [
                Candidate(f"cache-dit {t:g}", "peer", partial(cache_dit, threshold=t, warmup=WARMUP))
                for t in (0.1, 0.3)
            ],
            "diffusers": [Candidate(f"diffusers FirstBlockCache {t:g}", "peer", _first_block(t)) for t in (0.1, 0.3)],
        }
    return [candidate for package, known in rows.items() if find_spec(package) for candidate in known]


@contextmanager
def deepcache_package(pipe: Any, interval: int) -> Iterator[Any]:
    """The authors' DeepCache package. Yields its helper, which holds what is stored."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        yield helper
    finally:
        helper.disable()


@contextmanager
def _tomesd(pipe: Any) -> Iterator[None]:
    """Token merging of half of the tokens, at the highest resolution at which the UNet has attention."""
    import tomesd

    level = next(i for i, name in enumerate(pipe.unet.config.down_block_types) if "Attn" in name)
    tomesd.apply_patch(pipe, ratio=0.5, max_downsample=2**level)
    try:
        yield
    finally:
        tomesd.remove_patch(pipe)


@contextmanager
def cache_dit(pipe: Any, threshold: float, warmup: int, **settings: Any) -> Iterator[None]:
    """cache-dit's dual-block cache with one front block and none at the back; more `settings` are its own."""
    import cache_dit as package

    config = package.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        residual_diff_threshold=threshold,
        max_warmup_steps=warmup,
        **settings,
    )
    before = {module: (dict(vars(module)), dict(module._modules)) for module in pipe.transformer.modules()}
    handlers = logging.getLogger("CACHE_DIT").handlers  # of all of its loggers, which tell whatever they do
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.ERROR)
    package.enable_cache(pipe, cache_config=config)
    try:
        yield
    finally:
        package.disable_cache(pipe)
        for module, (values, children) in before.items():  # on FLUX it leaves a forward, and blocks in another order
            for name in vars(module).keys() - values.keys():
                delattr(module, name)
            vars(module).update(values)
            module._modules.clear()
            module._modules.update(children)
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _first_block(threshold: float) -> Attach:
    """The first-block cache of diffusers."""
    return lambda pipe: first_block_cache(pipe.transformer, threshold)
