"""Fewer tokens in self-attention: ToMe (arXiv 2303.17604), with Turbo's score (2407.11717), and ToDo (2402.13573)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from diffaccel.config.checks import check, number, one_of, whole
from diffaccel.config.words import NOT_TOLD
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout, UnsupportedModelError
from diffaccel.reuse.schedule import Always, CallInfo, Once, Schedule
from diffaccel.reuse.tokens import Pooling
from diffaccel.runtime.act import Part
from diffaccel.runtime.merge_act import MergeScore, MergeTokens
from diffaccel.runtime.pool_act import PoolTokens
from diffaccel.runtime.token_act import ReduceTokens

ReductionKind = Literal["merge", "pool"]
MOST_MERGED = 0.75  # three of the four tokens of each window


@dataclass(frozen=True)
class TokenReduction(Method):
    """Let self-attention read fewer tokens of the picture. For pictures of many tokens, where attention is what costs.

    Merged tokens are one in queries, keys and values, and what attention makes of them is copied to each; pooled ones
    are one in keys and values alone, and every query remains. Tokens are matched by the cosine of what enters a
    transformer block (section 4 of ToMe's paper), and the most alike are merged. `score="informativity"` ranks them by
    Turbo's information degree instead, E = R - alpha A: R is how alike a token is to its destination, and A the
    attention that it receives. Our reading: A is the mean over heads and over 64 evenly spaced queries, as there is no
    class token, times the number of tokens.

    Args:
        kind: "merge" (ToMe) or "pool" (ToDo).
        ratio: merging: share of the tokens that are merged into others, at most 0.75. Pooling: share by which each side
            of the grid of keys is shorter: 0.5 makes one of each 2 x 2, 0.75 one of each 4 x 4. 0 reduces nothing.
        score: what is merged first, "similarity" or "informativity".
        alpha: weight of the attention that a token receives, for "informativity".
        pooling: "mean", or "nearest" for the middle token of each window.
        interval: tokens are matched in every `interval`-th call, and go together as before in the others.
        min_tokens: attentions that read fewer tokens of the picture are left alone; where all do, the report says so.
        calls: where in a run tokens are reduced, from and to, as shares of its network calls; (0.5, 1) is the second
            half.
        seed: of the destinations, one drawn in each window of 2 x 2, anew for each attention and each matching.
    """

    kind: ReductionKind = "merge"
    ratio: float = 0.5
    score: MergeScore = "similarity"
    alpha: float = 0.1
    pooling: Pooling = "mean"
    interval: int = 1
    min_tokens: int = 1024
    calls: tuple[float, float] = (0.0, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kind", self.kind, get_args(ReductionKind))
        one_of("score", self.score, get_args(MergeScore))
        one_of("pooling", self.pooling, get_args(Pooling))
        number("alpha", self.alpha, 0.0)
        whole("interval", self.interval, 1)
        whole("min_tokens", self.min_tokens, 4)
        whole("seed", self.seed, 0, 2**20)
        self._check_ratio()
        pair = isinstance(self.calls, list | tuple) and len(self.calls) == 2
        check(pair, f"calls must be two numbers, from and to, as (0.5, 1.0); got {self.calls!r}")
        first, last = self.calls
        number("the start of calls", first, 0.0, 1.0)
        number("the end of calls", last, first, 1.0)
        object.__setattr__(self, "calls", (float(first), float(last)))

    def _check_ratio(self) -> None:
        if self.kind == "merge":
            number("ratio", self.ratio, 0.0, MOST_MERGED)
            return
        number("ratio", self.ratio, 0.0, 0.9)
        fits = abs(1 / (1 - self.ratio) - self._side) < 0.05
        check(fits, f"ratio of kind=pool must leave whole windows: 0.5, 0.667, 0.75, 0.8; got {self.ratio!r}")

    @property
    def _side(self) -> int:
        """Tokens along each side of a pooled window."""
        return round(1 / (1 - self.ratio))

    def parts(self, layout: Layout) -> list[Part]:
        """One part: all self-attentions between tokens of a picture."""
        if not layout.picture_attention:
            raise UnsupportedModelError(
                "TokenReduction needs self-attention between the tokens of a picture, and none is known in "
                f"{layout.model}"
            )
        if layout.rotary and self.kind == "merge":
            raise UnsupportedModelError(
                f"{layout.model} has rotary positions, of which tokens merged from several places have none: use "
                'TokenReduction("pool")'
            )
        return [Part(self._act(layout), self._when)]

    def _act(self, layout: Layout) -> ReduceTokens:
        where = (layout.picture_attention, layout.patch, self.min_tokens, type(self).__name__)
        if self.kind == "pool":
            return PoolTokens(*where, self._side, self.pooling, layout.rotary)
        return MergeTokens(*where, self.ratio, self.score, self.alpha, self.interval, self.seed)

    @property
    def _when(self) -> Schedule:
        """When attention reads all tokens."""
        if self.ratio == 0:
            return Always()
        return Once() if self.calls == (0.0, 1.0) else _Outside(*self.calls)


@dataclass(frozen=True)
class _Outside(Schedule):
    """Compute in full before and after a part of the run."""

    counts_run: ClassVar[bool] = True

    first: float
    last: float

    def should_compute(self, call: CallInfo) -> bool:
        """True outside of the calls from `first` to `last`."""
        assert call.total is not None
        return not self.first <= call.index / call.total < self.last

    def validate(self, total: int | None) -> None:
        """Raise ValueError where the length of the run is not known."""
        if total is None:
            raise ValueError(
                f"TokenReduction with calls needs the number of network calls of a run, {NOT_TOLD}: pass the pipeline "
                "to accelerate(), or leave calls out"
            )
