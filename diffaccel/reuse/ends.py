"""Which calls of a run a method may reuse in: not the first ones, nor the last ones."""

from dataclasses import dataclass

from diffaccel.config.checks import check
from diffaccel.config.words import NOT_TOLD


@dataclass(frozen=True)
class Ends:
    """Calls at the ends of a run that compute, whatever a schedule says.

    Attributes:
        warmup: how many at its start.
        cooldown: how many at its end.
    """

    warmup: int = 0
    cooldown: int = 0

    def computes(self, step: int | None, total: int | None) -> bool:
        """Whether a call of a run of `total` calls computes in any case; False for one whose place is not known."""
        if step is None:
            return False
        return step < self.warmup or (total is not None and step >= total - self.cooldown)

    @property
    def counts_run(self) -> bool:
        """Whether it needs a run that ends."""
        return self.cooldown > 0

    def validate(self, total: int | None) -> None:
        """Raise ValueError if the end of the run is needed, and not known."""
        check(
            total is not None or not self.counts_run,
            f"cooldown={self.cooldown} needs the number of network calls of a run, {NOT_TOLD}: leave cooldown out, or "
            "pass the pipeline to accelerate()",
        )


NO_ENDS = Ends()
