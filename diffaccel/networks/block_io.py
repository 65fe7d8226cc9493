"""What a transformer block passes on to the next: its hidden states, alone or together with those of the prompt.

Blocks return `hidden_states`, or `(encoder_hidden_states, hidden_states)` in either order, under the names of their own
inputs. Their return statements tell the order, so that no list of classes has to be kept.
"""

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch


class Streams:
    """Names of what goes through one block, as its `forward` takes and returns it.

    Attributes:
        main: name of the hidden states of what is denoised, the block's first input.
        known: whether every way of the block to return was understood.
    """

    def __init__(self, block: torch.nn.Module) -> None:
        forward = type(block).forward
        self.parameters = inputs_of(forward)
        self.main = self.parameters[0] if self.parameters else ""
        self._tuples: dict[int, tuple[str, ...]] = {}
        self._single = False
        for value in _returned(forward):
            self._learn(value, block)

    @property
    def known(self) -> bool:
        """Whether at least one way to return was understood."""
        return bool(self.main) and (self._single or bool(self._tuples))

    def inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The streams among the inputs of one call."""
        given = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        names = {self.main, *(name for names in self._tuples.values() for name in names)}
        return {name: given[name] for name in names if name in given}

    def entering(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The hidden states of what is denoised among the inputs of one call."""
        return self.inputs(args, kwargs)[self.main]

    def leaving(self, output: Any) -> Any:
        """Those in a block's output."""
        return output if isinstance(output, torch.Tensor) else output[self.names(output).index(self.main)]

    def names(self, output: Any) -> tuple[str, ...]:
        """For each element of a block's output, the input that it replaces.

        Raises:
            RuntimeError: if the block returned something that its return statements do not announce.
        """
        if isinstance(output, torch.Tensor):
            return (self.main,)
        names = self._tuples.get(len(output)) if isinstance(output, tuple | list) else None
        if names is None:
            raise RuntimeError(
                f"a transformer block returned {type(output).__name__}, of which it is not known what goes on to the "
                "next block: this network cannot skip blocks; use IntervalCache, which works within them"
            )
        return names

    def passed_on(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The inputs of one call as the block would return them, had it changed nothing."""
        given = self.inputs(args, kwargs)
        if kwargs.get("return_dict") is False:
            return (given[self.main],)
        names = max(self._tuples.values(), key=len, default=())
        return tuple(given[name] for name in names) if names else given[self.main]

    def _learn(self, value: ast.expr, block: torch.nn.Module) -> None:
        """Take note of one returned expression."""
        if isinstance(value, ast.Tuple):
            names = tuple(item.id for item in value.elts if isinstance(item, ast.Name) and item.id in self.parameters)
            if len(names) == len(value.elts):
                self._tuples[len(names)] = names
        elif (inner := _delegate(value, block)) is not None:
            streams = Streams(inner)
            self._single |= streams._single
            self._tuples.update(streams._tuples)
        else:
            self._single = True


@lru_cache(maxsize=256)
def _returned(function: Any) -> tuple[ast.expr, ...]:
    """The expressions that a function returns, without those of functions inside it."""
    tree = _tree(function)
    found: list[ast.expr] = []
    todo: list[ast.AST] = [] if tree is None else [*ast.iter_child_nodes(tree)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            found.append(node.value)
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)
    return tuple(found)


@lru_cache(maxsize=256)
def called_twice(function: Any) -> frozenset[str]:
    """Names of modules that a `forward` calls in two places one after the other, as `self.name(...)`."""
    counts = Counter(_called(_tree(function)))
    return frozenset(name for name, count in counts.items() if count > 1)


def _called(node: ast.AST | None) -> Iterator[str]:
    """Names of modules that some code calls; of the two branches of a condition, the one that calls more."""
    if node is None:
        return
    if isinstance(node, ast.If):
        yield from _called(node.test)
        branches = [list(_called(ast.Module(part, []))) for part in (node.body, node.orelse)]
        yield from (Counter(branches[0]) | Counter(branches[1])).elements()
        return
    if (name := _called_on_self(node)) is not None:
        yield name
    for child in ast.iter_child_nodes(node):
        yield from _called(child)


@lru_cache(maxsize=256)
def inputs_of(function: Any) -> tuple[str, ...]:
    """Names of the inputs of a `forward`, without `self`."""
    return tuple(inspect.signature(function).parameters)[1:]


def _tree(function: Any) -> ast.stmt | None:
    """The syntax tree of a function; None where there is no source code, as in a frozen application."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    except (OSError, TypeError):
        return None


def _delegate(value: ast.expr, block: torch.nn.Module) -> torch.nn.Module | None:
    """The block inside a block, where `forward` returns what `self.block(...)` does."""
    inner = getattr(block, "block", None) if _called_on_self(value) == "block" else None
    return inner if isinstance(inner, torch.nn.Module) else None


def _called_on_self(node: ast.AST) -> str | None:
    """The name, where some code is a call of `self.name`."""
    called = node.func if isinstance(node, ast.Call) else None
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "self":
        return called.attr
    return None
