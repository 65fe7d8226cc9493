"""A tuned recipe: what each call computes and what it replays, with which weights; `diffaccel tune` writes it."""

import math
from dataclasses import dataclass
from typing import ClassVar

from diffaccel.config import Config, StoredConfig
from diffaccel.config.checks import check, listed, whole

GuidanceScales = tuple[tuple[str, float], ...]
OUTPUT, BRANCH, BLOCKS, UNITS, UNIT = "output", "branch", "blocks", "units", "unit"
COUNTS = {OUTPUT: 0, BRANCH: 1, BLOCKS: 2, UNITS: 2, UNIT: 1}  # of the numbers that follow each


@dataclass(frozen=True)
class Reuse(Config):
    """One thing that one network call reuses.

    Args:
        call: index of the call within the run, >= 1.
        what: "output" (the network does not run at all), "branch N" (what DeepCache's branch N skips), "blocks A-B"
            (transformer blocks A to B, which are counted from 0, add what they added before), "units A-B" (the
            attentions and feed-forward networks within blocks A to B return what they returned before, as in
            IntervalCache, while norms, modulations and gates run) or "unit A.NAME" (that one of block A alone, as in
            "unit 3.attn1").
        weights: of the last computed features, latest first; (1,) replays the latest unchanged.
    """

    call: int
    what: str
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        whole("call", self.call, 1)
        check(isinstance(self.what, str), f"what must be text, such as 'blocks 0-3'; got {self.what!r}")
        kind, numbers = self.target
        fits = COUNTS.get(kind) == len(numbers) and list(numbers) == sorted(numbers)
        fits = fits and (kind == UNIT) == bool(self.module)
        check(fits, f"what must be 'output', 'branch N', 'blocks A-B', 'units A-B' or 'unit A.NAME'; got {self.what!r}")
        object.__setattr__(self, "weights", listed(self.weights))
        sound = bool(self.weights) and all(isinstance(w, int | float) and math.isfinite(w) for w in self.weights)
        check(sound, f"weights must be finite numbers, at least one; got {self.weights!r}")

    @property
    def target(self) -> tuple[str, tuple[int, ...]]:
        """`what`, taken apart: ("blocks", (2, 5)) for "blocks 2-5"."""
        kind, _, rest = self.what.partition(" ")
        parts = rest.partition(".")[0].split("-") if rest else []
        check(all(part.isdecimal() for part in parts), f"what must end with block or branch numbers; got {self.what!r}")
        return kind, tuple(int(part) for part in parts)

    @property
    def module(self) -> str:
        """Name of a single unit within its block: "attn1" for "unit 3.attn1"; empty for all else."""
        return self.what.partition(" ")[2].partition(".")[2]


@dataclass(frozen=True)
class Evidence(Config):
    """What a recipe was measured to give, on prompts and seeds that the search did not see.

    Args:
        budget: what was asked for, such as "min_psnr 30".
        met: whether the budget holds on the held-out runs, too.
        macs: multiply-accumulates of the network in a run, divided by those of the plain pipeline.
        psnr, ssim: mean likeness to the plain pipeline's pictures, held out.
        search_psnr: the same on the calibration prompts.
        validation_psnr: the same on the prompts by which this recipe was chosen among the best that the search found.
        refined: what refining the blend weights added to `validation_psnr`, dB; 0 where it was not done, or not kept.
        best_fixed: the fixed schedule of no higher cost whose held-out pictures were the most alike.
        best_fixed_psnr: its PSNR.
        runs: real runs of the pipeline in the search.
        seconds: of the whole tuning.
        account: what the search found out, in words.
        settings: of all these runs, as arguments of the pipeline's calls.
    """

    budget: str
    met: bool
    macs: float
    psnr: float
    ssim: float
    search_psnr: float
    validation_psnr: float = 0.0
    refined: float = 0.0
    best_fixed: str = ""
    best_fixed_psnr: float = 0.0
    runs: int = 0
    seconds: float = 0.0
    account: str = ""
    settings: str = ""


@dataclass(frozen=True)
class Recipe(StoredConfig):
    """When what is reused, for one network, one sampler, one number of calls and one guidance.

    Args:
        model: class name of the network.
        fingerprint: hash of its configuration.
        sampler: class name of the scheduler.
        sampler_fingerprint: hash of its configuration.
        total: network calls of a run.
        reuses: what is reused at each call; a call that is not named computes everything.
        evidence: what it was measured to give.
        guidance: scales of guidance by the names of the pipeline's arguments; None where they are not known.
    """

    _origin: ClassVar[str] = "a profile written by diffaccel tune"

    model: str
    fingerprint: str
    sampler: str
    sampler_fingerprint: str
    total: int
    reuses: tuple[Reuse, ...]
    evidence: Evidence | None = None
    guidance: GuidanceScales | None = None

    def __post_init__(self) -> None:
        whole("total", self.total, 1)
        seen = set()
        for reuse in self.reuses:
            check(isinstance(reuse, Reuse), f"reuses of a recipe must be Reuse; got {reuse!r}")
            check(reuse.call < self.total, f"the recipe names call {reuse.call}; the run has calls 0..{self.total - 1}")
            check((reuse.call, reuse.what) not in seen, f"the recipe names {reuse.what!r} at call {reuse.call} twice")
            seen.add((reuse.call, reuse.what))
        kind = None if self.evidence is None or isinstance(self.evidence, Evidence) else self.evidence
        check(kind is None, f"evidence of a recipe must be Evidence; got {kind!r}")

    def at(self, what: str) -> dict[int, tuple[float, ...]]:
        """The calls that reuse `what`, each with its weights."""
        return {reuse.call: reuse.weights for reuse in self.reuses if reuse.what == what}

    @property
    def parts(self) -> tuple[str, ...]:
        """All that is reused, the output aside, in an order that does not depend on the order of the recipe."""
        return tuple(sorted({reuse.what for reuse in self.reuses if reuse.what != OUTPUT}))
