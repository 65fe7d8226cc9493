"""Other packages' caches on a pipeline: how each is put on, taken off and reset, and the bytes it stores."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from diffaccel._diffusers import first_block_cache as cache_on

Attach = Callable[[], AbstractContextManager[Any]]  # puts something on a pipeline, and takes it off at the end

os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "warning")


@contextmanager
def deepcache_package(pipe: Any, interval: int, branch: int = 0) -> Iterator[Any]:
    """The authors' DeepCache 0.1.1. Yields its helper, which holds what is stored."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        yield helper
    finally:
        helper.disable()


def stored_bytes(tree: Any) -> int:
    """Bytes of the storages of all tensors in a nest of containers, each storage once."""
    leaves = torch.utils._pytree.tree_leaves(tree)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in leaves if torch.is_tensor(x)}
    return sum(storages.values())


def first_block_cache(pipe: Any, threshold: float) -> AbstractContextManager[None]:
    """diffusers' own FirstBlockCache on the denoiser."""
    return cache_on(pipe.transformer if hasattr(pipe, "transformer") else pipe.unet, threshold)


@contextmanager
def cache_dit(pipe: Any, threshold: float, steps: int, warmup: int) -> Iterator[None]:
    """cache-dit's dual-block cache with one front block and none at the back."""
    import cache_dit as package

    config = package.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=warmup,
        num_inference_steps=steps,
    )  # fmt: skip
    package.enable_cache(pipe, cache_config=config)
    try:
        yield
    finally:
        package.disable_cache(pipe)
