"""Block and unit caches without hooks: modules of a copy of the network are swapped for ones that store and add.

Written apart from the package: names of units and the order in which blocks return are listed, not found; residuals are
kept for each block on its own; rows are run one network each.
"""

import copy
import inspect
from collections.abc import Callable
from math import factorial
from typing import Any

import torch

PROMPT_FIRST = {
    "AuraFlowJointTransformerBlock",
    "BriaTransformerBlock",
    "ChromaTransformerBlock",
    "Flux2TransformerBlock",
    "FluxSingleTransformerBlock",
    "FluxTransformerBlock",
    "JointTransformerBlock",
    "LongCatImageSingleTransformerBlock",
    "LongCatImageTransformerBlock",
    "OvisImageTransformerBlock",
    "OvisImageSingleTransformerBlock",
    "QwenImageTransformerBlock",
}
SHARED = {("CogView4TransformerBlock", "ff")}  # called once for the picture and once for the prompt
UNITS = {
    "attn": "self_attention",
    "attn1": "self_attention",
    "attention": "self_attention",
    "attn2": "cross_attention",
    "ff": "feed_forward",
    "ff_context": "feed_forward",
    "ffn": "feed_forward",
    "feed_forward": "feed_forward",
    "img_mlp": "feed_forward",
    "txt_mlp": "feed_forward",
}


class Swapped(torch.nn.Module):
    """In the place of `module`: calls `run(module, args, kwargs)`."""

    def __init__(self, module: torch.nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.module, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def swap(model: torch.nn.Module, name: str, run: Callable[..., Any]) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, Swapped(model.get_submodule(name), run))


def extrapolate(history: list[tuple[int, torch.Tensor]], order: int, step: int) -> torch.Tensor:
    """Newton-free Taylor forecast from (step, value) pairs, oldest first, with differences written out by recursion."""

    def derivative(count: int, at: int) -> torch.Tensor:
        if count == 0:
            return history[at][1]
        return (derivative(count - 1, at) - derivative(count - 1, at - 1)) / (history[at][0] - history[at - 1][0])

    last = len(history) - 1
    ahead = step - history[last][0]
    return sum(derivative(j, last) * ahead**j / factorial(j) for j in range(min(order, last) + 1))


class ReferenceBlocks:
    """Runs a copy of a network on one row (or all together), skipping blocks by the residual of each.

    `decide(step, change, age)` says whether the call computes; `skipped(step)` says which blocks a reuse skips.
    """

    def __init__(self, model: Any, blocks: list[str], front: int, skipped: Any, decide: Any, order: int = 0) -> None:
        self.model = copy.deepcopy(model)
        self.blocks, self.front, self.skipped, self.decide, self.order = blocks, front, skipped, decide, order
        self.residuals: dict[int, list[list[tuple[int, torch.Tensor]]]] = {}
        self.reference: Any = None
        self.step = self.age = 0
        self.changes: list[float] = []
        self.computed: list[bool] = []
        for index, name in enumerate(blocks):
            swap(self.model, name, lambda module, args, kwargs, index=index: self.block(index, module, args, kwargs))

    def __call__(self, **inputs: Any) -> Any:
        if not self.front:
            self.compute = self.decide(self.step, 0.0, self.age)
        with torch.no_grad():
            output = self.model(**inputs).sample
        self.age = 0 if self.compute else self.age + 1
        self.computed.append(self.compute)
        self.step += 1
        return output

    def block(self, index: int, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        hidden = given.get("hidden_states", given.get("x")).clone()
        streams = [hidden]
        if "encoder_hidden_states" in given:
            streams.append(given["encoder_hidden_states"])
        if type(module).__name__ in PROMPT_FIRST:
            streams.reverse()
        place = index - self.front
        if place < 0 or self.compute or index not in self.skipped(self.step):
            output = module(*args, **kwargs)
            values = [output] if isinstance(output, torch.Tensor) else list(output)
            if index == 0:
                self.arrived = hidden
            if place == -1:
                self.judge(values[0 if len(values) == 1 or type(module).__name__ not in PROMPT_FIRST else 1])
            kept = self.residuals.setdefault(index, [[] for _ in values])
            if place >= 0 and self.compute:
                for past, value, stream in zip(kept, values, streams, strict=False):
                    past.append((self.step, None if value is None else value - stream))
            return output
        added = self.residuals[index]
        values = [
            None if past[-1][1] is None else stream + self.expected(past)
            for past, stream in zip(added, streams, strict=False)
        ]
        return values[0] if len(added) == 1 else tuple(values)

    def expected(self, past: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
        return extrapolate(past, self.order, self.step)

    def judge(self, hidden: torch.Tensor) -> None:
        residual = hidden - self.arrived
        change = float("inf")
        if self.reference is not None:
            change = float((residual - self.reference).abs().mean() / self.reference.abs().mean())
        self.changes.append(change)
        self.compute = self.decide(self.step, change, self.age)
        if self.compute:
            self.reference = residual


class ReferenceUnits:
    """Runs a copy of a network, replaying its attentions and feed-forward networks; `decide(step, kind)` computes."""

    def __init__(self, model: Any, blocks: list[str], decide: Any, order: int = 0) -> None:
        self.model = copy.deepcopy(model)
        self.decide, self.order, self.step = decide, order, 0
        self.kept: dict[str, list[list[tuple[int, torch.Tensor]]]] = {}
        for block in blocks:
            children = [name for name, _ in self.model.get_submodule(block).named_children()]
            if "proj_mlp" in children:
                self.put(f"{block}.proj_out", "parallel")
                continue
            for child in children:
                shared = (type(self.model.get_submodule(block)).__name__, child) in SHARED
                if child in UNITS and not shared:
                    self.put(
                        f"{block}.{child}",
                        "self_attention" if child == "attn2" and "attn" in children else UNITS[child],
                    )

    def put(self, name: str, kind: str) -> None:
        swap(self.model, name, lambda module, args, kwargs: self.unit(name, kind, module, args, kwargs))

    def __call__(self, **inputs: Any) -> Any:
        with torch.no_grad():
            output = self.model(**inputs).sample
        self.step += 1
        return output

    def unit(self, name: str, kind: str, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        if self.decide(self.step, kind):
            output = module(*args, **kwargs)
            values = [output] if isinstance(output, torch.Tensor) else list(output)
            for past, value in zip(self.kept.setdefault(name, [[] for _ in values]), values, strict=True):
                past.append((self.step, value))
            return output
        values = [extrapolate(past, self.order, self.step) for past in self.kept[name]]
        return values[0] if len(values) == 1 else tuple(values)
