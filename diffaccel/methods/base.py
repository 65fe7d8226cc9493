"""What every method is: a frozen configuration that turns a network's layout into parts."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

from diffaccel.config import Config
from diffaccel.config.checks import whole
from diffaccel.networks.layout import Layout
from diffaccel.reuse.ends import Ends
from diffaccel.runtime.act import Part
from diffaccel.runtime.host import Host
from diffaccel.runtime.wrapper import Wrapper


@dataclass(frozen=True, kw_only=True)
class Method(Config, ABC):
    """A way to save work between network calls. Subclasses are frozen dataclasses, and take what every method takes.

    Args:
        warmup: the first calls of a run compute everything; the very first does in any case.
        cooldown: so do the last calls of a run, whose number of calls must be known.
    """

    warmup: int = 0
    cooldown: int = 0

    def __post_init__(self) -> None:
        whole("warmup", self.warmup, 0)
        whole("cooldown", self.cooldown, 0)

    @property
    def ends(self) -> Ends:
        """The calls of a run in which it may reuse."""
        return Ends(self.warmup, self.cooldown)

    def bounded_parts(self, layout: Layout) -> list[Part]:
        """`parts`, within the ends; what customers ask for."""
        return [replace(part, ends=self.ends) for part in self.parts(layout)]

    def bounded_companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:
        """`companion_parts`, within the ends."""
        return [(replace(part, ends=self.ends), index) for part, index in self.companion_parts(layout)]

    @abstractmethod
    def parts(self, layout: Layout) -> list[Part]:
        """What is reused in a network of this layout, and when.

        Raises:
            UnsupportedModelError: if the network lacks what the method needs.
            ValueError: if a setting does not fit the network.
        """

    def written_out(self) -> Self:
        """The same method without any need of the files that it names; what only people read of them is left out."""
        return self

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
