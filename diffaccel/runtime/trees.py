"""Tensors in any structure: what modules are given and return, and what is stored of it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors of a tree."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """`tree` with `function` applied to its tensors; those that were one stay one."""
    if isinstance(tree, torch.Tensor):  # most are, and walking a tree takes longer than many a function
        return function(tree)
    leaves, form = tree_flatten(tree)
    mapped = [function(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return tree_unflatten([mapped[place] for place in same_leaves(leaves)], form)


def same_leaves(leaves: Sequence[Any]) -> list[int]:
    """For each leaf the place of the first one that is the same object.

    What leaves a block of a UNet is its last skip feature, too, and what is added to it in place is meant for both.
    """
    return [next(i for i, other in enumerate(leaves) if other is leaf) for leaf in leaves]


def placeholder(output: Any) -> Any:
    """`output` with every tensor replaced by one zero, expanded to the tensor's shape: it takes no storage."""
    return map_tensors(lambda x: x.new_zeros(()).expand(x.shape), output)


def copied(output: Any, places: Sequence[int] = ()) -> Any:
    """`output` with every tensor cloned; with the leaves at these places, where given, in the place of its own."""
    clones = map_tensors(torch.clone, output)
    if len(places) < 2:  # there is nothing to put in another's place
        return clones
    leaves, form = tree_flatten(clones)
    return tree_unflatten([leaves[place] for place in places], form)


def detached(output: Any) -> Any:
    """`output` outside of autograd's graph."""
    return map_tensors(lambda x: x.detach() if x.requires_grad else x, output)
