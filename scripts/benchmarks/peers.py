"""What comparisons with other caches share: diffusers' own on any pipeline, and the bytes that a cache stores."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from diffaccel._diffusers import first_block_cache as cache_on

Attach = Callable[[], AbstractContextManager[Any]]  # puts something on a pipeline, and takes it off at the end

os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "warning")


def stored_bytes(tree: Any) -> int:
    """Bytes of the storages of all tensors in a nest of containers, each storage once."""
    leaves = torch.utils._pytree.tree_leaves(tree)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in leaves if torch.is_tensor(x)}
    return sum(storages.values())


def first_block_cache(pipe: Any, threshold: float) -> AbstractContextManager[None]:
    """diffusers' own FirstBlockCache on the denoiser."""
    return cache_on(pipe.transformer if hasattr(pipe, "transformer") else pipe.unet, threshold)
