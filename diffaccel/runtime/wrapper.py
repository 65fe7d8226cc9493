"""A wrapper changes the inputs of whole network calls, and their outputs in turn: guidance without negative rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from diffaccel.networks.layout import UnsupportedModelError
from diffaccel.reuse.ends import NO_ENDS, Ends
from diffaccel.runtime.call import Call
from diffaccel.runtime.memory import Memory

if TYPE_CHECKING:
    from diffaccel.runtime.run import Run

Inner = Callable[[Call], Any]
"""Runs what a wrapper stands around."""


class Wrapper(ABC):
    """Stands between the pipeline and the denoiser. What it remembers of a run it keeps in `Memory.notes`.

    Attributes:
        order: wrappers of higher order are further out.
        reads_roles: whether it has to know which rows see the negative prompt.
        ends: the calls of a run in which it may change anything; in others it only takes note.
        relies_from: the call from which on it needs what the network stored before it; None for none.
    """

    order: ClassVar[int] = 0
    reads_roles: ClassVar[bool] = False
    ends: Ends = NO_ENDS
    relies_from: int | None = None

    def start_run(self, run: "Run", total: int | None) -> None:  # noqa: B027
        """Raise ValueError if the run that starts cannot be wrapped.

        Args:
            run: what is known of it.
            total: network calls that it makes of this network, None if unknown.
        """

    @abstractmethod
    def around(self, call: Call, memory: Memory, network: Inner) -> Any:
        """The output of one network call, made by calling `network` as often as needed, on other calls if needed."""


def within(wrappers: Sequence[Wrapper], memory: Memory, network: Inner) -> Inner:
    """`network` with wrappers around it, the last one outermost."""
    for wrapper in wrappers:
        network = partial(wrapper.around, memory=memory, network=network)
    return network


def map_output(function: Callable[[torch.Tensor], torch.Tensor], output: Any) -> Any:
    """A network's output, tuple or diffusers' output class, with `function` applied to the prediction."""
    if isinstance(output, tuple):
        return (function(output[0]), *output[1:])
    if isinstance(output, torch.Tensor):
        return function(output)
    return type(output)(**{**output, next(iter(output)): function(next(iter(output.values())))})


def require_one(output: Any, name: str) -> None:
    """Refuse to answer for a network that predicts several things, such as a video and its sound, with one of them.

    Args:
        output: of the network.
        name: of the method.

    Raises:
        UnsupportedModelError: naming the shapes.
    """
    values = output if isinstance(output, tuple) else output.values() if isinstance(output, Mapping) else (output,)
    shapes = [tuple(v.shape) for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v.dim() > 2]
    if len(shapes) > 1:
        raise UnsupportedModelError(
            f"{name} answers for the network with one prediction, and this network makes several, of shapes "
            f"{', '.join(map(str, shapes))}: use a method that works within it, such as BlockCache"
        )


def prediction(output: Any) -> Any:
    """What a network predicts: the first value of its output."""
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, tuple) else next(iter(output.values()))
