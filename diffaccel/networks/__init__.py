"""Network families: a family is a function from a network to the names of its reusable parts.

No method is named in a family and no family in a method: a method asks a `Layout` for the parts it needs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffaccel.networks import controlnet, dit, unet
from diffaccel.networks.layout import Layout, Level, Unit, UnsupportedModelError, is_one_of

__all__ = [
    "COMPANIONS",
    "FAMILIES",
    "Family",
    "Layout",
    "Level",
    "Unit",
    "UnsupportedModelError",
    "is_companion",
    "layout_of",
    "supported",
    "supports",
]


@dataclass(frozen=True)
class Family:
    """Networks laid out alike.

    Attributes:
        classes: names of the classes that are known.
        layout: reads a network's layout.
        discovers: whether a network of another class is laid out like these.
    """

    classes: tuple[str, ...]
    layout: Callable[[torch.nn.Module], Layout]
    discovers: Callable[[object], bool] = lambda _: False

    def matches(self, model: object) -> bool:
        """Whether `model` is of one of the classes, of a subclass, or laid out like them."""
        return is_one_of(model, self.classes) or self.discovers(model)


FAMILIES: tuple[Family, ...] = (Family(unet.CLASSES, unet.layout), Family(dit.CLASSES, dit.layout, dit.discovers))
COMPANIONS: tuple[Family, ...] = (
    Family(controlnet.CLASSES, controlnet.layout),
    Family(controlnet.TRANSFORMERS, controlnet.transformer_layout),
)


def supports(model: object) -> bool:
    """Whether `model` is a denoiser of a known family."""
    return any(family.matches(model) for family in FAMILIES)


def is_companion(model: object) -> bool:
    """Whether `model` is a network that runs before the denoiser in each step and feeds it."""
    return any(family.matches(model) for family in COMPANIONS)


def supported() -> list[str]:
    """Class names of all known denoisers, and what else is found."""
    return [*sorted(name for family in FAMILIES for name in family.classes), dit.OTHERS]


def layout_of(model: torch.nn.Module) -> Layout:
    """The named parts of `model`.

    Raises:
        UnsupportedModelError: if it belongs to no known family, or is built in an unknown way.
    """
    for family in (*FAMILIES, *COMPANIONS):
        if family.matches(model):
            return family.layout(model)
    raise UnsupportedModelError(
        f"{type(model).__name__} is not a supported denoiser; supported are {', '.join(supported())}"
    )
