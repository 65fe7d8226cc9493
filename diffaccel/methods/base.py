"""What every method is: a frozen configuration that turns a network's layout into parts."""

from abc import ABC, abstractmethod

from diffaccel.config import Config
from diffaccel.networks.layout import Layout
from diffaccel.reuse.branch import Part
from diffaccel.runtime.host import Host
from diffaccel.runtime.wrapper import Wrapper


class Method(Config, ABC):
    """A way to save work between network calls. Subclasses are frozen dataclasses."""

    @abstractmethod
    def parts(self, layout: Layout) -> list[Part]:
        """What is reused in a network of this layout, and when.

        Raises:
            UnsupportedModelError: if the network lacks what the method needs.
            ValueError: if a setting does not fit the network.
        """

    def companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:  # noqa: ARG002
        """What is reused in a ControlNet that runs before the denoiser.

        Each part comes with the index of the part of `parts` whose decision it shares, or with None if its own schedule
        decides.
        """
        return []

    def wrapper(self, layout: Layout, host: Host) -> Wrapper | None:  # noqa: ARG002
        """What stands between the pipeline and the network, if anything."""
        return None
