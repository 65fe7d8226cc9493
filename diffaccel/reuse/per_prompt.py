"""One schedule for the prompt and one for the negative prompt: FasterCache's idea (arXiv 2410.19355), for any method.

The two predictions of classifier-free guidance are alike, and the more so the later in a run; what the negative one
adds is small and changes slowly, so that it may be computed more rarely.
"""

from dataclasses import dataclass
from typing import ClassVar

from diffaccel.config import kind
from diffaccel.config.checks import check
from diffaccel.reuse.schedule import CallInfo, Schedule


@dataclass(frozen=True)
class PerPrompt(Schedule):
    """Decide by two schedules in guided runs: one for rows that see the prompt, one for those of the negative prompt.

    It does not matter whether guidance takes two network calls or two rows of one: where one of the prompts computes
    and the other does not, each has a network call of its own. Without guidance there is the first alone.

    Args:
        positive: when rows that see the prompt compute.
        negative: when rows that see the negative prompt do.
    """

    reads_prompt: ClassVar[bool] = True

    positive: Schedule
    negative: Schedule

    def __post_init__(self) -> None:
        for name, schedule in (("positive", self.positive), ("negative", self.negative)):
            kind(name, schedule, Schedule)
            simple = schedule is not None and not schedule.reads_prompt
            check(simple, f"{name} must be a schedule for all rows, such as Uniform(3); got {schedule!r}")

    @property
    def counts_run(self) -> bool:  # type: ignore[override]
        """Whether one of them does."""
        return self.positive.counts_run or self.negative.counts_run

    def for_prompt(self, *, negative: bool) -> Schedule:
        """One of the two."""
        return self.negative if negative else self.positive

    def should_compute(self, call: CallInfo) -> bool:
        """As for the prompt, which a run without guidance sees alone."""
        return self.positive.should_compute(call)

    def validate(self, total: int | None) -> None:
        """Raise ValueError if one of them does not fit the run."""
        self.positive.validate(total)
        self.negative.validate(total)
