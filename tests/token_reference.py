"""What fewer tokens must give, without our hooks: the authors' own matching (tomesd), and means written out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tomesd.merge
import torch


def square(tokens: int) -> int:
    return round(tokens**0.5)


def means(x: torch.Tensor) -> torch.Tensor:
    """Tokens (rows, side * side, channels) of a square, each 2 x 2 of them as one; at odd edges of fewer."""
    side, columns = square(x.shape[1]), []
    for i in range(0, side, 2):
        for j in range(0, side, 2):
            near = [y * side + z for y in range(i, min(i + 2, side)) for z in range(j, min(j + 2, side))]
            columns.append(sum(x[:, k] for k in near) / len(near))
    return torch.stack(columns, dim=1)


@contextmanager
def pooled(model: torch.nn.Module, names: list[str]) -> Iterator[None]:
    """Keys and values of some attentions are made of means."""
    modules = [model.get_submodule(f"{name}.{kind}") for name in names for kind in ("to_k", "to_v")]
    handles = [module.register_forward_pre_hook(lambda _, args: (means(args[0]), *args[1:])) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def merged(model: torch.nn.Module, names: list[str], ratio: float = 0.5) -> Iterator[Callable[[int], None]]:
    """Tokens of some attentions are merged by tomesd. Yields a function that tells the index of the next call."""
    step, seen, undo, handles = [0], {}, {}, []

    def block(name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    def before(name: str, slot: int) -> Callable[..., Any]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            metric = seen[name]
            side, generator = square(metric.shape[1]), torch.Generator().manual_seed((step[0] << 16) + slot)
            merge, undo[name] = tomesd.merge.bipartite_soft_matching_random2d(
                metric, side, side, 2, 2, int(metric.shape[1] * ratio), generator=generator
            )
            return (merge(args[0]), *args[1:]), kwargs

        return hook

    def after(name: str) -> Callable[..., Any]:
        return lambda _, args, output: undo[name](output)

    for slot, name in enumerate(names):
        parent, attention = model.get_submodule(name.rpartition(".")[0]), model.get_submodule(name)
        handles.append(parent.register_forward_pre_hook(block(name), with_kwargs=True))
        handles.append(attention.register_forward_pre_hook(before(name, slot), with_kwargs=True))
        handles.append(attention.register_forward_hook(after(name)))
    try:
        yield lambda index: step.__setitem__(0, index)
    finally:
        for handle in handles:
            handle.remove()
