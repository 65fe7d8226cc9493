"""Fit a light UNet to its teacher layer by layer, by least squares (channel pruning; He et al., arXiv 1707.06168).

A layer's weights are solved for what it is really given, so that it makes up for what the layers before it got wrong.
Where its output is added to what comes along beside it, the sum is what must be right. One pass through both networks
fits all layers; distillation starts from there instead of from a network that predicts nothing yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

POSITIONS = 12_000  # samples of a layer's input and output that its weights are solved from
RIDGE = 1e-3  # of the inputs' mean square: how strongly weights are held to those that they start from

Kept = Callable[[str, torch.Tensor], torch.Tensor]
"""Gives the channels of a teacher's tensor that the light network has, by the name of the module that it belongs to."""
SUMS = ("ResnetBlock2D", "Transformer2DModel", "BasicTransformerBlock")  # add what they compute to what they are given


class Seen:
    """What matters of a network's last call, by module: outputs of layers and sums, inputs of norms and sums.

    Args:
        network: the network.
        kept: the channels to keep.
        layers: names of layers end so whose outputs are kept.
    """

    def __init__(self, network: nn.Module, kept: Kept = lambda _, x: x, layers: str = "") -> None:
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self._kept, self._handles = kept, []
        for name, module in network.named_modules():
            is_sum = type(module).__name__ in SUMS
            if is_sum or name.endswith(("norm1", "norm2", "norm3")):
                self._handles.append(module.register_forward_pre_hook(self._before(name)))
            if is_sum or (isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(layers)):
                self._handles.append(module.register_forward_hook(self._after(name)))

    def _before(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.inputs[name] = self._kept(name, args[0])

        return hook

    def _after(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self.outputs[name] = self._kept(name, output if isinstance(output, torch.Tensor) else output[0])

        return hook

    def close(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()


def target_of(name: str, teacher: Seen, light: Seen, *, shortcut: bool) -> torch.Tensor:
    """What a layer of the light network should give.

    Args:
        name: of the layer, a Linear or Conv2d.
        teacher, light: what their modules were given and gave, in the channels that both have.
        shortcut: whether a residual block has a convolution beside it, which runs last and mends the sum.
    """
    parent, _, leaf = name.rpartition(".")
    if leaf == "conv2" and not shortcut:
        return teacher.outputs[parent] - light.inputs[parent]
    if leaf == "conv_shortcut":
        return teacher.outputs[parent] - light.outputs[f"{parent}.conv2"]
    if leaf == "proj_out":
        return teacher.outputs[parent] - light.inputs[parent]
    for inner, before, after in (("attn1.to_out.0", "norm1", "norm2"), ("attn2.to_out.0", "norm2", "norm3")):
        if name.endswith(inner):
            block = name.removesuffix(inner)
            return teacher.inputs[f"{block}{after}"] - light.inputs[f"{block}{before}"]
    if name.endswith("ff.net.2"):
        block = name.removesuffix(".ff.net.2")
        return teacher.outputs[block] - light.inputs[f"{block}.norm3"]
    return teacher.outputs[name]


def columns(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a layer multiplies its weights with, (positions, inputs of one output)."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # (n, C k k, positions)
        return patches.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


def solve(layer: nn.Linear | nn.Conv2d, x: torch.Tensor, y: torch.Tensor, rng: torch.Generator) -> None:
    """Replace a layer's weights by those that give (positions, outputs) `y` of (positions, inputs) `x` best."""
    chosen = torch.randperm(len(x), generator=rng)[:POSITIONS]
    x, y = x[chosen], y[chosen]
    weight = layer.weight.flatten(1).T.double()  # (inputs, outputs)
    shift = torch.zeros_like(y[0]) if layer.bias is None else y.mean(0)
    center = torch.zeros_like(x[0]) if layer.bias is None else x.mean(0)
    inputs, left = x - center, (y - shift) - (x - center) @ weight.float()
    gram = (inputs.T @ inputs).double()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-9)
    weight = weight + torch.linalg.solve(gram, (inputs.T @ left).double())
    layer.weight.copy_(weight.T.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(shift - center @ weight.float())


@torch.no_grad()
def fit_layers(light: nn.Module, teacher: nn.Module, kept: Kept, *inputs: torch.Tensor, seed: int = 0) -> None:
    """Fit all linear layers and convolutions of a light network, in the order in which they run.

    Args:
        light: whose modules have the teacher's names.
        teacher: left as it is.
        kept: see `Kept`.
        inputs: of one call of both.
        seed: of the positions that are drawn.
    """
    rng = torch.Generator().manual_seed(seed)
    theirs = Seen(teacher, kept)
    teacher(*inputs)
    theirs.close()
    own = Seen(light, layers="conv2")

    def before(name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...]) -> None:
            block = light.get_submodule(name.rpartition(".")[0])
            shortcut = getattr(block, "conv_shortcut", None) is not None
            y = target_of(name, theirs, own, shortcut=shortcut)
            if isinstance(layer, nn.Conv2d):
                y = y.flatten(2).transpose(1, 2)  # (n, positions, outputs)
            solve(layer, columns(layer, args[0]), y.flatten(0, -2), rng)

        return hook

    layers = [(n, m) for n, m in light.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_pre_hook(before(name)) for name, layer in layers]
    light(*inputs)
    for handle in handles:
        handle.remove()
    own.close()
