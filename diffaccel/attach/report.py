"""What acceleration did: calls computed and replayed, multiply-accumulates done and saved, each call in a drawing."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from diffaccel.attach.call_rows import CallRow, call_rows
from diffaccel.attach.cost import CostModel, UncountableError
from diffaccel.attach.drawing import WORDS, Drawing, draw
from diffaccel.attach.seat import Seat
from diffaccel.config.files import write_atomically
from diffaccel.config.pages import filled
from diffaccel.config.words import counted

MACS = ("macs", "macs_plain", "macs_saved", "ceiling")


@dataclass(frozen=True)
class Report:
    """Totals since `accelerate`, over all denoisers.

    Multiply-accumulates are counted when first asked for: each kind of network call that occurred is run once on
    tensors without storage, by torch's formulas, which takes a second or so. Those of a ControlNet are among them where
    a method has a say in when it runs, as `DeepCache` and `ControlCache` have, and are left out where none has.

    Attributes:
        computed: network calls that ran in full.
        replayed: network calls that reused something.
        switched: network calls that another, smaller network took; what it reuses counts under `methods`.
        methods: for each method that works within networks, how many calls it computed and how many it replayed. Those
            that stand around whole calls, such as `EasyCache`, show in `computed` and `replayed` alone.
        controlnet: ControlNet calls that ran in full, and that left out what the denoiser would not read.
        full: calls that computed in full because nothing told which features they could share, by the reason.
        cache_bytes: storage that features take at the moment, zero after the end of a pipeline's run.
    """

    computed: int
    replayed: int
    switched: int
    methods: dict[str, tuple[int, int]]
    controlnet: tuple[int, int]
    full: dict[str, int]
    cache_bytes: int
    _count: Callable[[], tuple[int, int]] = field(repr=False, compare=False)
    _list: Callable[[], list[CallRow]] = field(repr=False, compare=False)

    @cached_property
    def _counted(self) -> tuple[int, int]:
        return self._count()

    @property
    def _uncountable(self) -> str | None:
        """Why multiply-accumulates are not known, if they are not."""
        try:
            self._counted  # noqa: B018
        except UncountableError as error:
            return str(error)
        return None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all network calls.

        Raises:
            UncountableError: for a network that reads values of its inputs, as Lumina 2 does of its masks. This goes
                for all figures made from these; `to_dict` has None for them.
        """
        return self._counted[0]

    @property
    def macs_plain(self) -> int:
        """Multiply-accumulates that the same calls would have taken, had each computed everything."""
        return self._counted[1]

    @property
    def macs_saved(self) -> float:
        """Fraction of the multiply-accumulates that was saved, 0..1."""
        return 1 - self.macs / self.macs_plain if self.macs_plain else 0.0

    @property
    def ceiling(self) -> float:
        """Speed-up of the denoisers if time followed multiply-accumulates."""
        return self.macs_plain / self.macs if self.macs else 1.0

    @cached_property
    def calls(self) -> tuple[CallRow, ...]:
        """The last 4,096 calls of each network: state, cost and what was measured to decide."""
        return tuple(self._list())

    @property
    def last_run(self) -> tuple[CallRow, ...]:
        """Those of the last run, of whichever networks; of calls outside of runs, all."""
        last = max((row.run for row in self.calls if row.run is not None), default=None)
        return tuple(row for row in self.calls if row.run == last)

    def plot(self) -> Drawing:
        """The last run, call by call: computed or reused, cost, and what was measured beside the limit that decided.

        Notebooks show it; `plot().save("calls.svg")` writes it.

        Raises:
            ValueError: if no network call was made yet.
        """
        if not self.calls:
            raise ValueError("there is nothing to draw: no network call was made since accelerate(); run the pipeline")
        return draw(self.last_run)

    def to_html(self) -> str:
        """A page that needs nothing else: the totals, the drawing of the last run, and its figures in a table."""
        rows = self.last_run
        return filled(
            "diffaccel.attach",
            "report.html",
            summary=str(self),
            drawing=self.plot().svg if rows else "",
            rows=rows,
            words=WORDS,
            quantities=list(dict.fromkeys(item.name for row in rows for item in row.measured)),
        )

    def save(self, path: str | Path) -> None:
        """Write the page."""
        write_atomically(path, self.to_html())

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {
            **{name: getattr(self, name) for name in ("computed", "replayed", "switched")},
            **{name: None if self._uncountable else getattr(self, name) for name in MACS},
            "cache_bytes": self.cache_bytes,
            "methods": {name: _pair(counts) for name, counts in self.methods.items()},
            "controlnet": _pair(self.controlnet),
            "full": self.full,
        }

    def __str__(self) -> str:
        calls = counted(self.computed + self.replayed + self.switched, "network call")
        switched = f", {self.switched} on the small network" if self.switched else ""
        lines = [
            f"{calls}: {self.computed} computed, {self.replayed} replayed{switched}",
            self._uncountable
            or f"{self.macs / 1e9:.4g} of {self.macs_plain / 1e9:.4g} GMAC: {self.macs_saved:.1%} saved, "
            f"at most {self.ceiling:.2f}x as fast",
        ]
        counts = self.methods | ({"ControlNet": self.controlnet} if any(self.controlnet) else {})
        lines += [f"{name}: {computed} computed, {reused} replayed" for name, (computed, reused) in counts.items()]
        lines += [f"{counted(count, 'call')} computed in full: {reason}" for reason, count in self.full.items()]
        return "\n".join(lines)


def summarize(costs: Sequence[CostModel], seats: Sequence[Seat]) -> Report:
    """The report on some networks, each given by the cost of its calls and by its seat."""
    asked, controlnet, full = Counter[bool](), Counter[bool](), Counter[str]()
    methods: dict[str, Counter[bool]] = {}
    for cost, seat in zip(costs, seats, strict=True):
        tally = seat.session.tally
        full.update(tally.full)
        if seat.leader is not None:
            controlnet.update(_in_full(seat))
            continue
        for (_, computed), count in tally.asked.items() if not seat.is_substitute else ():
            asked[computed] += count
        for kind, count in tally.calls.items():
            for owner, computed in _by_owner(cost.plan.owners, kind.computes).items():
                methods.setdefault(owner, Counter())[computed] += count
    tallies = [seat.session.tally.copy() for seat in seats]
    return Report(
        computed=asked[True],
        replayed=asked[False],
        switched=sum(sum(tally.switched.values()) for tally in tallies),
        methods={owner: (count[True], count[False]) for owner, count in methods.items()},
        controlnet=(controlnet[True], controlnet[False]),
        full=dict(full),
        cache_bytes=sum(seat.nbytes() for seat in seats),
        _count=lambda: _total([cost.macs(tally) for cost, tally in zip(costs, tallies, strict=True)]),
        _list=lambda: call_rows(costs, seats, tallies),
    )


def _pair(counts: tuple[int, int]) -> dict[str, int]:
    """Calls that computed, and that replayed."""
    return dict(zip(("computed", "replayed"), counts, strict=True))


def _in_full(seat: Seat) -> Counter[bool]:
    """Calls of a ControlNet by whether all ran that may be left out."""
    counts = Counter[bool]()
    for kind, count in seat.session.tally.calls.items():
        pairs = zip(kind.computes, seat.session.ties, strict=True)
        counts[all(computes for computes, tie in pairs if tie is not None)] += count
    return counts


def _total(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Sums of the first and of the second numbers."""
    return sum(first for first, _ in pairs), sum(second for _, second in pairs)


def _by_owner(owners: Sequence[str], computes: Sequence[bool]) -> dict[str, bool]:
    """Whether each method computed all of its parts."""
    return {owner: all(c for o, c in zip(owners, computes, strict=True) if o == owner) for owner in owners}
