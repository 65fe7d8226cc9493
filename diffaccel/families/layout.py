"""The named parts of one network, in the order in which they run."""

from collections.abc import Callable
from dataclasses import dataclass

from diffaccel.branch import Branch
from diffaccel.signature import Inputs


class UnsupportedModelError(TypeError):
    """The network is of no known family, or lacks a part that a method needs."""


def _never(inputs: Inputs) -> bool:  # noqa: ARG001
    return False


@dataclass(frozen=True)
class Layout:
    """Names of a network's parts; empty where a network has none of a kind.

    Attributes:
        model: class name of the network, for messages.
        depths: branches of a U-shaped network from the shallowest (skips the most) to the deepest.
        writes: whether the network, given these inputs, writes into the outputs of its modules in place.
    """

    model: str
    depths: tuple[Branch, ...] = ()
    writes: Callable[[Inputs], bool] = _never
