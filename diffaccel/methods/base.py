"""What every method is: a frozen configuration that turns a network's layout into parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from diffaccel.config import Config
from diffaccel.config.checks import check, flag, whole
from diffaccel.config.words import A_CACHE
from diffaccel.networks.layout import Layout
from diffaccel.reuse.branch import Branch
from diffaccel.reuse.ends import Ends
from diffaccel.reuse.forecast import Forecast
from diffaccel.runtime.act import Part
from diffaccel.runtime.host import Host
from diffaccel.runtime.substitute import Stretch, Substitute
from diffaccel.runtime.wrapper import Wrapper


@dataclass(frozen=True)
class Unread:
    """What of a ControlNet the denoiser does not read while one of its parts reuses.

    Attributes:
        branch: residuals, or modules among which theirs are.
        part: index of the part among those of the method.
        variant: in which way of its act.
    """

    branch: Branch
    part: int = 0
    variant: int = 0


@dataclass(frozen=True)
class RefreshPlan:
    """When residuals of a ControlNet compute.

    Attributes:
        intervals: for each residual that is kept, at most how many calls go by from one that computes it to the next;
            from one residual to the next they only grow, each a multiple of the one before.
        forecast: carries residuals to the calls between; None leaves them unchanged.
    """

    intervals: Sequence[int]
    forecast: Forecast | None = None


@dataclass(frozen=True)
class Stage:
    """Some calls of a run, and what is reused in them.

    Attributes:
        methods: the methods.
        turns: which calls.
    """

    methods: tuple[Method, ...]
    turns: Stretch


@dataclass(frozen=True, kw_only=True)
class Method(Config, ABC):
    """A way to save work between network calls. Subclasses are frozen dataclasses, and take what every method takes.

    Attributes:
        needs_controlnet: whether it works on ControlNets alone.

    Args:
        warmup: the first calls of a run compute everything; the very first does in any case.
        cooldown: so do the last calls of a run, whose number of calls must be known.
        offload: features that it stores lie in the machine's memory, and those of one module at a time come to the
            device; for where the device's memory is short. Each call that stores some waits for the device once.
    """

    needs_controlnet: ClassVar[bool] = False

    warmup: int = 0
    cooldown: int = 0
    offload: bool = False

    def __post_init__(self) -> None:
        flag("offload", self.offload)
        whole("warmup", self.warmup, 0)
        whole("cooldown", self.cooldown, 0)

    @classmethod
    def parse(cls, text: str) -> Self:
        """As `Config.parse`; the name of a file, which some methods are made of, is refused with what to write."""
        file = text.strip()
        wanted = (
            f"{file!r} is a file: write profile:recipe={file!r} if diffaccel tune wrote it, or name it with --profile"
        )
        check(":" in file or not file.endswith(".json"), wanted)
        return super().parse(text)

    @property
    def ends(self) -> Ends:
        """The calls of a run in which it may reuse."""
        return Ends(self.warmup, self.cooldown)

    def bounded_parts(self, layout: Layout) -> list[Part]:
        """`parts`, with what every method takes; what customers ask for."""
        parts = [replace(part, ends=self.ends, offload=self.offload) for part in self.parts(layout)]
        name = type(self).__name__
        stores = bool(parts) or self.needs_controlnet
        check(stores or not self.offload, f"{name} stores no features that offload=True could move: leave it out")
        return parts

    def require_nets(self, count: int) -> None:
        """Raise ValueError if it names a ControlNet that there is not among `count` different ones; most name none."""

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
                f"features, such as {A_CACHE}"
            )
        return None

    def companion_parts(self, layout: Layout) -> list[tuple[Part, int | None]]:  # noqa: ARG002
        """What is reused in a ControlNet that runs before the denoiser.

        Each part comes with the index of the part of `parts` whose decision it shares, or with None if its own schedule
        decides.
        """
        return []

    def unread(self, companion: Layout, denoiser: Layout) -> list[Unread]:  # noqa: ARG002
        """What the denoiser will not read of a ControlNet that runs before it."""
        return []

    def refresh(self, companion: Layout, index: int) -> RefreshPlan | None:  # noqa: ARG002
        """When the residuals of the ControlNet with this index compute; None leaves that to others.

        Raises:
            ValueError: if a setting does not fit the ControlNet.
        """
        return None

    def wrapper(self, layout: Layout, host: Host) -> Wrapper | None:  # noqa: ARG002
        """What stands between the pipeline and the network, if anything."""
        return None

    def substitute(self, model: torch.nn.Module, host: Host) -> Substitute | None:  # noqa: ARG002
        """Another network that takes some of the calls of `model`, if any; other methods are put on both.

        Raises:
            ValueError: if it does not fit.
        """
        return None

    def stages(self) -> tuple[Stage, ...]:
        """The stages of a run, where each has methods of its own; none for a method that is the same throughout."""
        return ()
