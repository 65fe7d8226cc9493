"""A wrapper changes the inputs of whole network calls, and their outputs in turn: guidance without negative rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch

from diffaccel.clock import RunClock
from diffaccel.signature import Inputs
from diffaccel.state import Context, map_tensors

Network = Callable[[Inputs], Any]


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


class PositiveHalf:
    """Selects the second half of the rows, the positive prompts, and keeps selections of inputs that do not change.

    The same object comes out for the same object that goes in, so that what is cached for a prompt stays valid.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, inputs: Inputs) -> Inputs:
        """The positive rows of guided inputs. A tensor has rows if its first dimension is that of the sample."""
        rows = inputs.sample.shape[0]
        values = map_tensors(lambda x: self._select(x, rows), dict(inputs.values))
        return replace(inputs, values=values, guided=False)

    def _select(self, tensor: torch.Tensor, rows: int) -> torch.Tensor:
        """The positive rows of one input."""
        if tensor.dim() == 0 or tensor.shape[0] != rows:
            return tensor
        kept = self._kept.get(id(tensor))
        if kept is None or kept[0] is not tensor:
            if len(self._kept) > 32:
                self._kept.clear()
            kept = self._kept[id(tensor)] = tensor, tensor[rows // 2 :]
        return kept[1]


def map_output(function: Callable[[torch.Tensor], torch.Tensor], output: Any) -> Any:
    """A network's output, tuple or diffusers' output class, with `function` applied to the prediction."""
    if isinstance(output, tuple):
        return (function(output[0]), *output[1:])
    if isinstance(output, torch.Tensor):
        return function(output)
    return type(output)(**{**output, next(iter(output)): function(next(iter(output.values())))})
