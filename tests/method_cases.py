"""The shared table: every method, on every kind of network, with what it must equal.

A new method adds one `Case`, a new family one network to `tiny_networks`; the checks are in `test_every_method.py`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from token_reference import merged, pooled
from torch.utils._pytree import tree_map

from diffaccel.methods import (
    DeepCache,
    EncoderPropagation,
    FeatureInheritance,
    Method,
    TextKVCache,
    TGate,
    TokenReduction,
)
from diffaccel.reuse.schedule import Always, Steps

CALLS = 4
COMPUTED = (0, 2)


@dataclass(frozen=True)
class Case:
    """One method in one setting.

    Attributes:
        name: for messages.
        never: the method told to reuse nothing.
        reuse: the method told to compute at the calls of COMPUTED (where it has a schedule).
        replaced: names of the modules whose outputs must be those of the last computed call, given the network.
        computed: calls at which they compute.
        on: class names of networks that it works on.
        inputs: replace the modules' first input, from this channel of dimension 1 on up, rather than their output.
        tokens: "merged" or "pooled" where these modules, attentions, read fewer tokens in every call instead.
    """

    name: str
    never: Method
    reuse: Method
    replaced: Callable[[torch.nn.Module], list[str]]
    computed: tuple[int, ...] = COMPUTED
    on: tuple[str, ...] = ()
    inputs: bool = False
    tokens: str = ""


def last_layers(model: torch.nn.Module) -> list[str]:
    """The second layer of the last up block: what enters it is what DeepCache stores at branch 1."""
    return [f"up_blocks.{len(model.up_blocks) - 1}.resnets.1"]


def named(pattern: str) -> Callable[[torch.nn.Module], list[str]]:
    """Modules whose whole names match."""
    return lambda model: [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]


def cross_attentions(model: torch.nn.Module) -> list[str]:
    """Attentions whose keys come from elsewhere."""
    return [name for name, module in model.named_modules() if getattr(module, "is_cross_attention", False)]


def picture_attentions(model: torch.nn.Module) -> list[str]:
    """Self-attentions at full resolution, 64 tokens in the tiny networks, that do not look from frame to frame."""
    names = [name for name, _ in model.named_modules() if name.endswith(".attn1")]
    return [name for name in names if not re.search(r"temp|motion|transformer_in|mid_block", name)]


ALL_UNETS = (
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
    "UNet3DConditionModel",
    "I2VGenXLUNet",
)
PROMPTED = tuple(name for name in ALL_UNETS if name != "UNet2DModel")
BLOCKS = r"(down_blocks|up_blocks)\.\d+|mid_block"

CASES = [
    Case(
        "DeepCache",
        DeepCache(interval=1, branch=1),
        DeepCache(branch=1, schedule=Steps(COMPUTED)),
        last_layers,
        on=ALL_UNETS,
        inputs=True,
    ),
    Case(
        "FeatureInheritance, blocks",
        FeatureInheritance("block", depth=0, interval=1),
        FeatureInheritance("block", depth=0, schedule=Steps(COMPUTED)),
        named(BLOCKS),
        on=ALL_UNETS,
    ),
    Case(
        "FeatureInheritance, layers",
        FeatureInheritance("layer", depth=0, interval=1),
        FeatureInheritance("layer", depth=0, schedule=Steps(COMPUTED)),
        named(rf"({BLOCKS})\.(resnets|temp_convs|attentions|temp_attentions|motion_modules)\.\d+"),
        on=ALL_UNETS,
    ),
    Case(
        "FeatureInheritance, units",
        FeatureInheritance("unit", depth=0, interval=1),
        FeatureInheritance("unit", depth=0, schedule=Steps(COMPUTED)),
        named(rf"({BLOCKS})\..*\.(attn1|attn2|ff)"),
        on=PROMPTED,
    ),
    Case(
        "EncoderPropagation",
        EncoderPropagation(Always()),
        EncoderPropagation(Steps(COMPUTED)),
        named(r"conv_in|transformer_in|mid_block|down_blocks\.\d+"),
        on=ALL_UNETS,
    ),
    Case("TextKVCache", TextKVCache(), TextKVCache(), lambda model: [], on=PROMPTED),
    Case(
        "TGate",
        TGate(gate=CALLS, self_interval=1),
        TGate(gate=2, self_interval=1),
        cross_attentions,
        computed=(0, 1),
        on=PROMPTED,
    ),
    Case(
        "TokenReduction, merged",
        TokenReduction(ratio=0, min_tokens=64),
        TokenReduction(min_tokens=64),
        picture_attentions,
        on=PROMPTED,
        tokens="merged",
    ),
    Case(
        "TokenReduction, pooled",
        TokenReduction("pool", ratio=0, min_tokens=64),
        TokenReduction("pool", min_tokens=64),
        picture_attentions,
        on=PROMPTED,
        tokens="pooled",
    ),
]


def reference(model: torch.nn.Module, case: Case) -> AbstractContextManager[Callable[[int], None]]:
    """What a method must give; the function that it yields is told the index of the next call."""
    if case.tokens == "merged":
        return merged(model, case.replaced(model))
    return fewer_keys(model, case) if case.tokens else stored_outputs(model, case)


@contextmanager
def fewer_keys(model: torch.nn.Module, case: Case) -> Iterator[Callable[[int], None]]:
    """Keys and values are pooled in every call."""
    with pooled(model, case.replaced(model)):
        yield lambda index: None


@contextmanager
def stored_outputs(model: torch.nn.Module, case: Case) -> Iterator[Callable[[int], None]]:
    """The reference: everything runs in every call, but on a reused call the named modules' outputs are overridden.

    Built on torch's forward hooks.
    """
    stored: dict[str, Any] = {}
    computes = [True]

    def after(name: str) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
            if computes[0]:
                stored[name] = tree_map(torch.clone, output)
            return tree_map(torch.clone, stored[name])

        return hook

    def before(name: str) -> Callable[..., Any]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            key = next((key for key in ("input_tensor", "hidden_states") if key in kwargs), None)
            hidden = args[0] if key is None else kwargs[key]
            half = hidden.shape[1] // 2  # what came up, then the skip connection
            if computes[0]:
                stored[name] = hidden[:, :half].clone()
            hidden = torch.cat([stored[name], hidden[:, half:]], dim=1)
            return ((hidden, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: hidden})

        return hook

    names = case.replaced(model)
    modules = [(name, model.get_submodule(name)) for name in names]
    if case.inputs:
        handles = [module.register_forward_pre_hook(before(name), with_kwargs=True) for name, module in modules]
    else:
        handles = [module.register_forward_hook(after(name)) for name, module in modules]
    try:
        yield lambda index: computes.__setitem__(0, index in case.computed)
    finally:
        for handle in handles:
            handle.remove()
