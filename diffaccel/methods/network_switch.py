"""A small network takes the easy calls: T-Stitch (arXiv 2402.14167), and A-SDM's switching of UNets (2406.00210)."""

import os
from dataclasses import dataclass, replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch

from diffaccel.config.checks import check, listed, number, whole
from diffaccel.config.words import A_CACHE
from diffaccel.methods.base import Method
from diffaccel.models.counterpart import Counterpart, counterpart
from diffaccel.models.source import located
from diffaccel.networks.layout import Layout
from diffaccel.runtime.act import Part
from diffaccel.runtime.host import Host
from diffaccel.runtime.run import Run
from diffaccel.runtime.substitute import Substitute, Turns

_loaded: WeakKeyDictionary[torch.nn.Module, dict[Any, torch.nn.Module]] = WeakKeyDictionary()


@dataclass(frozen=True)
class NetworkSwitch(Method):
    """Give some calls of a run to a smaller network that was trained for the same.

    At high noise a small network predicts nearly what a large one does, and what it got wrong the large one's later
    calls mend: so the small one takes the first calls. All methods count calls in the run, and other methods are put on
    both networks. A network to which the run comes computes its first call there, and reads nothing that was stored
    before. Samplers of several steps go on with what they keep: predictions of the picture, whichever network made
    them. A small network that is named is loaded once for a large one, however often that is accelerated.

    Args:
        small: the other network: a bundled name, or a folder, file or Hub id of its pipeline, or the pipeline or the
            network itself. Latents, text encoder and kind of prediction must be those of the large one.
        until: share of a run's calls, the first ones, that it takes, in [0, 1], rounded to whole calls.
        calls: the calls that it takes, instead of the first ones.
    """

    small: Any
    until: float = 0.3
    calls: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.small, os.PathLike):
            object.__setattr__(self, "small", os.fspath(self.small))
        known = isinstance(self.small, torch.nn.Module) or hasattr(self.small, "components")
        named = isinstance(self.small, str) and self.small != ""
        check(known or named, f"small must be a model's name or folder, a pipeline, or a network; got {self.small!r}")
        number("until", self.until, 0.0, 1.0)
        if self.calls is not None:
            calls = listed(self.calls)
            object.__setattr__(self, "calls", calls)
            for call in calls:
                whole("calls", call, 0)
            check(calls == tuple(sorted({*calls})) != (), f"calls must list calls in ascending order; got {calls}")

    def written_out(self) -> Self:
        """The same with a name that leads to the small network from any folder."""
        return replace(self, small=located(self.small)) if isinstance(self.small, str) else self

    def parts(self, layout: Layout) -> list[Part]:  # noqa: ARG002
        """None: no feature is stored."""
        return []

    @property
    def no_stream(self) -> str:
        """Why not: one call of a stream has frames of all stages."""
        return (
            "gives whole calls to another network, and a call of a stream has frames at all stages: stream on the "
            f"small pipeline, or use a method that only reuses features, such as {A_CACHE}"
        )

    def substitute(self, model: torch.nn.Module, host: Host) -> Substitute:
        """The small network, which is known to fit.

        Raises:
            ValueError: if it does not, naming what differs, or if there is no such model.
        """
        small = counterpart(self.small)
        check(small.network is not model, "the small network is the pipeline's own: give another one")
        small.require_fit(model, host.pipe)

        where = _where(model, host)

        def load() -> torch.nn.Module:
            return _beside(model, *where, self.small, small)

        def require_fit(run: Run) -> None:
            small.require_fit(model, run.host.pipe)
            dtype, device = _where(model, run.host)
            check(
                (dtype, device) == where,
                f"the large network is {dtype} on {device} by now, and the small one was put beside it as {where[0]} "
                f"on {where[1]}: detach() the handle, then accelerate() the pipeline again",
            )

        return Substitute(load, Turns(self.until, self.calls, self.ends), require_fit)

    def to_dict(self) -> dict[str, Any]:
        """As of every configuration, if the small network was named."""
        self._require_name()
        return super().to_dict()

    def to_text(self) -> str:
        """As of every configuration, if the small network was named."""
        self._require_name()
        return super().to_text()

    def _require_name(self) -> None:
        check(isinstance(self.small, str), "small is an object: to write the method down, name its model or folder")


def _where(model: Any, host: Host) -> tuple[torch.dtype, torch.device]:
    """Number format of a network, and the device on which it runs."""
    return model.dtype, torch.device(getattr(host.pipe, "_execution_device", None) or model.device)


def _beside(model: Any, dtype: torch.dtype, device: torch.device, name: Any, small: Counterpart) -> torch.nn.Module:
    """The small network in the large one's number format and on its device, loaded once for it."""
    if small.network is not None:
        return small.load(dtype, device)
    known, key = _loaded.setdefault(model, {}), (name, dtype, device)
    if key not in known:
        known[key] = small.load(dtype, device)
    return known[key]
