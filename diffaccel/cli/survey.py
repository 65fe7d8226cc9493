"""The dry run: what a run would do, found out row by row, so that a million rows take a minute and little memory."""

import gc
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from diffaccel.cli.options import Request
from diffaccel.cli.planning import Preparation, misfit_finder, misfits, require_fit, require_prompts
from diffaccel.cli.said import Said

if TYPE_CHECKING:
    from diffaccel.batch.fit import Finder
    from diffaccel.batch.jobs import Job

CHUNK = 10_000


@dataclass(frozen=True)
class Survey:
    """What a run, or this shard of it, would do.

    Attributes:
        pictures: that it would have in the end, and `todo`, that it would render.
        bad: rows that cannot be used, and `notes`, about rows that can: where each came from, and what there is to say.
        duplicates: how many pictures were asked for again.
    """

    pictures: int
    todo: int
    duplicates: int
    bad: list[tuple[str, str]]
    notes: Said


@dataclass
class _Tally:
    """Of each picture, in the order of rows: the number of its group, and what it is; and what was said of which."""

    groups: "array[int]" = field(default_factory=lambda: array("I"))
    states: bytearray = field(default_factory=bytearray)
    numbers: dict[object, int] = field(default_factory=dict)
    problems: Said = field(default_factory=Said)
    notes: Said = field(default_factory=Said)
    kinds: dict[int, "Job"] = field(default_factory=dict)


_DONE, _DUE, _BAD = range(3)


def survey(prepared: Preparation) -> Survey:
    """Read the input and check every row, without loading the model."""
    looking = _Looking(prepared)
    pictures = _placed(prepared)
    gc.disable()  # rows refer to nothing that refers to them, and there are millions
    try:
        while chunk := list(islice(pictures, CHUNK)):
            looking(chunk)
    finally:
        gc.enable()
    tally = looking.tally
    require_prompts(prepared.planner.bad, len(tally.states), prepared.request)
    require_fit(prepared.request, prepared.options, list(tally.kinds.values()), prepared.source)
    return _counted(prepared, tally)


def _placed(prepared: Preparation) -> "Iterator[tuple[str, Job]]":
    """Every picture with the place of its row, up to the limit."""
    count, most = 0, prepared.request.limit
    for row in prepared.rows:
        for where, job in prepared.planner(row):
            yield where, job
            count += 1
            if count == most:
                return


class _Looking:
    """Looks at pictures, some thousands at a time, and keeps a tally."""

    def __init__(self, prepared: Preparation) -> None:
        self.tally = _Tally()
        self._prepared = prepared
        self._find: Finder | None = None

    def __call__(self, chunk: "Sequence[tuple[str, Job]]") -> None:
        """Look at pictures with the places of their rows."""
        tally, jobs = self.tally, [job for _, job in chunk]
        todo = {job.id: job for job in self._prepared.todo(jobs)}
        problems = self._problems(list(todo.values()))
        for number, (where, job) in enumerate(chunk, len(tally.states)):
            asked = todo.get(job.id)
            group = tally.numbers.setdefault((asked or job).group, len(tally.numbers))
            problem = problems.get(job.id)
            tally.groups.append(group)
            tally.states.append(_DONE if asked is None else _DUE if problem is None else _BAD)
            if asked is not None:
                tally.kinds.setdefault(group, asked)
                for note in asked.notes:
                    tally.notes.add(number, where, note)
            if problem is not None:
                tally.problems.add(number, where, problem)

    def _problems(self, todo: "Sequence[Job]") -> dict[str, str]:
        """Why pictures cannot be rendered, by their jobs' ids, as far as that shows without a model."""
        from diffaccel.batch.check import find_problems

        request = self._prepared.request
        problems = find_problems(todo, self._prepared.source, lora_partial=request.lora_partial)
        named = [job for job in todo if job.cache not in ("none", self._prepared.cache) and job.id not in problems]
        if named and self._find is None:
            self._find = misfit_finder(self._prepared.source)
        found = misfits(named, self._prepared.source, self._find)
        return problems | {name: f"cache: {problem}" for name, problem in found.items()}


def _counted(prepared: Preparation, tally: _Tally) -> Survey:
    """The sums, of the shard where there is one."""
    planner, shard = prepared.planner, prepared.request.shard
    mine = slice(None) if shard is None else slice(shard[0] - 1, None, shard[1])
    dealt = _dealt(tally, prepared.request)
    states = Counter(state for state, here in zip(tally.states, dealt, strict=True) if here)
    bad = [(row.where, row.error) for row in planner.bad[mine]]
    tally.problems.dealt = tally.notes.dealt = dealt
    bad += dict.fromkeys(tally.problems)
    return Survey(
        pictures=states[_DONE] + states[_DUE],
        todo=states[_DUE],
        duplicates=len(range(planner.duplicates)[mine]),
        bad=sorted(bad, key=_in_order),
        notes=tally.notes,
    )


def _dealt(tally: _Tally, request: Request) -> "bytearray | bytes":
    """Whether each picture is this shard's: full batches of the whole, dealt out in turn, group by group."""
    if request.shard is None:
        return bytes([1]) * len(tally.states)
    index, count = request.shard
    sizes = Counter(tally.groups)
    begins = list(accumulate((-(-sizes[group] // request.batch_size) for group in range(len(sizes))), initial=0))
    seen = [0] * len(sizes)
    dealt = bytearray()
    for group in tally.groups:
        batch = begins[group] + seen[group] // request.batch_size
        seen[group] += 1
        dealt.append(batch % count == index - 1)
    return dealt


def _in_order(said: tuple[str, str]) -> tuple[str, int]:
    """Sorts what is said by file and line."""
    file, _, line = said[0].rpartition(":")
    return file, int(line) if line.isdecimal() else 0
