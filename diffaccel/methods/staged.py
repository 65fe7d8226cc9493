"""Another method in each stage of a run: early in a run other features bear reuse than late."""

from dataclasses import dataclass, replace
from itertools import pairwise

from diffaccel.config.checks import check, listed
from diffaccel.config.words import A_CACHE
from diffaccel.methods.base import Method, Stage
from diffaccel.networks.layout import Layout
from diffaccel.runtime.act import Part
from diffaccel.runtime.substitute import Stretch


@dataclass(frozen=True)
class Staged(Method):
    """Take turns: each stage of a run has a method of its own, or several.

    All methods count calls in the run. A stage begins with nothing stored, so that its first call computes, and what a
    stage stored is forgotten when it ends. Methods beside this one are put on every stage, each for itself.

    Args:
        methods: of each stage, the first one first; a list of methods for a stage that has several.
        at: where each stage but the first begins: a share of the run's calls, between 0 and 1 and rounded to whole
            calls, or a whole number, the call itself.
    """

    methods: tuple[tuple[Method, ...], ...]
    at: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "methods", tuple(listed(methods) for methods in listed(self.methods)))
        object.__setattr__(self, "at", listed(self.at))
        for method in (method for stage in self.methods for method in stage):
            _require_fit(method)
        count = len(self.methods)
        check(count == len(self.at) + 1, f"{count} stages need at= for all but the first, {count - 1}; got {self.at}")
        for place in self.at:
            number = isinstance(place, int | float) and not isinstance(place, bool)
            fits = number and (place >= 1 if isinstance(place, int) else 0 < place < 1)
            check(fits, f"at must be shares between 0 and 1, or whole calls >= 1; got {place!r}")
        shares = {isinstance(place, float) for place in self.at}
        ascending = len(shares) == 1 and all(a < b for a, b in pairwise(self.at))
        check(ascending, f"at must be ascending, all shares or all calls; got {self.at}")

    def parts(self, layout: Layout) -> list[Part]:  # noqa: ARG002
        """None of its own."""
        return []

    def bounded_parts(self, layout: Layout) -> list[Part]:
        """None of its own: those of a stage are its methods'."""
        return self.parts(layout)

    @property
    def no_stream(self) -> str:
        """Why not: one call of a stream has frames of all stages."""
        return (
            "takes turns by the calls of a run, and a call of a stream has frames at all stages: use one method, such "
            f"as {A_CACHE}"
        )

    def stages(self) -> tuple[Stage, ...]:
        """Each stage, with what every method takes given to its methods."""
        turns = map(Stretch, (0, *self.at), (*self.at, None))
        return tuple(
            Stage(tuple(self._bounded(method) for method in methods), turn)
            for methods, turn in zip(self.methods, turns, strict=True)
        )

    def _bounded(self, method: Method) -> Method:
        return replace(
            method,
            warmup=max(self.warmup, method.warmup),
            cooldown=max(self.cooldown, method.cooldown),
            offload=self.offload or method.offload,
        )

    def written_out(self) -> "Staged":
        """The same with all methods written out."""
        return replace(self, methods=tuple(tuple(m.written_out() for m in stage) for stage in self.methods))


def _require_fit(method: Method) -> None:
    """Refuse what cannot be a method of a stage."""
    check(isinstance(method, Method), f"methods must be methods such as DeepCache(3); got {method!r}")
    whole = isinstance(method, Staged) or type(method).substitute is not Method.substitute
    name = type(method).__name__
    check(not whole, f"{name} has turns of its own and cannot be the method of a stage")
    check(not method.needs_controlnet, f"{name} works on ControlNets, which Staged leaves alone")
