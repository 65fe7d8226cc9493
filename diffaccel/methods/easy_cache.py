"""EasyCache (arXiv 2507.02860): how much the output changes follows from how much the input did, in any network."""

from dataclasses import dataclass, field
from typing import Any

import torch

from diffaccel.config.checks import number, whole
from diffaccel.methods.base import Method
from diffaccel.networks.layout import Layout, UnsupportedModelError
from diffaccel.runtime.act import Part
from diffaccel.runtime.call import Call, Measured
from diffaccel.runtime.drift import magnitude
from diffaccel.runtime.host import Host
from diffaccel.runtime.lanes import Lane, scatter
from diffaccel.runtime.memory import Memory
from diffaccel.runtime.wrapper import Inner, Wrapper, map_output, prediction, require_one

EXPECTED = "expected relative error of the output"


@dataclass(frozen=True)
class EasyCache(Method):
    """Skip the whole network while its output is expected to change little, and move the last output with the input.

    Between two computed calls the rate k = |v - v_last| / |x - x_last| hardly changes (section 3.2 of the paper; norms
    are means of absolute values over a row). A row skips while the sum of k |x_t - x_(t-1)| / |v_last| since its last
    computed call stays below the threshold, and then answers v = x + (v - x)_last. Needs no calibration and no block of
    the network, and each row decides for itself. The decision waits for the device once per call. Stores a row's input
    and output of its last computed call.

    Args:
        threshold: expected relative change up to which a row skips; 0.02 to 0.1 is usual, 0 reuses nothing.
        warmup: the first calls of a run compute, >= 2, as a rate needs two.
        max_consecutive: at most this many skipped calls in a row; None sets no limit.
    """

    threshold: float = 0.05
    warmup: int = field(default=2, kw_only=True)
    max_consecutive: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        number("threshold", self.threshold, 0.0)
        whole("warmup", self.warmup, 2)
        whole("max_consecutive", self.max_consecutive, 0, optional=True)

    @property
    def no_stream(self) -> str | None:
        """It can: each row of a call decides for itself, whoever's it is."""
        return None

    def parts(self, layout: Layout) -> list[Part]:  # noqa: ARG002
        """None: the network is run whole, or not at all."""
        return []

    def wrapper(self, layout: Layout, host: Host) -> Wrapper:  # noqa: ARG002
        """Stands in for the network where a row skips."""
        return _Skips(self)


@dataclass
class _Row:
    """What is kept of one row: input and output ``(1, ...)`` of the last computed call, and the last input of all.

    Attributes:
        calls: how many it has made.
        rate: how far the output moves for a move of the input.
        expected: relative change of the output that has added up since the last computed call.
        skipped: calls since then.
    """

    x: torch.Tensor
    v: torch.Tensor
    latest: torch.Tensor
    calls: int = 1
    rate: float = float("inf")
    expected: float = 0.0
    skipped: int = 0


class _Skips(Wrapper):
    """Computes the rows that must, and moves the last outputs of the others; within methods that leave rows out."""

    order = -1

    def __init__(self, method: EasyCache) -> None:
        self.method, self.ends = method, method.ends

    def around(self, call: Call, memory: Memory, network: Inner) -> Any:
        """One network call, of some rows or none."""
        known: dict[Lane, _Row] = memory.rows.setdefault(self, {})
        lanes, x = call.lanes["run"], call.inputs.sample
        if not isinstance(x, torch.Tensor):
            raise UnsupportedModelError(f"EasyCache needs a network that takes one tensor, not a {type(x).__name__}")
        skips = self._decide(call, x, [known.get(lane) for lane in lanes])
        due = [row for row, skip in enumerate(skips) if not skip]
        kept = [row for row, skip in enumerate(skips) if skip]
        outputs = []
        if due:
            output = network(call.select(due))
            require_one(output, "EasyCache")
            _require_alike(x, prediction(output))
            self._remember(known, [lanes[row] for row in due], x[due], prediction(output))
            memory.notes[self, "form"] = output
            outputs.append((output, due))
        if kept:
            moved = torch.cat([_moved(known[lanes[row]], x[row : row + 1]) for row in kept])
            outputs.append((map_output(lambda _: moved, memory.notes[self, "form"]), kept))
        return outputs[0][0] if len(outputs) == 1 else scatter(outputs)

    def _decide(self, call: Call, x: torch.Tensor, rows: list[_Row | None]) -> list[bool]:
        """Which rows skip; adds to what is expected of them."""
        known = [(place, row) for place, row in enumerate(rows) if row is not None and self._may(call, place, row)]
        skips = [False] * len(rows)
        if not known:
            return skips
        x = x.detach()
        moves = torch.stack([magnitude(x[place] - row.latest[0]) / magnitude(row.v) for place, row in known])
        for (place, row), move in zip(known, moves.tolist(), strict=True):
            row.latest = x[place : place + 1].clone()  # callers write into what they gave
            row.expected += row.rate * move if move else 0.0  # a rate that was found at rest may be infinite
            enough = self.method.max_consecutive is not None and row.skipped >= self.method.max_consecutive
            skips[place] = row.expected < self.method.threshold and not enough
        expected = tuple(row.expected for _, row in known)
        call.measured.append(Measured(EXPECTED, expected, self.method.threshold))
        return skips

    def _may(self, call: Call, place: int, row: _Row) -> bool:
        """Whether a row may skip at its place in its run; in a stream without end its own calls are counted."""
        step, total = call.place(place)
        return not self.ends.computes(row.calls + row.skipped if step is None else step, total)

    def _remember(self, known: dict[Lane, _Row], lanes: list[Lane], x: torch.Tensor, v: torch.Tensor) -> None:
        """Keep what rows computed, and the rate at which their outputs move."""
        x, v = x.detach(), v.detach()
        for index, lane in enumerate(lanes):
            own, output = x[index : index + 1].clone(), v[index : index + 1].clone()
            before = known.get(lane)
            known[lane] = _Row(own, output, own)
            if before is not None:
                known[lane].calls = before.calls + before.skipped + 1
                known[lane].rate = float(magnitude(output - before.v) / magnitude(own - before.x))


def _moved(row: _Row, x: torch.Tensor) -> torch.Tensor:
    """v = x + (v - x)_last; channels beyond the input's, such as a learned variance, and of other inputs stay."""
    row.skipped += 1
    channels = min(x.shape[1], row.v.shape[1])
    moved = row.v.clone()
    moved[:, :channels] += x[:, :channels] - row.x[:, :channels]
    return moved


def _require_alike(x: torch.Tensor, v: torch.Tensor) -> None:
    """Refuse networks whose output cannot be moved with their input."""
    if v.shape[2:] != x.shape[2:]:
        raise UnsupportedModelError(
            f"EasyCache moves the output with the input, and this network makes {tuple(v.shape)} of {tuple(x.shape)}: "
            "use a method that works within it, such as BlockCache"
        )
