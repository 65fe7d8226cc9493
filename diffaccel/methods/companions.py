"""What methods do in a ControlNet together: when each of its residuals computes, and what is left out.

Only the last residuals can be left out with the layers that make them. So residuals are cut into stretches that compute
alike, each of which needs those before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffaccel.config.checks import check
from diffaccel.methods.base import Method, RefreshPlan
from diffaccel.networks.layout import Layout, joined_branches
from diffaccel.reuse.branch import Branch
from diffaccel.reuse.residual import Ranges
from diffaccel.reuse.schedule import Always, CallInfo, Once, Schedule
from diffaccel.runtime.act import Part
from diffaccel.runtime.drop_act import DropAct
from diffaccel.runtime.projection_act import Projection
from diffaccel.runtime.replay_act import Replay
from diffaccel.runtime.session import Tie

Leaders = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Tied:
    """A part of a ControlNet: whose it is, and what else has a say in its decisions."""

    owner: Method
    part: Part
    tie: Tie | None = None


def embedding(companion: Layout) -> Part:
    """What is made of a control image alone, kept as long as it stays the same."""
    return Part(Projection(companion.control), Once(), lifetime="frame")


def hidden_in(ranges: Ranges, variant: int, companion: Layout, denoiser: Layout) -> Branch:
    """The residuals of a ControlNet that are added within a range of skipped blocks, so that nothing reads them.

    What is added behind the last block of a segment comes after its offset and is read; what a block would be given
    over a long skip connection is not, where the block is skipped.
    """
    within, last = set(ranges.ranges[variant]), {segment[-1] for segment in ranges.segments(variant)}
    pairs = zip(companion.readers(denoiser), companion.residuals, strict=False)
    return joined_branches(
        residual for reader, residual in pairs if set(reader.blocks) <= (within if reader.before else within - last)
    )


def tied_parts(methods: Sequence[Method], companion: Layout, denoiser: Layout, index: int) -> list[Tied]:
    """All that methods do in a ControlNet.

    Args:
        methods: in their order at the denoiser.
        companion, denoiser: the two networks.
        index: of the ControlNet among several.

    Raises:
        ValueError: if a setting does not fit, or two methods cannot work together.
    """
    leaders: dict[str, set[tuple[int, int]]] = {name: set() for r in companion.residuals for name in r.replayed}
    others: list[Tied] = []
    first = 0
    for method in methods:
        for part, followed in method.companion_parts(companion):
            if followed is not None:
                others.append(Tied(method, replace(part, schedule=Always()), Tie(((first + followed, 0),))))
            elif part.act.modules and part not in [tied.part for tied in others]:
                others.append(Tied(method, part))
        for unread in method.unread(companion, denoiser):
            for name in unread.branch.modules:
                leaders.get(name, set()).add((first + unread.part, unread.variant))
        first += len(method.parts(denoiser))
    refreshed = _refreshed(methods, companion, index, [tied.owner for tied in others if tied.tie is not None])
    told = [frozenset(leaders[residual.replayed[0]]) for residual in companion.residuals]
    return [*_stretches(companion.residuals, told, refreshed, methods), *others]


def _refreshed(
    methods: Sequence[Method], companion: Layout, index: int, following: Sequence[Method]
) -> tuple[Method, RefreshPlan] | None:
    """The method that says when residuals compute, and what it says."""
    told = [(method, refresh) for method in methods if (refresh := method.refresh(companion, index)) is not None]
    names = [type(method).__name__ for method in [*following, *(method for method, _ in told)]]
    together = not told or len(names) == 1
    check(together, f"{' and '.join(names)} cannot work together: both say when the ControlNet runs")
    return told[0] if told else None


def _stretches(
    residuals: Sequence[Branch],
    told: Sequence[Leaders],
    refreshed: tuple[Method, RefreshPlan] | None,
    methods: Sequence[Method],
) -> list[Tied]:
    """Residuals that compute alike, as parts; none for those that always do."""
    owner, refresh = refreshed or (methods[0], RefreshPlan((1,) * len(residuals)))
    kept = len(refresh.intervals)
    unread = [Leaders.intersection(*told[i:kept]) for i in range(kept)]  # by this residual and by all behind it
    found: list[Tied] = []
    start = 0
    for end in range(1, kept + 1):
        alike = end < kept and (unread[end], refresh.intervals[end]) == (unread[start], refresh.intervals[start])
        if alike:
            continue
        tie = Tie(tuple(sorted(unread[start])), tuple(range(len(found))))
        part = _part(joined_branches(residuals[start:end]), refresh.intervals[start], refresh, owner)
        if part is not None or tie.leaders:
            found.append(Tied(owner, part or _left_out(residuals[start:end]), tie))
        start = end
    if kept < len(residuals):
        found.append(Tied(owner, Part(DropAct(joined_branches(residuals[kept:])), Once()), Tie()))
    return found


def _part(branch: Branch, interval: int, refresh: RefreshPlan, owner: Method) -> Part | None:
    """Residuals that are kept for some calls; None for those that are not."""
    if interval == 1:
        return None
    return Part(
        Replay(branch), _AtMost(interval), refresh.forecast, lifetime="control", ends=owner.ends, offload=owner.offload
    )


def _left_out(residuals: Sequence[Branch]) -> Part:
    """Residuals of which nothing is kept but their shapes, for calls that do not read them."""
    return Part(Replay(Branch(replayed=(), skipped=joined_branches(residuals).modules)), Always())


@dataclass(frozen=True)
class _AtMost(Schedule):
    """Compute where `interval` calls have gone by since the last computed one, whether others needed it in between."""

    interval: int

    def should_compute(self, call: CallInfo) -> bool:
        """True for the `interval`-th call after a computed one."""
        return call.age + 1 >= self.interval
