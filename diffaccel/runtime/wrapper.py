"""A wrapper changes the inputs of whole network calls, and their outputs in turn: guidance without negative rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch

from diffaccel.networks.inputs import WITHOUT_ROWS, Inputs
from diffaccel.runtime.run_clock import RunClock
from diffaccel.runtime.state import Context, map_tensors

Network = Callable[[Inputs], Any]
Kept = dict[int, tuple[torch.Tensor, torch.Tensor]]  # by id: a tensor, and its half


class Wrapper(ABC):
    """Stands between the pipeline and the denoiser. What it remembers of a run it keeps in `Context.memory`.

    Attributes:
        order: wrappers of higher order are further out.
    """

    order: ClassVar[int] = 0

    def start_run(self, clock: RunClock) -> None:  # noqa: B027
        """Raise ValueError if the run that starts cannot be wrapped."""

    @abstractmethod
    def around(self, context: Context, network: Network, inputs: Inputs) -> Any:
        """The output of one network call, made by calling `network` as often as needed, with other inputs if needed."""


def positive_rows(context: Context, inputs: Inputs) -> Inputs:
    """The second half of guided inputs, the positive prompts. A tensor has rows if its first dimension is the sample's.

    For a constant input that was given in the last call, too, the same object comes out as then, so that what is cached
    for a prompt stays valid.
    """
    rows = inputs.sample.shape[0]
    before: Kept = context.memory.get(positive_rows, {})
    kept: Kept = {}

    def half(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[rows // 2 :] if tensor.dim() > 0 and tensor.shape[0] == rows else tensor

    def kept_half(tensor: torch.Tensor) -> torch.Tensor:
        known = before.get(id(tensor))
        kept[id(tensor)] = (tensor, half(tensor)) if known is None else known
        return kept[id(tensor)][1]

    values = {
        name: value if name in WITHOUT_ROWS else map_tensors(kept_half if inputs.is_constant(name) else half, value)
        for name, value in inputs.values.items()
    }
    context.memory[positive_rows] = kept
    return replace(inputs, values=values, guided=False)


def map_output(function: Callable[[torch.Tensor], torch.Tensor], output: Any) -> Any:
    """A network's output, tuple or diffusers' output class, with `function` applied to the prediction."""
    if isinstance(output, tuple):
        return (function(output[0]), *output[1:])
    if isinstance(output, torch.Tensor):
        return function(output)
    return type(output)(**{**output, next(iter(output)): function(next(iter(output.values())))})
