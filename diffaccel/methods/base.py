"""What every method is: a frozen configuration that turns a network's layout into parts."""

from abc import ABC, abstractmethod

from diffaccel.branch import Part
from diffaccel.config import Config
from diffaccel.families.layout import Layout


class Method(Config, ABC):
    """A way to save work between network calls. Subclasses are frozen dataclasses."""

    @abstractmethod
    def parts(self, layout: Layout) -> list[Part]:
        """What is reused in a network of this layout, and when.

        Raises:
            UnsupportedModelError: if the network lacks what the method needs.
            ValueError: if a setting does not fit the network.
        """
