"""Tensors in any structure: what modules are given and return, and what is stored of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors of a tree."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """`tree` with `function` applied to its tensors."""
    if isinstance(tree, torch.Tensor):  # most are, and walking a tree takes longer than many a function
        return function(tree)
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, tree)


def placeholder(output: Any) -> Any:
    """`output` with every tensor replaced by one zero, expanded to the tensor's shape: it takes no storage."""
    return map_tensors(lambda x: x.new_zeros(()).expand(x.shape), output)


def copied(output: Any) -> Any:
    """`output` with every tensor cloned."""
    return map_tensors(torch.clone, output)


def detached(output: Any) -> Any:
    """`output` outside of autograd's graph."""
    return map_tensors(lambda x: x.detach() if x.requires_grad else x, output)
