"""What every method is: a frozen configuration that turns a network's layout into parts."""

from abc import ABC, abstractmethod

from diffaccel.config import Config
from diffaccel.networks.layout import Layout
from diffaccel.runtime.act import Part
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

    @property
    def no_stream(self) -> str | None:
        """Why the method cannot work in a stream, as the end of a sentence about it; None where it can."""
        if type(self).wrapper is not Method.wrapper:
            return (
                "changes what the network is called with and cannot work in a stream: use a method that only reuses "
                "features, such as DeepCache"
            )
        return None

    def companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:  # noqa: ARG002
        """What is reused in a ControlNet that runs before the denoiser.

        Each part comes with the index of the part of `parts` whose decision it shares, or with None if its own schedule
        decides.
        """
        return []

    def wrapper(self, layout: Layout, host: Host) -> Wrapper | None:  # noqa: ARG002
        """What stands between the pipeline and the network, if anything."""
        return None
