"""A wrapper changes the inputs of whole network calls, and their outputs in turn: guidance without negative rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

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


def prediction(output: Any) -> Any:
    """What a network predicts: the first value of its output."""
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, tuple) else next(iter(output.values()))
