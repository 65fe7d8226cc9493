"""What is asked of a schedule: at least a quality at the least cost, or at most a cost at the best quality."""

from dataclasses import dataclass, fields

from diffaccel.config.checks import check, number

LIMITS = {"min_psnr": (1.0, 99.0), "min_ssim": (0.0, 1.0), "max_macs": (0.001, 1.0), "max_time": (1e-9, 1e9)}
"""The least and the most that can be asked for."""


class BudgetError(ValueError):
    """A budget that no schedule keeps; the message says why."""


@dataclass(frozen=True)
class Score:
    """How a schedule did in a real run: its network's cost and its pictures' likeness, against the plain pipeline."""

    macs: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Budget:
    """Exactly one limit.

    Args:
        min_psnr: least mean PSNR to the plain pipeline's pictures in dB.
        min_ssim: least mean SSIM to them.
        max_macs: most multiply-accumulates of the network, as a fraction of the plain pipeline's, in (0, 1].
        max_time: most seconds of one picture on this machine.
    """

    min_psnr: float | None = None
    min_ssim: float | None = None
    max_macs: float | None = None
    max_time: float | None = None

    def __post_init__(self) -> None:
        names = [f.name for f in fields(self)]
        given = [name for name in names if getattr(self, name) is not None]
        check(len(given) == 1, f"give exactly one of {', '.join(names)}; got {', '.join(given) or 'none'}")
        number(given[0], self.limit, *LIMITS[given[0]])

    @property
    def name(self) -> str:
        """Which limit was given."""
        return next(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def limit(self) -> float:
        """Its value."""
        value: float = getattr(self, self.name)
        return value

    @property
    def wants_quality(self) -> bool:
        """Whether quality is the limit, and cost is to be minimized."""
        return self.name.startswith("min_")

    def holds(self, score: Score) -> bool:
        """Whether a schedule keeps the limit."""
        if self.wants_quality:
            return self.quality(score) >= self.limit
        return score.macs <= self.limit + 1e-9

    def quality(self, score: Score) -> float:
        """The likeness that counts."""
        return score.ssim if self.name == "min_ssim" else score.psnr

    def key(self, score: Score) -> tuple[float, ...]:
        """Orders schedules, the best last: those that keep the limit above all."""
        holds = self.holds(score)
        if self.wants_quality:
            return (1.0, -score.macs, score.psnr) if holds else (0.0, self.quality(score))
        return (1.0, score.psnr, -score.macs) if holds else (0.0, -score.macs)

    def __str__(self) -> str:
        return f"{self.name} {self.limit:g}"
